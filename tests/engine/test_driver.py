"""Projects end to end: same picks for any shards, ingest order, scan batch and second try."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from loop_cases import finish, picks_of
from pools import blob_rows, pool_at_once, split
from torch import Tensor, nn

from rayal.engine.columns import open_tiles
from rayal.engine.project import Project
from rayal.engine.scan import Scan
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec, ScanOptions
from rayal.errors import (
    BudgetError,
    LabelError,
    NeedsError,
    ScoreError,
    StorageError,
    UnknownNameError,
)
from rayal.evaluation.oracle import Oracle
from rayal.learners import Stream, Supervised, TrainContext, TrainState, UnlabeledBatch
from rayal.learners.base import Batches
from rayal.ledger import Ledger
from rayal.models.base import TaskNet
from rayal.models.dropout import dropout_masks
from rayal.pool.reader import Pool
from rayal.registry import Table, learners, strategies
from rayal.selection.kcenter import KCenter
from rayal.signals import Embedding, Extra, LogProbs, Signal
from rayal.strategies import Ctx, Strategy
from rayal.types import Columns

ROWS, TEST = 600, 80
LEARNER = Supervised(steps=20, batch=16, epoch_steps=10)
NETWORK = NetworkSpec("mlp", {"widths": (24, 12), "dropout": 0.3})


def made(root: Path, *, order: int | None = None, test: bool = True) -> Pool:
    """Ingest a small labeled table; ``order`` shuffles the source."""
    sources = split(*blob_rows(0, ROWS + TEST), ROWS, order=order)
    return pool_at_once(root, "rows", *(sources if test else sources[:1]))


def spec(strategy: Strategy, **changes: Any) -> ProjectSpec:
    base = ProjectSpec(
        network=NETWORK,
        learner=strategy.trained_by(LEARNER),
        strategy=strategy,
        initial=Initial(count=20),
        batch=10,
        rounds=2,
        scan=ScanOptions(batch=64),
    )
    return dataclasses.replace(base, **changes)


def simulate(root: Path, pool: Pool, what: ProjectSpec, name: str = "p") -> Project:
    return finish(Project.create(Ledger(root), name, pool, what))


def picks(project: Project) -> list[tuple[str, float | None]]:
    return picks_of(project, -1, 0, 1)


EXACT = ["margin", "coreset", "badge", "bald", "bait", "batchbald", "bait_regression"]
LEARNED = ["deal", "learning_loss", "multiview", "dfal", "multicriteria", "adaptive"]
PARAMS: dict[str, dict[str, Any]] = {
    "bald": {"passes": 4},
    "batchbald": {"passes": 4},
    "adaptive": {"leading": 60, "stride": 6, "hidden": 8},
}


@pytest.mark.parametrize("name", EXACT + LEARNED)
def test_shards_order_of_ingest_scan_batch_and_repetition_do_not_change_a_bit(
    name: str, tmp_path: Path
) -> None:
    strategy = strategies[name](**PARAMS.get(name, {}))
    first = simulate(tmp_path / "a", made(tmp_path / "a"), spec(strategy))
    assert len(picks(first)) == 40 and len({i for i, _ in picks(first)}) == 40
    for folder, order, shards, batch in (("b", 5, 7, 256), ("c", None, 2, 1000)):
        root = tmp_path / folder
        pool = made(root, order=order)
        changed = spec(strategy, shards=shards, scan=ScanOptions(batch=batch))
        assert picks(simulate(root, pool, changed)) == picks(first)


def test_columns_are_the_same_bits_for_scan_batches_of_64_256_and_1000(tmp_path: Path) -> None:
    pool = made(tmp_path)
    project = simulate(tmp_path, pool, spec(strategies["badge"](), rounds=0))
    committee = project.committee(0)
    part = pool.parts_of("pool")[0]
    seen = []
    for batch in (64, 256, 1000):
        for strategy in (strategies["badge"](), strategies["bald"](passes=3)):
            scan = Scan(pool, committee, strategy, LEARNER, ScanOptions(batch=batch))
            columns = scan.columns_of(part)
            seen.append({n: np.asarray(c).tobytes() for n, c in columns.items()})
    assert seen[0] == seen[2] == seen[4]
    assert seen[1] == seen[3] == seen[5]


def in_place(input_shape: tuple[int, ...], n_outputs: int) -> TaskNet:
    """Stages that begin with an operation in place, and an activation that is computed by lanes."""
    first = nn.Linear(input_shape[0], 5)
    second = nn.Sequential(nn.SiLU(inplace=True), nn.Dropout(0.4))
    return TaskNet({"first": first, "second": second, "head": nn.Linear(5, n_outputs)})


def test_operations_in_place_and_lanes_of_activations_do_not_change_columns(
    tmp_path: Path,
) -> None:
    pool = made(tmp_path)
    network = NetworkSpec(f"{__name__}:in_place")
    strategy = strategies["batchbald"](passes=3)
    project = simulate(tmp_path, pool, spec(strategy, network=network, rounds=0))
    committee = project.committee(0)
    part = pool.parts_of("pool")[0]
    seen = []
    for batch in (64, 100, 1000):
        scan = Scan(pool, committee, strategy, LEARNER, ScanOptions(batch=batch))
        seen.append(np.asarray(scan.columns_of(part)["member_log_probs"]))
    assert seen[0].tobytes() == seen[1].tobytes() == seen[2].tobytes()
    net = committee.net(0)
    x = committee.task.transform(committee.task.decode(pool.read(part)), committee.statistics)
    for pass_ in range(3):
        keys = {"seed": committee.seed, "round": committee.round, "member": 0, "pass_": pass_}
        with torch.inference_mode(), dropout_masks(net, **keys):
            whole = net(x.clone()).log_softmax(dim=1)
        assert torch.allclose(torch.from_numpy(seen[0][:, pass_]), whole, atol=1e-6)


def test_training_scanning_and_selecting_never_read_the_hidden_labels(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    expected = picks(simulate(a, made(a), spec(strategies["badge"]())))
    pool = made(b)
    project = Project.create(Ledger(b), "p", pool, spec(strategies["badge"]()))
    oracle = Oracle(pool)
    file = pool.labels_file()
    assert file is not None
    file.unlink()
    project.prepare()
    while not project.finished:
        oracle.work(project)
        project.train(oracle.truth)
    assert picks(project) == expected


def test_an_unlabeled_pool_has_no_oracle(tmp_path: Path) -> None:
    pool = Pool.from_arrays(tmp_path, "plain", np.zeros((5, 2)))
    with pytest.raises(LabelError, match="came without labels"):
        Oracle(pool)


def test_ask_tell_train_by_hand(tmp_path: Path) -> None:
    pool = made(tmp_path, test=False)
    project = Project.create(
        Ledger(tmp_path), "live", pool, spec(strategies["margin"](), rounds=None)
    )
    with pytest.raises(LabelError, match="no labels yet"):
        project.train()
    batch = project.ask(8, annotator="ann")
    assert [lease.rank for lease in batch] == list(range(1, 9))
    assert [lease.item for lease in project.ask(8, annotator="ann")] == [b.item for b in batch]
    with pytest.raises(LabelError, match="not among the 3 classes"):
        project.tell({batch[0].item: "7"})
    with pytest.raises(UnknownNameError, match="1 of 1 items are not in pool"):
        project.tell({"row-9999": "1"})
    assert project.ledger.resolved("live") == {}
    told = project.tell({lease.item: str(n % 3) for n, lease in enumerate(batch)}, annotator="ann")
    assert {r.status for r in told} == {"accepted"}
    summary = project.train()  # eight labels of twenty are enough when asked
    assert summary.labels == 8 and summary.metrics == {}
    with pytest.raises(LabelError, match="no new labels"):
        project.train()
    offered = project.ledger.states("live")
    assert sum(s != "labeled" for s in offered.values()) == 12 + 10
    reopened = Project.open(tmp_path, "live")
    assert reopened.spec == project.spec and reopened.waiting


def test_late_labels_enter_the_next_round(tmp_path: Path) -> None:
    pool = made(tmp_path, test=False)
    project = Project.create(
        Ledger(tmp_path), "live", pool, spec(strategies["entropy"](), rounds=None)
    )
    batch = project.ask(20)
    project.tell({lease.item: "1" for lease in batch[:10]})
    project.train()
    project.tell({lease.item: "2" for lease in batch[10:]})
    assert project.train().labels == 20
    rounds = project.ledger.rounds("live")
    assert rounds[0].labels_seq < rounds[1].labels_seq


def test_budgets_beyond_the_pool_are_refused(tmp_path: Path) -> None:
    pool = made(tmp_path)
    with pytest.raises(BudgetError, match="620 labels are asked for"):
        Project.create(Ledger(tmp_path), "p", pool, spec(strategies["margin"](), rounds=60))
    assert Ledger(tmp_path).projects() == []


@dataclass(frozen=True)
class WithNorm(Supervised):
    """A learner with a column of its own."""

    def extras(self, nets: nn.ModuleDict, x: Tensor) -> Mapping[str, Tensor]:
        return {"input_norm": x.flatten(1).norm(dim=1)}


@dataclass(frozen=True)
class LargestNorm(Strategy):
    """Asks for that column."""

    taxonomy: ClassVar[str] = "learn to score"
    source: ClassVar[str] = "a test"

    def signals(self) -> tuple[Signal, ...]:
        return (Extra("input_norm"),)

    def score(self, s: Columns) -> Tensor:
        return s["input_norm"]


@dataclass(frozen=True)
class NeedsMissing(Strategy):
    """Carries a column that none of its signals gives."""

    carry: ClassVar[tuple[str, ...]] = ("embedding",)
    taxonomy: ClassVar[str] = "baseline"
    source: ClassVar[str] = "a test"

    def signals(self) -> tuple[Signal, ...]:
        return (LogProbs(),)

    def objective(self, ctx: Ctx) -> KCenter:
        return KCenter()


@dataclass(frozen=True)
class NaNScore(LargestNorm):
    """Scores one item NaN."""

    def signals(self) -> tuple[Signal, ...]:
        return (Embedding(),)

    def score(self, s: Columns) -> Tensor:
        score = s["embedding"].sum(dim=1)
        score[3] = torch.nan
        return score


@dataclass(frozen=True)
class Constant(LargestNorm):
    """Scores all items alike."""

    def score(self, s: Columns) -> Tensor:
        return torch.zeros(len(s.ids))


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    entries: list[tuple[Table[Any], str, Any]] = [
        (learners, "with_norm", WithNorm),
        (learners, "averse", Averse),
        (strategies, "largest_norm", LargestNorm),
        (strategies, "needs_missing", NeedsMissing),
        (strategies, "nan_score", NaNScore),
        (strategies, "constant", Constant),
    ]
    for table, name, cls in entries:
        table.add(name, cls)
    yield
    for table, name, _ in entries:
        del table._rows[name]


def test_a_learners_own_column_reaches_a_strategy(tmp_path: Path) -> None:
    pool = made(tmp_path)
    what = spec(LargestNorm(), learner=WithNorm(steps=5, batch=8), rounds=1)
    project = simulate(tmp_path, pool, what)
    chosen = project.ledger.selection("p", 0)
    assert chosen is not None
    scores = [p.score for p in chosen.picks]
    assert scores == sorted(scores, reverse=True) and len(scores) == 10  # type: ignore[type-var]


@dataclass(frozen=True)
class Averse(Supervised):
    """Trains on unlabeled rows too, and looks for a label on them."""

    def streams(self) -> tuple[Stream, ...]:
        return (*super().streams(), Stream("pool", "unlabeled", ratio=2.0))

    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        rows = batches["pool"]
        assert type(rows) is UnlabeledBatch and len(rows.ids) == 2 * self.batch
        assert not any(hasattr(rows, name) for name in ("y", "label", "labels", "target"))
        assert not set(rows.ids) & set(batches["labeled"].ids)
        probs = state.networks["task"](rows.x).softmax(dim=1)
        state.descend("task", 1e-3 * (probs * probs.log()).sum(dim=1).mean())
        return super().step(state, batches, ctx)


def test_a_learner_reads_the_pools_other_rows_without_their_labels(tmp_path: Path) -> None:
    pool = made(tmp_path)
    learner = Averse(steps=8, batch=8, epoch_steps=4)
    project = simulate(tmp_path, pool, spec(strategies["margin"](), learner=learner, rounds=1))
    plain = tmp_path / "plain"
    supervised = Supervised(steps=8, batch=8, epoch_steps=4)
    what = spec(strategies["margin"](), learner=supervised, rounds=1)
    other = simulate(plain, made(plain), what)
    models = [p.rounds()[0].outputs["train"]["model"] for p in (project, other)]
    assert models[0] != models[1]
    assert picks(project) != picks(other)


def test_needs_are_checked_before_anything_starts(tmp_path: Path) -> None:
    pool = made(tmp_path)
    ledger = Ledger(tmp_path)
    with pytest.raises(NeedsError, match="input_norm"):
        Project.create(ledger, "p", pool, spec(LargestNorm()))
    with pytest.raises(NeedsError, match="no signal gives"):
        Project.create(ledger, "p", pool, spec(NeedsMissing()))
    plain = NetworkSpec("mlp", {"widths": (8,)})
    with pytest.raises(NeedsError, match="dropout"):
        Project.create(ledger, "p", pool, spec(strategies["bald"](passes=3), network=plain))
    assert ledger.projects() == []


def test_a_nan_score_names_the_item(tmp_path: Path) -> None:
    pool = made(tmp_path)
    with pytest.raises(ScoreError, match="scored item 'row-"):
        simulate(tmp_path, pool, spec(NaNScore()))


def test_a_lost_column_file_is_an_error_not_a_shorter_pool(tmp_path: Path) -> None:
    pool = made(tmp_path)
    project = Project.create(Ledger(tmp_path), "p", pool, spec(strategies["margin"](), rounds=None))
    oracle = Oracle(pool)
    project.prepare()
    oracle.work(project)
    project.train()
    for file in (tmp_path / "columns").rglob("*.arrow"):
        file.unlink()
    with pytest.raises(StorageError, match="missing"):
        scan = Scan(pool, project.committee(0), project.spec.strategy, LEARNER, ScanOptions())
        for row in project.ledger.columns(scan.columns_hash()).values():
            open_tiles(tmp_path / row.file, ("score",), np.zeros(0, np.uint64))


def test_equal_scores_are_reported(tmp_path: Path) -> None:
    pool = made(tmp_path)
    what = spec(strategies["constant"](), learner=WithNorm(steps=5, batch=8), rounds=1)
    project = simulate(tmp_path, pool, what)
    assert "all scores are equal" in project.rounds()[0].outputs["scan"]["warning"]


def test_equal_scores_are_reported_by_a_run_that_goes_on_after_its_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = made(tmp_path)
    what = spec(strategies["constant"](), learner=WithNorm(steps=5, batch=8), rounds=1)
    project = Project.create(Ledger(tmp_path), "p", pool, what)
    oracle = Oracle(pool)
    project.prepare()
    oracle.work(project)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        original = project.ledger.finish_stage

        def killed(name: str, round: int, stage: str, *rest: Any, **named: Any) -> None:
            if stage == "scan":
                raise KeyboardInterrupt
            original(name, round, stage, *rest, **named)

        patch.setattr(project.ledger, "finish_stage", killed)
        project.train(oracle.truth)
    summary = project.train(oracle.truth)  # nothing is scanned again
    found = summary.outputs["scan"]
    assert found["score_low"] == found["score_high"] and "all scores are equal" in found["warning"]


def test_only_the_last_rounds_files_are_kept(tmp_path: Path) -> None:
    pool = made(tmp_path)
    project = simulate(tmp_path, pool, spec(strategies["badge"](), rounds=3))
    held = project.ledger.files()
    on_disk = {
        p.relative_to(tmp_path).as_posix()
        for folder in ("pools", "columns", "models")
        for p in (tmp_path / folder).rglob("*")
        if p.is_file() and "labels-" not in p.name
    }
    assert on_disk == held
    assert len([f for f in held if f.startswith("models/")]) == 2  # rounds 0 and 3
