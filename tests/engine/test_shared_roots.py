"""One storage root, many projects, growing pools, several processes: nothing goes missing."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loop_cases import finish, picks_of
from pools import pool_at_once, split

from rayal.engine.project import Project
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec
from rayal.engine.trainset import Training
from rayal.errors import LabelError, NeedsError
from rayal.evaluation.oracle import Oracle
from rayal.learners import Supervised
from rayal.ledger import Ledger
from rayal.pool.files import collect_files, drop_files
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.registry import strategies
from rayal.types import Seeds


def made(root: Path, name: str = "rows", rows: int = 80, shift: float = 0.0) -> Pool:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, size=rows + 20)
    x = rng.normal(size=(rows + 20, 3)) + y[:, None] + shift
    ids = [f"r{i:03d}" for i in range(rows + 20)]
    return pool_at_once(root, name, *split(x, y, ids, rows))


def spec(strategy: str = "margin", **changes: Any) -> ProjectSpec:
    values: dict[str, Any] = {
        "network": NetworkSpec("mlp", {"widths": (8,)}),
        "learner": Supervised(steps=6, batch=8, epoch_steps=3),
        "strategy": strategies[strategy](),
        "initial": Initial(count=10),
        "batch": 5,
        "rounds": 2,
    }
    return ProjectSpec(**{**values, **changes})


def finished(project: Project) -> list[str]:
    return [item for item, _ in picks_of(finish(project), -1, 0, 1)]


def test_weights_that_another_project_dropped_are_trained_again(tmp_path: Path) -> None:
    pool = made(tmp_path)
    ledger = Ledger(tmp_path)
    first = Project.create(ledger, "a", pool, spec(seeds=Seeds(query=0)))
    expected = finished(first)
    second = Project.create(ledger, "b", pool, spec(seeds=Seeds(query=1)))
    oracle = Oracle(pool)
    second.prepare()
    oracle.work(second)
    second.train(oracle.truth)
    oracle.work(second)
    round = second.begin()
    second.committee(round)  # and then it was killed
    drop_files(ledger, "a", keep="last")
    model = second.rounds()[round].outputs["train"]["model"]
    row = ledger.checkpoint(model, 0)
    if row is not None:
        ledger.forget_files([row.file])
        (tmp_path / row.file).unlink()
    assert finished(Project(ledger, "b")) == expected


def write(path: Path) -> None:
    path.write_bytes(b"weights")


def test_a_second_process_that_trains_the_same_member_loses_nothing(tmp_path: Path) -> None:
    pool = made(tmp_path)
    project = Project.create(Ledger(tmp_path), "a", pool, spec())
    project.prepare()
    Oracle(pool).work(project)
    project.begin()
    training = Training.of(project.workspace, project.ledger.resolved("a"), 0)
    one, other = training.store(0), training.store(0)
    for epoch in (1, 2):
        for store in (one, other):
            store.save(epoch, write, epoch == 3)
    one.save(3, write, True)
    other.save(3, write, True)
    other.save(2, write, False)  # it was far behind
    latest = one.latest()
    assert latest is not None and latest[0] == 3 and latest[1].read_bytes() == b"weights"
    assert list((tmp_path / "models").iterdir()) == [latest[1]]


def test_columns_that_another_project_is_about_to_read_stay(tmp_path: Path) -> None:
    pool = made(tmp_path)
    ledger, oracle = Ledger(tmp_path), Oracle(pool)
    late = Project.create(ledger, "late", pool, spec(seeds=Seeds(query=1)))
    late.prepare()
    oracle.work(late)
    late.committee(late.begin())  # and there it waits: its columns are not scanned yet
    finish(Project.create(ledger, "early", pool, spec(seeds=Seeds(query=0))))
    scanned = ledger.stage("early", 0, "scan")
    assert scanned is not None
    shared = list(ledger.columns(scanned.output["columns"]).values())
    assert shared and all((tmp_path / part.file).exists() for part in shared)
    finish(late)
    kept = ledger.stage("late", 0, "scan")
    assert kept is not None and kept.output["columns"] == scanned.output["columns"]
    drop_files(ledger, "early", keep="last")
    assert not ledger.columns(scanned.output["columns"])
    assert not any((tmp_path / part.file).exists() for part in shared)


def test_equal_ids_of_other_content_are_other_models(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    hashes = []
    for name, shift in (("one", 0.0), ("two", 5.0)):
        project = Project.create(ledger, name, made(tmp_path, name, shift=shift), spec())
        finish(project)
        hashes.append(project.rounds()[0].outputs["train"]["model"])
    assert hashes[0] != hashes[1]


def test_labels_of_test_items_are_no_candidates_no_context_and_no_training_rows(
    tmp_path: Path,
) -> None:
    pool = made(tmp_path)
    project = Project.create(Ledger(tmp_path), "live", pool, spec("coreset", rounds=None))
    oracle = Oracle(pool)
    test = list(pool.ids("test"))
    project.tell(dict(zip(test, oracle.truth(test), strict=True)))
    with pytest.raises(LabelError, match="no labels yet"):
        project.train()
    batch = project.ask(10)
    project.tell({lease.item: oracle.answer(lease.item) for lease in batch})
    summary = project.train()
    assert summary.labels == 10 and summary.metrics["accuracy"] > 0
    chosen = project.ledger.selection("live", 0)
    assert chosen is not None and chosen.provenance["candidates"] == 70
    assert chosen.provenance["scan"]["tolerance"] == 0.0


def test_a_pool_that_grows_enters_with_the_next_round_and_a_killed_round_keeps_its_own(
    tmp_path: Path,
) -> None:
    pool = made(tmp_path)
    project = Project.create(Ledger(tmp_path), "live", pool, spec(rounds=None))
    oracle = Oracle(pool)
    project.prepare()
    oracle.work(project)
    round = project.begin()
    hash = project.committee(round).hash  # and then it was killed
    more = array_source(np.full((4, 3), 2.0), ["new"] * 4, ids=list("wxyz"))
    grown = Pool.ingest(tmp_path, "rows", [more])
    resumed = Project.open(tmp_path, "live")
    assert resumed.train().outputs["train"]["model"] == hash
    Oracle(grown).work(resumed)
    resumed.tell({"w": "new"})
    assert resumed.train().labels == 16
    assert resumed.task.n_outputs == 3 and resumed.pool.snapshot == grown.snapshot


def test_a_pool_that_is_used_up_ends_the_project(tmp_path: Path) -> None:
    pool = made(tmp_path, rows=12)
    project = Project.create(Ledger(tmp_path), "live", pool, spec(rounds=None))
    assert len(finished(project)) == 12
    assert project.finished


def test_the_initial_strategy_may_not_ask_a_model(tmp_path: Path) -> None:
    pool = made(tmp_path)
    ledger = Ledger(tmp_path)
    with pytest.raises(NeedsError, match="not trained yet"):
        Project.create(ledger, "a", pool, spec(initial=Initial(10, "margin")))
    assert ledger.projects() == []


def test_gc_leaves_a_pool_that_is_being_ingested_and_tells_what_it_removes(tmp_path: Path) -> None:
    pool = made(tmp_path)
    ledger = Ledger(tmp_path)
    finish(Project.create(ledger, "a", pool, spec(keep="all")))
    stray = tmp_path / "pools" / "rows" / "stray.arrow"
    stray.write_bytes(b"a killed ingest")
    lost = tmp_path / "models" / "lost.safetensors"
    lost.write_bytes(b"a killed training")
    handle = os.open(stray.parent, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert collect_files(ledger, dry_run=False, age=-1) == {"models/lost.safetensors": 17}
        assert stray.exists()
    finally:
        os.close(handle)
    told = collect_files(ledger, dry_run=True, age=-1)
    assert told == {"pools/rows/stray.arrow": 15} and stray.exists()
    assert collect_files(ledger, dry_run=False, age=-1) == told and not stray.exists()
    dropped = drop_files(ledger, "a", keep="last", dry_run=True)
    assert dropped and all((tmp_path / f).exists() for f in dropped)
    assert drop_files(ledger, "a", keep="last") == dropped
    assert not any((tmp_path / f).exists() for f in dropped)
