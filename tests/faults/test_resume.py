"""Killed anywhere, a run goes on by the same command, with the same picks and no label lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import forked
import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.datasets import load_digits

from rayal.evaluation.protocol import run
from rayal.failpoints import NAMES
from rayal.ledger import Ledger
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.pool.source import Role
from rayal.settings.run import load

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
HITS = {
    "scan.write": 2,
    "scan.commit": 2,
    "train.epoch": 3,
    "label.insert": 2,
    "select": 2,
    "select.insert": 2,
    "evaluate": 2,
}


def command(folder: Path, *, ingested: bool = True) -> tuple[list[str], dict[str, str]]:
    """Return the run's command; its pool has two parts, ingested before unless the run is to."""
    folder.mkdir(exist_ok=True)
    config = folder / "config.yaml"
    settings = {**SETTINGS, "storage": str(folder / "run"), "keep": "all"}
    if ingested:
        settings["pool"] = {"source": "halves"}
        x, y = load_digits(return_X_y=True)
        ids = [f"digit-{i}" for i in range(len(x))]
        halves: list[tuple[Role, slice]] = [("pool", slice(0, 700)), ("pool", slice(700, 1400))]
        for role, at in (*halves, ("test", slice(1400, None))):
            source = array_source(x[at], y[at], ids=ids[at], role=role)
            Pool.ingest(folder / "run", "halves", [source])
    config.write_text(yaml.safe_dump(settings))
    environment = {k: v for k, v in os.environ.items() if k != "RAYAL_FAILPOINT"}
    return ["-m", "rayal", "run", str(config)], environment


def finish(folder: Path, *, ingested: bool = True) -> None:
    argv, environment = command(folder, ingested=ingested)
    forked.run(*argv, env=environment)


def picks(folder: Path) -> list[tuple[Any, ...]]:
    table = pq.read_table(folder / "run" / "picks.parquet")
    columns = ("project", "round", "rank", "item", "score")
    return list(zip(*(table[c].to_pylist() for c in columns), strict=True))


def labels(folder: Path) -> dict[str, dict[str, Any]]:
    with Ledger(folder / "run", create=False) as ledger:
        return {p: ledger.resolved(p) for p in ledger.projects()}


def check(folder: Path, unbroken: Path, *, written: int = 0) -> None:
    """Compare a resumed run with the unbroken one, and look for work that was done twice.

    Args:
        folder: the resumed run.
        unbroken: the other one.
        written: files that the kill may have left complete but not committed.
    """
    assert picks(folder) == picks(unbroken)
    assert labels(folder) == labels(unbroken)
    units = Counter(
        path.stem.rpartition("-" if path.suffix == ".safetensors" else ".")[0]
        for kind in ("columns", "models")
        for path in (folder / "run" / kind).rglob("*.*")
        if not path.name.startswith(".tmp")
    )
    assert sum(n - 1 for n in units.values()) <= written, "a committed part or epoch ran again"
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
    """Run in this process what others kill: its sets have another order than theirs."""
    folder = tmp_path_factory.mktemp("unbroken")
    command(folder)
    run(load(folder / "config.yaml"))
    return folder


def kill_at(folder: Path, point: str) -> None:
    argv, environment = command(folder, ingested=not point.startswith("ingest"))
    environment["RAYAL_FAILPOINT"] = f"{point}:{HITS.get(point, 1)}"
    killed = forked.run(*argv, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL, f"{point} was not passed: {killed.stderr}"


@pytest.mark.processes
def test_a_run_killed_while_it_writes_a_part_goes_on(unbroken: Path, tmp_path: Path) -> None:
    kill_at(tmp_path, "scan.write")
    finish(tmp_path)
    check(tmp_path, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", [name for name in NAMES if not name.startswith(("embed.", "memory", "upgrade."))]
)
def test_a_run_killed_at_a_failpoint_goes_on(point: str, unbroken: Path, tmp_path: Path) -> None:
    kill_at(tmp_path, point)
    if point.startswith("ingest"):
        finish(tmp_path, ingested=False)
        whole = tmp_path / "whole"
        finish(whole, ingested=False)
        check(tmp_path, whole)
    else:
        finish(tmp_path)
        check(tmp_path, unbroken, written=int(point in ("train.epoch", "scan.commit")))


REMEMBERING: list[Any] = [
    "multicriteria",
    {"name": "adaptive", "leading": 60, "stride": 6, "hidden": 16},
]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", REMEMBERING, ids=("multicriteria", "adaptive"))
def test_a_run_killed_while_it_remembers_goes_on(
    strategy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = {name: value for name, value in SETTINGS["learner"].items() if name != "name"}
    monkeypatch.setitem(SETTINGS, "strategies", [strategy])
    monkeypatch.setitem(SETTINGS, "learner", learner)
    monkeypatch.setitem(HITS, "memory", 2)
    finish(tmp_path / "unbroken")
    kill_at(tmp_path / "killed", "memory")
    finish(tmp_path / "killed")
    check(tmp_path / "killed", tmp_path / "unbroken")


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
    process = forked.start(*argv, env=environment)
    while events(tmp_path) < after and process.poll() is None:
        time.sleep(0.002)
    time.sleep(chance.uniform(0.0, 0.03))
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it was killed"
    finish(tmp_path)
    check(tmp_path, unbroken, written=1)
