"""Pre-training as a stage: once for all rounds and strategies, from checkpoints, without labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_cases import finish, picks_of
from pools import TEST_ROWS, blobs, pool_at_once, pool_of

from rayal.engine.pool_rows import EveryRow
from rayal.engine.pretrain import Pretraining
from rayal.engine.project import Project
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec, ScanOptions
from rayal.engine.tasks import task_of
from rayal.engine.workspace import Inputs
from rayal.errors import NeedsError
from rayal.evaluation.oracle import Oracle
from rayal.learners import LayerwisePretrained, Supervised
from rayal.learners.layerwise import LayerTraining
from rayal.ledger import Ledger
from rayal.pool.files import collect_files, drop_files
from rayal.pool.reader import Pool
from rayal.registry import strategies
from rayal.types import id_keys

LEARNER = LayerwisePretrained(
    steps=20, batch=16, epoch_steps=10, pretrain_steps=15, pretrain_batch=32
)
NETWORK = NetworkSpec("mlp", {"widths": (12, 6), "dropout": 0.2})
ROWS = 240


def ingested(root: Path, *, turn: int = 0) -> Pool:
    sources = [blobs(0, ROWS, turn=turn), blobs(TEST_ROWS, 60, "test", turn=turn)]
    return pool_at_once(root, "rows", *(sources if turn == 0 else sources[::-1]))


def spec(**changes: Any) -> ProjectSpec:
    base = ProjectSpec(
        network=NETWORK,
        learner=LEARNER,
        strategy=strategies["margin"](),
        initial=Initial(count=20),
        batch=10,
        rounds=2,
        scan=ScanOptions(batch=64),
    )
    return dataclasses.replace(base, **changes)


def simulate(root: Path, pool: Pool, what: ProjectSpec, name: str = "p", **more: Any) -> Project:
    return finish(Project.create(Ledger(root), name, pool, what, **more))


def picks(project: Project) -> list[tuple[str, float | None]]:
    return picks_of(project, -1, 0, 1)


def outputs(project: Project) -> list[dict[str, Any]]:
    return [dict(r.outputs["pretrain"]) for r in project.rounds() if "pretrain" in r.outputs]


def pretraining(project: Project) -> Pretraining:
    found = Pretraining.of(project.workspace)
    assert found is not None
    return found


def test_it_runs_once_for_all_rounds_strategies_and_sizes_of_committees(tmp_path: Path) -> None:
    pool, calls = ingested(tmp_path), []
    first = simulate(tmp_path, pool, spec(), report=lambda *call: calls.append(call))
    hash = outputs(first)[0]["model"]
    assert outputs(first) == [{"model": hash, "rows": ROWS, "steps": s} for s in (30, 0, 0)]
    assert [c for c in calls if c[0] == "pretrain"] == [("pretrain", i, 30) for i in range(1, 31)]
    assert [c for c in calls if c[0] == "train"] == [("train", i, 20) for i in range(1, 21)] * 3
    other = strategies["ensemble_bald"](members=2)
    second = simulate(tmp_path, pool, spec(strategy=other), name="q")
    assert [o["steps"] for o in outputs(second)] == [0, 0, 0]
    assert {o["model"] for o in outputs(second)} == {hash}
    assert len(list((tmp_path / "models").glob(f"{hash}-0-*"))) == 1


def test_what_it_depends_on_has_another_hash_and_what_it_does_not_has_the_same(
    tmp_path: Path,
) -> None:
    pool = ingested(tmp_path)
    ledger = Ledger(tmp_path)
    hashes = []
    other: list[dict[str, Any]] = [
        {"pretrain_steps": 16}, {"pretrain_batch": 33}, {"pretrain_lr": 1e-4}, {"corruption": 0.0},
        {"inputs": "standard"}, {"pretrain_decay": 0.0}, {"pretrain_momentum": 0.5}, {"gibbs": 2},
    ]  # fmt: skip
    equal: list[dict[str, Any]] = [{}, {"lr": 0.1}, {"steps": 5}, {"augment": True}, {"swa": 0.5}]
    specs = [spec(learner=dataclasses.replace(LEARNER, **c)) for c in other + equal]
    specs += [spec(network=NetworkSpec("mlp", {"widths": (12, 7)}))]
    specs += [spec(seeds=dataclasses.replace(spec().seeds, model=1)), spec(threads_per_model=2)]
    sigmoid = NetworkSpec("mlp", {"widths": (12, 6), "activation": "sigmoid"})
    specs += [spec(learner=dataclasses.replace(LEARNER, kind="rbm"), network=sigmoid)]
    for number, what in enumerate(specs):
        project = Project.create(ledger, f"p{number}", pool, what)
        hashes.append(pretraining(project).hash)
    same = set(hashes[len(other) : len(other) + len(equal)])
    assert len(same) == 1 and len(set(hashes)) == len(hashes) - len(equal) + 1


def test_the_weights_know_no_label_and_no_order_of_ingest(tmp_path: Path) -> None:
    found, hashes = [], []
    for turn in (0, 1):
        root = tmp_path / str(turn)
        project = simulate(root, ingested(root, turn=turn), spec(rounds=0))
        found.append(pretraining(project).weights(0))
        hashes.append(outputs(project)[0]["model"])
    assert hashes[0] == hashes[1]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


class Killed(Exception):
    """What ends a training in a test."""


@pytest.mark.parametrize("kill", [1, 2, 3, 4])
def test_a_killed_pretraining_goes_on_from_its_last_checkpoint(
    kill: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayal.learners.layerwise.CHECKPOINT", 8)  # epochs of 8, 8, 8 and 6 steps
    whole = simulate(tmp_path / "a", ingested(tmp_path / "a"), spec())
    root, passed = tmp_path / "b", 0

    def point(name: str) -> None:
        nonlocal passed
        passed += name == "train.epoch"
        if passed == kill:
            passed = 1000
            raise Killed

    monkeypatch.setattr("rayal.engine.train.failpoint", point)
    project = Project.create(Ledger(root), "p", ingested(root), spec())
    with pytest.raises(Killed):
        finish(project)
    calls: list[tuple[str, int, int]] = []
    again = finish(Project.open(root, "p", report=lambda *call: calls.append(call)))
    steps = [done for stage, done, _ in calls if stage == "pretrain"]
    assert steps == list(range(8 * (kill - 1) + 1, 31))
    assert picks(again) == picks(whole)
    assert outputs(again)[0]["model"] == outputs(whole)[0]["model"]


def test_a_committee_is_loaded_without_reading_the_pretraining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = simulate(tmp_path, ingested(tmp_path), spec(rounds=0))
    monkeypatch.setattr(Pretraining, "weights", lambda self, round: 1 / 0)
    assert project.committee(0).size == 1
    for path in (tmp_path / "models").glob("*"):
        path.unlink()
    project.ledger.forget_files([f for f in project.ledger.files() if f.startswith("models/")])
    with pytest.raises(ZeroDivisionError):
        project.committee(0)


def test_a_pool_that_has_grown_is_pretrained_on_anew_and_the_old_weights_go(
    tmp_path: Path,
) -> None:
    project = Project.create(Ledger(tmp_path), "p", ingested(tmp_path), spec(rounds=None))
    project.prepare()
    for _ in range(2):
        Oracle(project.pool).work(project)
        project.train()
    pool_of(tmp_path, "rows", blobs(5000, 100))
    Oracle(Pool.open(tmp_path, "rows")).work(project)
    project.train()
    made = outputs(project)
    assert [o["steps"] for o in made] == [30, 0, 30]
    assert [o["rows"] for o in made] == [ROWS, ROWS, ROWS + 100]
    old, new = made[0]["model"], made[2]["model"]
    assert old != new and project.ledger.checkpoint(old, 0) is None
    assert project.ledger.checkpoint(new, 0) is not None
    assert not list((tmp_path / "models").glob(f"{old}-*"))
    assert drop_files(project.ledger, "p", keep="last") == {}
    collect_files(project.ledger, dry_run=False, age=0.0)
    assert len(list((tmp_path / "models").glob(f"{new}-*"))) == 1


def test_every_row_is_each_item_of_the_pool_once_and_no_test_item(tmp_path: Path) -> None:
    ingested(tmp_path)
    pool_of(tmp_path, "rows", blobs(5000, 100))
    pool = Pool.open(tmp_path, "rows")
    rows = EveryRow(Inputs(pool, task_of(pool, {})))
    assert len(rows) == ROWS + 100 and sorted(rows.ids) == sorted(pool.ids("pool"))
    at = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert rows.names(at) == tuple(rows.ids[i] for i in at.tolist())
    wanted = rows.inputs.task.decode(pool.take(list(rows.names(at))))
    assert torch.equal(rows.take(at), wanted)
    assert rows.take(at[:0]).shape == (0, 5)
    assert not set(rows.ids) & set(pool.ids("test"))
    keys = id_keys(rows.ids[:ROWS])
    assert (np.diff(keys.astype(object)) > 0).all()  # a part is in key order


def test_without_steps_projects_are_those_of_supervised_and_with_steps_they_are_not(
    tmp_path: Path,
) -> None:
    shared = {f.name: getattr(LEARNER, f.name) for f in dataclasses.fields(Supervised)}
    made = []
    none = dataclasses.replace(LEARNER, pretrain_steps=0)
    for number, learner in enumerate((Supervised(**shared), none, LEARNER)):
        root = tmp_path / str(number)
        made.append(simulate(root, ingested(root), spec(learner=learner)))
    plain, ablated, whole = (picks(project) for project in made)
    assert plain == ablated and plain != whole
    assert outputs(made[1]) == []


def test_unfit_networks_are_refused_before_anything_starts(tmp_path: Path) -> None:
    pool = ingested(tmp_path)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"network": NetworkSpec("mlp", {"widths": ()})}, "no hidden layer.*network mlp"),
        ({"network": NetworkSpec(f"{__name__}:normed")}, "BatchNorm1d|Sequential.*network mlp"),
        ({"learner": dataclasses.replace(LEARNER, kind="rbm")}, "activation: sigmoid"),
    ]
    for changes, text in cases:
        with pytest.raises(NeedsError, match=text):
            Project.create(Ledger(tmp_path), "p", pool, spec(**changes))


def normed(input_shape: tuple[int, ...], n_outputs: int) -> Any:
    from rayal.models import TaskNet

    first = torch.nn.Sequential(
        torch.nn.Linear(input_shape[0], 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU()
    )
    return TaskNet({"first": first, "head": torch.nn.Linear(4, n_outputs)})


def test_the_stage_stands_before_training(tmp_path: Path) -> None:
    project = simulate(tmp_path, ingested(tmp_path), spec(rounds=0))
    stages = [s.stage for s in project.ledger.stages("p") if s.round == 0]
    assert stages[:3] == ["prepare", "pretrain", "train"]
    assert isinstance(pretraining(project).learner, LayerTraining)
