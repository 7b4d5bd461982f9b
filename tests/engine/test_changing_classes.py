"""What earlier rounds computed of other classes is not taken for what it is not."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pool_cases import spec

from rayal.engine.project import Project
from rayal.evaluation.oracle import Oracle
from rayal.learners import Supervised
from rayal.ledger import Ledger, SkipEntry
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.registry import strategies
from rayal.strategies import Ctx, Strategy
from rayal.strategies.base import Joint
from rayal.strategies.multicriteria import CertainPseudoLabels

SMALL = {"adaptive": {"leading": 60, "stride": 6, "hidden": 8}}


def add(root: Path, number: int, count: int, names: list[str]) -> Pool:
    rng = np.random.default_rng(number)
    y = rng.integers(0, len(names), size=count)
    x = rng.normal(size=(count, 5)) + 2 * y[:, None]
    ids = [f"r{number}-{i:04d}" for i in range(count)]
    return Pool.ingest(root, "rows", [array_source(x, np.array(names)[y], ids=ids)])


def grown(root: Path, strategy: Strategy, new: str, learner: Any) -> Project:
    """Run four rounds; before the second one there are items of a class that is new."""
    pool = add(root, 0, 150, ["b", "c", "d"])
    what = spec(strategy, rounds=6, learner=learner)
    project = Project.create(Ledger(root), "p", pool, what)
    project.prepare()
    for round in range(4):
        if round == 1:
            add(root, 1, 60, [new])
        oracle = Oracle(Pool.open(root, "rows"))
        oracle.work(project)
        project.train(oracle.truth)
    return project


@pytest.mark.parametrize("new", ["a", "e"])  # before and after the classes that were there
@pytest.mark.parametrize("name", ["multicriteria", "adaptive"])
def test_the_memory_begins_anew(name: str, new: str, tmp_path: Path) -> None:
    strategy = strategies[name](**SMALL.get(name, {}))
    learner = strategy.trained_by(Supervised(steps=20, batch=16, epoch_steps=10))
    project = grown(tmp_path, strategy, new, learner)
    assert sorted(project.task.classes) == sorted(["b", "c", "d", new])
    recalled = []
    for round in range(4):
        selection = project.ledger.selection("p", round)
        assert selection is not None
        recalled.append(selection.provenance["recalled"] is not None)
    assert recalled == [False, False, True, True]


@pytest.mark.parametrize("new", ["a", "e"])
def test_a_learner_does_not_read_columns_of_other_classes(new: str, tmp_path: Path) -> None:
    learner = CertainPseudoLabels(steps=20, batch=16, epoch_steps=10, threshold=0.5, decline=0.0)
    project = grown(tmp_path, strategies["margin"](), new, learner)
    read = [project.rounds()[round].outputs["prepare"]["reads"] for round in range(4)]
    assert read[:2] == [None, None] and None not in read[2:]


@dataclass(frozen=True)
class Looking(Joint):
    """Chooses as core-set does, and keeps how many rows it was given as centres."""

    taxonomy: ClassVar[str] = "baseline"
    source: ClassVar[str] = "made up for a test"
    context: ClassVar[tuple[str, ...]] = ("embedding",)
    seen: ClassVar[list[int]] = []

    def signals(self) -> Any:
        return strategies["coreset"]().signals()

    def objective(self, ctx: Ctx) -> Any:
        self.seen.append(len(ctx.context["embedding"]))
        return strategies["coreset"]().objective(ctx)


def test_items_without_a_label_to_come_are_no_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labeled, offered and leased items are centres; skipped and forgotten ones are not."""
    assert "coreset" in strategies
    monkeypatch.setitem(strategies._rows, "looking", Looking)
    Looking.seen.clear()
    pool = add(tmp_path, 0, 150, ["b", "c", "d"])
    learner = Supervised(steps=20, batch=16, epoch_steps=10)
    project = Project.create(
        Ledger(tmp_path), "p", pool, spec(Looking(), rounds=3, learner=learner)
    )
    oracle = Oracle(pool)
    project.prepare()
    oracle.work(project)
    project.train(oracle.truth)
    leases = project.lease(6)
    project.tell({leases[0].item: oracle.answer(leases[0].item)})
    for person in ("me", "you", "them"):
        project.ledger.label("p", person, [SkipEntry(leases[1].item)])
    project.ledger.forget_item("p", leases[2].item)
    project.train(oracle.truth)
    states = list(project.ledger.states("p").values())
    held = sum(state in ("labeled", "offered", "leased") for state in states)
    assert states.count("skipped") == states.count("forgotten") == 1
    assert Looking.seen[-1] == held - 10  # the round's own batch was not offered yet
