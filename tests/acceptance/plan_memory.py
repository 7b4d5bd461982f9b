"""What `rayal plan` predicts of three runs, beside what they take: peak memory and bytes on disk.

python tests/acceptance/plan_memory.py FOLDER [NAME…]

Each run is a child process. Memory is that of its whole process tree without page cache:
RssAnon + RssShmem of each process, sampled; the sum's peak counts. Bytes on disk are those of the
storage root once the run has ended. Ends with 1 where a ratio is out of bounds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from measure import children

EVERY = 0.02
BOUND = 0.30

COMMON: dict[str, Any] = {"learner": {"name": "supervised", "steps": 100}, "seeds": [0]}
FASHION = {"source": "fashion-mnist", "subset": 20_000}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "digits-margin": {
        **COMMON,
        "pool": {"source": "digits"},
        "strategies": ["margin"],
        "rounds": 3,
    },
    "fashion-badge": {**COMMON, "pool": FASHION, "strategies": ["badge"], "rounds": 3},
    "fashion-batchbald": {
        **COMMON,
        "pool": {"source": "fashion-mnist"},
        "strategies": [{"name": "batchbald", "passes": 20}],
        "rounds": 2,
        "batch": 10,
        "keep": "all",
    },
}
ARRAYS: dict[str, Any] = {"pool": {"source": "rows.npz"}, "model": {"network": "mlp"}, "rounds": 1}
# not of the three: here the data outweigh the process, or a joint choice is another one
CONFIGURATIONS |= {
    "arrays-badge": {**COMMON, **ARRAYS, "strategies": ["badge"]},
    "arrays-parallel": {
        **COMMON,
        **ARRAYS,
        "strategies": [{"name": "badge", "method": "kmeans||"}],
        "batch": 500,
    },
    "arrays-candidates": {
        **COMMON,
        **ARRAYS,
        "strategies": [{"name": "coreset", "candidates": 150_000}],
    },
    "arrays-two-round": {
        **COMMON,
        **ARRAYS,
        "strategies": [{"name": "coreset", "method": "two_round"}],
        "batch": 1_000,
    },
    "arrays-bait": {**COMMON, **ARRAYS, "strategies": ["bait"], "batch": 10},
    "fashion-frozen": {
        **COMMON,
        "pool": {"source": "fashion-mnist", "subset": 5_000},
        "model": {"backbone": "efficientnet_lite0", "weights": "random", "frozen": True},
        "strategies": ["badge"],
        "rounds": 2,
    },
}
SIZES = {"arrays-bait": (20_000, 30)}  # rows and classes of arrays
USUAL = (300_000, 50)


class Private(threading.Thread):
    """Samples the private memory of a process tree until it is told to stop."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root, self.over = root, threading.Event()
        self.peak = 0
        self.trace: list[tuple[float, int]] = []

    def run(self) -> None:
        started = time.perf_counter()
        while not self.over.wait(EVERY):
            total = sum(map(private, children(self.root)))
            self.peak = max(self.peak, total)
            self.trace.append((time.perf_counter() - started, total))


def private(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    sizes = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
    kinds = ("RssAnon", "RssShmem")
    return sum(int(sizes[kind].split()[0]) * 1024 for kind in kinds if kind in sizes)


def measured(config: Path, storage: Path) -> tuple[int, int, list[tuple[float, int]]]:
    command = [sys.executable, "-m", "rayal", "run", str(config), "--verbose"]
    process = subprocess.Popen(command)
    tree = Private(process.pid)
    tree.start()
    code = process.wait()
    tree.over.set()
    tree.join()
    if code:
        raise SystemExit(f"{config.stem} ended with {code}")
    disk = sum(path.stat().st_size for path in storage.rglob("*") if path.is_file())
    return tree.peak, disk, tree.trace


def predicted(config: Path) -> tuple[int, int]:
    command = [sys.executable, "-m", "rayal", "plan", str(config), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    plan = json.loads(done.stdout)
    return int(plan["memory"]["peak"]), int(plan["disk"]["total"])


def written(folder: Path, name: str) -> dict[str, Any]:
    """Return a configuration, its arrays written where it has any."""
    given = {**CONFIGURATIONS[name], "storage": str(folder / name)}
    if given["pool"]["source"] == "rows.npz":
        rng = np.random.default_rng(0)
        rows, classes = SIZES.get(name, USUAL)
        y = rng.integers(0, classes, rows)
        x = rng.normal(size=(rows, 64)).astype(np.float32) + rng.normal(size=(classes, 64))[y]
        np.savez(folder / f"{name}.npz", x=x.astype(np.float32), y=y)
        given["pool"] = {"source": str(folder / f"{name}.npz")}
    return given


def main(folder: Path, names: list[str]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    bad = 0
    for name in names or list(CONFIGURATIONS):
        storage, config = folder / name, folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(written(folder, name)))
        expected = predicted(config)
        peak, disk, trace = measured(config, storage)
        (folder / f"{name}.trace.json").write_text(json.dumps(trace))
        for what, said, took in zip(("peak memory", "disk"), expected, (peak, disk), strict=True):
            ratio = said / took
            bad += abs(ratio - 1) > BOUND
            sys.stdout.write(
                f"{name:18} {what:12} predicted {said / 1e6:8.1f} MB  measured {took / 1e6:8.1f} "
                f"MB  ratio {ratio:.2f}\n"
            )
            sys.stdout.flush()
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
