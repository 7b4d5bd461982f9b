"""Make the storage roots that later versions must go on with: runs killed in one stage each.

    PYTHON tests/roots/make_roots.py FOLDER [NAME …]

PYTHON is the interpreter of the checkout whose roots they are.
They were made at commit 93ff6e4, and are not made again: that a root of that day opens, resumes and
runs again by the same command is what they are kept for. A root of a later format stands beside
them, under a name of its own. Of each root the folder gets ``NAME.tar.xz``, the root as the kill
left it with the settings of its run, and ``roots.json`` its literals: what the ledger held then,
and what it held when the same command had ended. Nothing but the command line and the ledger's
tables is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

CLASSES = ("low", "middle", "high")
SETTINGS: dict[str, Any] = {
    "pool": {"source": "rows"},
    "task": {"kind": "table"},
    "model": {"network": "mlp", "params": {"widths": [12], "dropout": 0.2}},
    "learner": {"name": "supervised", "steps": 20, "batch": 8, "epoch_steps": 10},
    "strategies": ["badge"],
    "initial": {"count": 12},
    "rounds": 2,
    "batch": 6,
    "seeds": [3],
    "keep": "all",
    "storage": "root",
}
PRETRAINED = {
    "model": {"network": "mlp", "params": {"widths": [12, 8]}},
    "learner": {
        "name": "layerwise_pretrained", "pretrain_steps": 20, "steps": 20, "batch": 8,
        "epoch_steps": 10,
    },
}  # fmt: skip
#: name: settings beside the others, and where the run is killed. random-s3 comes first and trains
#: round 0 for both, so that the eighth epoch is the second one of badge's round 1
ROOTS: dict[str, tuple[dict[str, Any], str | None]] = {
    "train": ({}, "train.epoch:8"),
    "pretrain": (PRETRAINED, "train.epoch:2"),
    "scan": ({}, "scan.commit:2"),
    "select": ({}, "select:4"),
    "finished": ({}, None),
}
SQL = {
    "settings": "select project, settings from projects order by 1",
    "stages": "select project, round, stage, output from stages order by 1, 2, 3",
    "provenance": "select project, round, provenance from selections order by 1, 2",
    "picks": "select project, round, rank, item, score from picks where picked order by 1, 2, 3",
    "checkpoints": "select model, member, epoch, final from checkpoints order by 1, 2, 3",
    "columns": "select columns, part, rows from column_parts order by 1, 2",
}


def machine() -> dict[str, str]:
    """Return what the bits of a round depend on besides the code: the CPU, and torch's version."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = f"{(names or [platform.processor()])[0]}, {torch.backends.cpu.get_cpu_capability()}"
    return {"cpu": cpu, "torch": torch.__version__}


def ledger_of(root: Path) -> dict[str, list[list[Any]]]:
    """Return what a root's ledger holds, JSON read, without seconds and moments."""
    with contextlib.closing(sqlite3.connect(root / "ledger.sqlite")) as at:
        found = {name: [list(row) for row in at.execute(sql)] for name, sql in SQL.items()}
    for name in ("settings", "stages", "provenance"):
        for row in found[name]:
            row[-1] = json.loads(row[-1])
    return found


def write_rows(file: Path, first: int, count: int) -> None:
    chance, lines = random.Random(first), ["id,a,b,c,label"]
    for at in range(first, first + count):
        a, b, c = (chance.gauss(0, scale) for scale in (1.0, 20.0, 0.1))
        total = a + b / 20 + c * 10 + chance.gauss(0, 0.3)
        lines.append(f"row-{at:03d},{a:.4f},{b:.4f},{c:.4f},{CLASSES[(total > -1) + (total > 1)]}")
    file.write_text("\n".join(lines) + "\n")


def rayal(folder: Path, *argv: str, failpoint: str | None = None) -> int:
    environment = {k: v for k, v in os.environ.items() if k != "RAYAL_FAILPOINT"}
    environment |= {"OMP_NUM_THREADS": "1"}
    environment |= {"RAYAL_FAILPOINT": failpoint} if failpoint else {}
    command = [sys.executable, "-m", "rayal", *argv]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def check(done: bool, name: str, what: str) -> None:
    if not done:
        sys.exit(f"root {name}: {what}")


def make(name: str, folder: Path, out: Path) -> dict[str, Any]:
    """Make a root of two pool parts, kill its run, pack it, and return its literals."""
    changes, point = ROOTS[name]
    (folder / "run.yaml").write_text(yaml.safe_dump({**SETTINGS, **changes}, sort_keys=False))
    for at, first in enumerate((0, 200)):
        write_rows(folder / f"rows-{at}.csv", first, 100)
        argv = ["--storage", "root", "--name", "rows", "--set", "id=id", "--set", "label=label"]
        code = rayal(folder, "ingest", f"rows-{at}.csv", *argv, "--set", "test_share=0.3")
        check(code == 0, name, f"ingest ended with {code}")
    code = rayal(folder, "run", "run.yaml", failpoint=point)
    check(code == (-signal.SIGKILL if point else 0), name, f"the run ended with {code}")
    shutil.copytree(folder / "root", folder / "resumed" / "root")  # the kill's own ledger stays
    shutil.copy(folder / "run.yaml", folder / "resumed")
    with tarfile.open(out / f"{name}.tar.xz", "w:xz", preset=9) as tar:
        for file in ("run.yaml", *sorted(str(p.relative_to(folder)) for p in packed(folder))):
            tar.add(folder / file, file, filter=_anonymous)
    literals = {"killed": ledger_of(folder / "root"), "point": point}
    code = rayal(folder / "resumed", "run", "run.yaml")
    check(code == 0, name, f"the resumed run ended with {code}")
    return {**literals, "ended": ledger_of(folder / "resumed" / "root")}


def packed(folder: Path) -> list[Path]:
    """Return the root's files; pictures and SQLite's shared memory are made again."""
    files = [path for path in (folder / "root").rglob("*") if path.is_file()]
    return [path for path in files if not path.name.endswith((".png", "-shm"))]


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def main() -> None:
    out, names = Path(sys.argv[1]), sys.argv[2:] or list(ROOTS)
    file = out / "roots.json"
    made: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    made["machine"] = machine()
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            made[name] = make(name, Path(folder), out)
    lines = [f"{json.dumps(name)}: {dump(root)}" for name, root in made.items()]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def dump(root: dict[str, Any]) -> str:
    """Return a root's literals as JSON, a row of the ledger a line."""
    if "point" not in root:  # it is the machine
        return json.dumps(root)
    parts = [f' "point": {json.dumps(root["point"])}']
    for moment in ("killed", "ended"):
        tables = []
        for table, rows in root[moment].items():
            told = ",\n".join(f"   {json.dumps(row)}" for row in rows)
            tables.append(f'  "{table}": [\n{told}\n  ]' if rows else f'  "{table}": []')
        parts.append(f' "{moment}": {{\n' + ",\n".join(tables) + "\n }")
    return "{\n" + ",\n".join(parts) + "\n}"


if __name__ == "__main__":
    main()
