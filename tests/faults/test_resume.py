"""Killed anywhere, a run goes on by the same command, with the same picks and no label lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from rayal.failpoints import NAMES
from rayal.project import Ledger

SETTINGS: dict[str, Any] = {
    "pool": {"source": "digits"},
    "model": {"network": "mlp", "params": {"widths": [32]}},
    "learner": {"name": "supervised", "steps": 40, "batch": 16, "epoch_steps": 20},
    "strategies": ["badge"],
    "initial": {"count": 30},
    "rounds": 2,
    "batch": 10,
    "seeds": [3],
}
HITS = {"train.epoch": 3, "label.insert": 2, "select": 2, "select.insert": 2, "evaluate": 2}


def command(folder: Path) -> tuple[list[str], dict[str, str]]:
    folder.mkdir(exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({**SETTINGS, "storage": str(folder / "run")}))
    environment = {k: v for k, v in os.environ.items() if k != "RAYAL_FAILPOINT"}
    return [sys.executable, "-m", "rayal", "run", str(config)], environment


def finish(folder: Path) -> None:
    argv, environment = command(folder)
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def picks(folder: Path) -> list[tuple[Any, ...]]:
    table = pq.read_table(folder / "run" / "picks.parquet")
    columns = ("project", "round", "rank", "item", "score")
    return list(zip(*(table[c].to_pylist() for c in columns), strict=True))


def labels(folder: Path) -> dict[str, dict[str, Any]]:
    with Ledger(folder / "run", create=False) as ledger:
        return {p: ledger.resolved(p) for p in ledger.projects()}


def check(folder: Path, unbroken: Path) -> None:
    """Compare a resumed run with the unbroken one, and look for work that was done twice."""
    assert picks(folder) == picks(unbroken)
    assert labels(folder) == labels(unbroken)
    counts: Counter[tuple[Any, ...]] = Counter()
    keys = {
        "stages": ("project", "round", "stage"),
        "checkpoints": ("model", "member", "epoch"),
        "column_parts": ("columns", "part"),
        "labels": ("project", "item", "annotator"),
        "picks": ("project", "round", "item"),
    }
    with Ledger(folder / "run", create=False) as ledger:
        for event in ledger.events():
            for op, table, *rows in event.payload:
                if op == "insert" and table in keys:
                    counts.update((table, *(row[k] for k in keys[table])) for row in rows)
    assert {table for table, *_ in counts} == set(keys)
    assert [key for key, n in counts.items() if n > 1] == []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    finish(folder)
    return folder


def kill_at(folder: Path, point: str) -> None:
    argv, environment = command(folder)
    environment["RAYAL_FAILPOINT"] = f"{point}:{HITS.get(point, 1)}"
    killed = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, f"{point} was not passed: {killed.stderr}"


@pytest.mark.processes
def test_a_run_killed_while_it_writes_a_part_goes_on(unbroken: Path, tmp_path: Path) -> None:
    kill_at(tmp_path, "scan.write")
    finish(tmp_path)
    check(tmp_path, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("point", NAMES)
def test_a_run_killed_at_a_failpoint_goes_on(point: str, unbroken: Path, tmp_path: Path) -> None:
    kill_at(tmp_path, point)
    finish(tmp_path)
    check(tmp_path, unbroken)


def events(folder: Path) -> int:
    """Return how many transactions a run has committed so far."""
    file = folder / "run" / "ledger.sqlite"
    if not file.exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as ledger:
        try:
            return int(ledger.execute("select count(*) from events").fetchone()[0])
        except sqlite3.OperationalError:  # its tables are being made
            return 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_at_a_random_moment_goes_on(seed: int, unbroken: Path, tmp_path: Path) -> None:
    chance = random.Random(seed)
    after = chance.randrange(events(unbroken) - 1)
    argv, environment = command(tmp_path)
    process = subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL)
    while events(tmp_path) < after and process.poll() is None:
        time.sleep(0.002)
    time.sleep(chance.uniform(0.0, 0.03))
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    finish(tmp_path)
    check(tmp_path, unbroken)
