"""DFAL: its choice, and the adversarial twins on their way from a round's picks into training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from digit_cases import (
    PLAIN,
    committee_of,
    digit_pool,
    digit_spec,
    items,
    picks,
    rounds_of,
)
from loop_cases import finish

import rayal
from rayal.engine.project import Project
from rayal.engine.remember import attached_columns, attached_rows
from rayal.engine.trainset import Training
from rayal.errors import NeedsError
from rayal.evaluation.oracle import Oracle
from rayal.learners import Stream, Supervised
from rayal.ledger import Ledger
from rayal.pool.files import collect_files
from rayal.registry import strategies
from rayal.signals.adversarial import perturbed_rows
from rayal.strategies.dfal import DFAL


def test_the_smallest_distance_is_first_and_a_flat_row_last() -> None:
    columns = {"adversarial_distance": torch.tensor([0.5, 0.1, torch.inf, 0.3]).numpy()}
    made = rayal.select("dfal", columns, 4)
    assert made.positions.tolist() == [1, 3, 0, 2]
    assert made.scores[:3].tolist() == pytest.approx([-0.1, -0.3, -0.5])


@pytest.fixture(scope="module")
def on(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return rounds_of(tmp_path_factory.mktemp("on"), DFAL(), keep="all")


@pytest.fixture(scope="module")
def off(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return rounds_of(tmp_path_factory.mktemp("off"), DFAL(twins=False), keep="all")


def training(project: Project, round: int) -> Training:
    labels = project.ledger.resolved(project.name, project.ledger.rounds("p")[round].labels_seq)
    return Training.of(project.workspace, labels, round)


def test_a_pick_adds_its_twin_under_its_label_to_the_next_rounds_training(on: Project) -> None:
    assert attached_rows(on.workspace, 0, {}) == (None, None)
    labels = on.ledger.resolved("p")
    assert len(labels) == 60 + 20  # twins cost no label
    before, after = training(on, 0).data, training(on, 1).data
    assert before.attached is None and len(before.labeled) == 60
    assert after.attached is not None and len(after.labeled) == 80 and len(after.attached) == 20
    assert list(after.attached.rows.ids) == sorted(items(on))
    names = on.task.classes
    assert [names[t] for t in after.attached.targets.tolist()] == [
        labels[i] for i in after.attached.rows.ids
    ]


def test_a_twin_is_its_item_across_the_boundary_of_the_model_that_chose(on: Project) -> None:
    found = attached_columns(on.workspace, 0)
    assert found is not None
    made = found[1]
    assert list(made.ids) == items(on)
    raw = on.task.decode(on.pool.take(items(on)))
    moved = (made["x"] - raw).flatten(1).norm(dim=1)
    torch.testing.assert_close(moved, 1.02 * made["distance"], rtol=1e-3, atol=1e-5)
    scores = torch.tensor([-s for _, s in picks(on) if s is not None])
    torch.testing.assert_close(made["distance"], scores, rtol=1e-4, atol=1e-6)
    committee = committee_of(on, 0)
    with torch.inference_mode():
        own, twin = (
            committee.net(0)(committee.task.transform(x, committee.statistics)).argmax(dim=1)
            for x in (raw, made["x"])
        )
    assert (own != twin).all() and made["flipped"].eq(1).all()


def agreement(project: Project, x: torch.Tensor, y: torch.Tensor) -> float:
    """Return how sure a project's last model is of labels: the mean log-probability."""
    committee = committee_of(project, 1)
    with torch.inference_mode():
        logits = committee.net(0)(committee.task.transform(x, committee.statistics))
    chosen = logits.log_softmax(dim=1)[torch.arange(len(y)), y]
    return float(chosen.mean())


def test_without_twins_it_is_supervised_training_on_the_same_picks(
    on: Project, off: Project, tmp_path: Path
) -> None:
    assert picks(on) == picks(off)  # the first choice is the same model's
    first, second = committee_of(on, 1), committee_of(off, 1)
    assert first.hash != second.hash and training(off, 1).data.attached is None
    attached = training(on, 1).data.attached
    assert attached is not None
    x = attached.rows.take(torch.arange(len(attached)))
    assert agreement(on, x, attached.targets) > agreement(off, x, attached.targets)

    # the base: a project that knows no twins, with the same labels
    what = digit_spec(strategies["random"](), learner=PLAIN)
    base = Project.create(Ledger(tmp_path), "p", digit_pool(tmp_path), what)
    base.prepare()
    Oracle(base.pool).work(base)
    base.train()
    base.tell({item: off.ledger.resolved("p")[item] for item in items(off)})
    base.train()
    third = committee_of(base, 1)
    assert third.hash == second.hash
    for ours, theirs in zip(third.net(0).parameters(), second.net(0).parameters(), strict=True):
        assert torch.equal(ours, theirs)


def nearest(project: Project) -> set[str]:
    """Return the 20 unlabeled items that the last model would ask for."""
    committee, labels = committee_of(project, 1), project.ledger.resolved("p")
    ids = sorted(i for i in project.pool.ids("pool") if i not in labels)
    raw = project.task.decode(project.pool.take(ids))
    found = perturbed_rows(committee, raw, 0, classes=10, steps=50, overshoot=0.02)
    return {ids[i] for i in found.distance.argsort(stable=True)[:20].tolist()}


def test_what_twins_taught_changes_the_next_choice(on: Project, off: Project) -> None:
    assert on.ledger.resolved("p") == off.ledger.resolved("p")
    assert len(nearest(on) & nearest(off)) < 20


class Killed(Exception):
    """What ends a run in a test."""


@pytest.mark.parametrize("at", ["commit_columns", "commit_selection"])
def test_killed_around_its_commit_a_round_attaches_once_and_the_same_bits(
    at: str, on: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = digit_pool(tmp_path)
    project = Project.create(Ledger(tmp_path), "p", pool, digit_spec(DFAL(), keep="all"))
    project.prepare()
    oracle = Oracle(pool)
    oracle.work(project)

    def kill(*arguments: Any, **named: Any) -> Any:
        if at == "commit_selection" or arguments[3].part == "attached":
            raise Killed
        return original(*arguments, **named)

    original = getattr(Ledger, at)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Ledger, at, kill)
        project.train(oracle.truth)
    project = finish(Project.open(tmp_path, "p"))
    assert picks(project) == picks(on)
    ours, theirs = attached_columns(project.workspace, 0), attached_columns(on.workspace, 0)
    assert ours is not None and theirs is not None and ours[0] == theirs[0]
    assert all(torch.equal(ours[1][name], theirs[1][name]) for name in ("x", "distance"))
    assert project.rounds()[-1].metrics == on.rounds()[-1].metrics
    files = list((tmp_path / "attached").rglob("*.arrow"))
    assert len(files) == (2 if at == "commit_columns" else 1)  # one that nothing commits may lie
    removed = collect_files(project.ledger, dry_run=False, age=0.0)
    assert sum(name.startswith("attached/") for name in removed) == len(files) - 1
    assert attached_columns(project.workspace, 0) is not None


@dataclasses.dataclass(frozen=True)
class Deaf(Supervised):
    """Trains on labeled rows alone."""

    def streams(self) -> tuple[Stream, ...]:
        return (Stream("labeled", "labeled"),)


def test_a_learner_that_would_leave_the_twins_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match="trains on none of them"):
        rounds_of(tmp_path, DFAL(), learner=Deaf(**dataclasses.asdict(PLAIN)))
