"""Selections on columns that are large: by size, on Ray's shards, and from disk.

python tests/acceptance/large_columns.py make FOLDER ROWS WIDTH [CLASSES]
python tests/acceptance/large_columns.py choose FOLDER NAME K [ROWS] [--ray]

``make`` writes column parts (key, embedding, log_probs.0, score) in a process of its own;
``choose`` opens the first ROWS of them, memory-mapped, as a round does, and prints seconds, peak
private memory of the process tree above the start, and a fingerprint of the picks.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from measure import children

from rayal.engine.columns import column_array
from rayal.engine.executor import LOCAL, Executor, RayOptions
from rayal.pool.storage import read_mapped, write_part
from rayal.ray_executor.cluster import connect
from rayal.selection.greedy import choose
from rayal.selection.kcenter import KCenter
from rayal.selection.kmeans import KMeansPP
from rayal.selection.objective import Objective
from rayal.selection.topk import TopK
from rayal.types import PART_ROWS

SEED = 20261124
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "top-k": TopK,
    "k-center": KCenter,
    "badge": lambda: KMeansPP(log_probs="log_probs.0"),
}


def make(folder: Path, rows: int, width: int, classes: int = 10) -> None:
    chance = torch.Generator().manual_seed(SEED)
    centres = torch.randn((100, width), generator=chance)
    folder.mkdir(parents=True)
    for start in range(0, rows, PART_ROWS):
        n = min(PART_ROWS, rows - start)
        cluster = torch.randint(0, 100, (n,), generator=chance)
        x = centres[cluster] + 0.6 * torch.randn((n, width), generator=chance)
        sharp = 0.5 + 4.0 * torch.rand((n, 1), generator=chance)
        logs = (sharp * torch.randn((n, classes), generator=chance)).log_softmax(dim=1)
        columns = {
            "key": pa.array(np.arange(start, start + n, dtype=np.uint64) * 2_654_435_761),
            "embedding": column_array(x),
            "log_probs.0": column_array(logs),
            "score": column_array(-logs.amax(dim=1).double()),
        }
        write_part(folder / f"{start:09}.arrow", pa.table(columns), {})


def private(root: int) -> int:
    total = 0
    for pid in children(root):
        try:
            status = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        fields = [s.split() for s in status if s.startswith(("RssAnon", "RssShmem"))]
        total += sum(int(f[1]) for f in fields)
    return total // 1000


def round_of(executor: Executor, folder: Path, name: str, k: int, rows: int) -> dict[str, object]:
    import os

    paths = sorted(folder.glob("*.arrow"))[: -(-rows // PART_ROWS)]
    objective, over, seen = OBJECTIVES[name](), threading.Event(), [0]
    before = private(os.getpid())

    def watch() -> None:
        while not over.wait(0.05):
            seen.append(private(os.getpid()))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started, busy = time.perf_counter(), time.process_time()
    none = np.zeros(0, dtype=np.uint64)
    shards = executor.start_shards(objective, paths, none, seed=1, count=2, threads=1)
    chosen = choose(objective, shards, k, seed=1, runners_up=10)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    shards.close()
    over.set()
    watcher.join()
    return {
        "executor": executor.name,
        "round": name,
        "rows": sum(table.num_rows for table in map(read_mapped, paths)),
        "k": len(chosen.keys),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(busy, 1),
        "extra_mb": max(seen) - before,
        "picks": hashlib.blake2b(chosen.keys.tobytes(), digest_size=6).hexdigest(),
    }


def main(arguments: list[str]) -> None:
    on_ray = "--ray" in arguments
    verb, folder, *rest = (a for a in arguments if a != "--ray")
    if verb == "make":
        make(Path(folder), *map(int, rest))
        return
    name, k, rows = rest[0], int(rest[1]), int(rest[2]) if len(rest) > 2 else 1 << 62
    torch.set_num_threads(1)
    if on_ray:
        with connect(RayOptions(cpus=2)) as executor:
            round_of(executor, Path(folder), "top-k", 10, PART_ROWS)  # the workers are there
            sys.stdout.write(json.dumps(round_of(executor, Path(folder), name, k, rows)) + "\n")
        return
    sys.stdout.write(json.dumps(round_of(LOCAL, Path(folder), name, k, rows)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
