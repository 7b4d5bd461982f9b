"""What a strategy remembers, and what a learner reads of the last round: through real rounds."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pool_cases import finished, spec
from pools import blob_pool
from torch import Tensor

from rayal.engine.executor import LOCAL, Executor
from rayal.engine.project import Project
from rayal.engine.remember import columns_read, hash_read, recall
from rayal.errors import StorageError
from rayal.evaluation.oracle import Oracle
from rayal.learners import Supervised, TrainContext, TrainData, TrainState
from rayal.learners.checkpoint import read_checkpoint
from rayal.ledger import Ledger
from rayal.pool.files import collect_files
from rayal.registry import learners, strategies
from rayal.selection.topk import TopK
from rayal.signals import LogProbs, Signal
from rayal.strategies import Ctx, Strategy
from rayal.strategies.adaptive import MomentPropagation
from rayal.strategies.base import Memory, Outcome
from rayal.strategies.multicriteria import CertainPseudoLabels
from rayal.types import Columns


@dataclass(frozen=True)
class Noting(TopK):
    """The largest scores, times a number that the memory gave."""

    sign: float = 1.0

    def gain(self, tile: Any) -> Any:
        return self.sign * super().gain(tile)

    def notes(self, progress: Any) -> dict[str, Any]:
        return {"keys": np.array(progress.keys, dtype=np.uint64).astype(np.int64)}


@dataclass(frozen=True)
class Tally(Strategy):
    """Alternates between the least and the most certain items, and keeps a diary."""

    taxonomy: ClassVar[str] = "baseline"
    source: ClassVar[str] = "made up for a test"

    def signals(self) -> tuple[Signal, ...]:
        return (LogProbs(),)

    def score(self, s: Columns) -> Tensor:
        return -s["log_probs"].amax(dim=1).double()

    def objective(self, ctx: Ctx) -> Noting:
        return Noting(sign=-1.0 if ctx.memory.get("rounds", 0) % 2 else 1.0)

    def remember(self, memory: Memory, outcome: Outcome) -> Memory:
        assert outcome.notes["keys"].shape == (len(outcome.ids),)
        gain = outcome.after["log_probs"] - outcome.before["log_probs"]
        own = gain[torch.arange(len(outcome.ids)), outcome.targets]
        diary = [*memory.get("diary", []), [outcome.round, list(outcome.ids), outcome.seed]]
        return {"rounds": memory.get("rounds", 0) + 1, "diary": diary, "gain": own}


@dataclass(frozen=True)
class Reader(Supervised):
    """Trains as supervised does, and keeps what it was given to read."""

    taxonomy: ClassVar[str] = "baseline"
    seen: ClassVar[dict[int, Columns | None]] = {}

    def reads(self) -> tuple[Signal, ...]:
        return (LogProbs(),)

    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        self.seen[ctx.round] = ctx.columns
        return super().begin(ctx, data)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assert "entropy" in strategies and "supervised" in learners  # so that both are filled
    monkeypatch.setitem(strategies._rows, "tally", Tally)
    monkeypatch.setitem(learners._rows, "reader", Reader)
    Reader.seen.clear()
    yield


def tally(**changes: Any) -> Any:
    return spec(Tally(), rounds=3, **changes)


def picks(project: Project) -> list[list[tuple[str, float]]]:
    made = [project.ledger.selection("p", r) for r in range(project.spec.rounds or 0)]
    return [[(p.item, p.score or 0.0) for p in s.picks] for s in made if s is not None]


def stored(project: Project, round: int) -> dict[str, Any]:
    selection = project.ledger.selection("p", round)
    assert selection is not None
    part = project.ledger.columns(selection.provenance["memory"])["memory"]
    made = read_checkpoint(project.root / part.file)
    assert made.kind == "memory"
    return made.tree


def test_a_rounds_memory_is_made_of_the_last_one_and_its_outcome(tmp_path: Path) -> None:
    project = finished(tmp_path, tally())
    chosen = picks(project)
    first, second, third = (stored(project, r) for r in range(3))
    assert first["memory"] == {} and first["ids"] == [i for i, _ in chosen[0]]
    assert second["memory"]["rounds"] == 1 and third["memory"]["rounds"] == 2
    assert [row[1] for row in third["memory"]["diary"]] == [first["ids"], second["ids"]]
    assert [row[2] for row in third["memory"]["diary"]] == [
        project.spec.query_seed(r) for r in (0, 1)
    ]
    # before and after: the columns that scans of both committees have of these rows
    labels = project.ledger.resolved("p")
    targets = project.task.targets([labels[i] for i in first["ids"]])
    log_probs = [log_probs_of(project, r, first["ids"]) for r in (0, 1)]
    assert torch.equal(first["before"]["log_probs"], log_probs[0])
    gain = (log_probs[1] - log_probs[0])[torch.arange(10), targets]
    assert torch.equal(second["memory"]["gain"], gain) and gain.abs().max() > 0
    scores = [[score for _, score in of_round] for of_round in chosen]
    assert scores[0] == sorted(scores[0], reverse=True) and min(scores[0]) > 0.0 > max(scores[1])
    provenance = [s.provenance for r in range(3) if (s := project.ledger.selection("p", r))]
    assert provenance[0]["recalled"] is None
    assert provenance[1]["recalled"] == provenance[0]["memory"]
    outputs = project.rounds()[1].outputs["select"]
    assert outputs["memory"] == provenance[1]["memory"]


def log_probs_of(project: Project, round: int, ids: list[str]) -> Tensor:
    committee = project.committee(round)
    raw = project.task.decode(project.pool.take(ids))
    x = committee.task.transform(raw, committee.statistics)
    padded = torch.cat([x, x.new_zeros(64 - len(x), x.shape[1])])
    with torch.inference_mode():
        logits: Tensor = committee.net(0).eval()(padded)[: len(x)]
        return logits.log_softmax(dim=1)


@pytest.mark.parametrize("shards", [2, 7])
def test_memory_and_picks_do_not_depend_on_shards(shards: int, tmp_path: Path) -> None:
    first = finished(tmp_path / "one", tally())
    other = finished(tmp_path / "other", tally(shards=shards))
    assert picks(first) == picks(other)
    assert torch.equal(stored(first, 2)["memory"]["gain"], stored(other, 2)["memory"]["gain"])


def sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def elsewhere(fit: Any, *arguments: Any, **named: Any) -> Any:
    """Train as in another process: of what was sent there."""
    return LOCAL.train_members(sent(fit), *arguments, **named)


def shards_elsewhere(objective: Any, *arguments: Any, **named: Any) -> Any:
    return LOCAL.start_shards(sent(objective), *arguments, **named)


REMOTE = Executor("elsewhere", LOCAL.map_parts, elsewhere, shards_elsewhere)
CASES: dict[str, tuple[str, dict[str, Any], Supervised]] = {
    "multicriteria": ("multicriteria", {}, CertainPseudoLabels(steps=20, batch=16, threshold=2.0)),
    "adaptive": (
        "adaptive", {"leading": 60, "stride": 6, "hidden": 8, "lr": 0.1},
        MomentPropagation(steps=20, batch=16, lr=1e-2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_remembered_and_read_survives_the_way_to_other_processes(
    case: str, tmp_path: Path
) -> None:
    name, params, learner = CASES[case]
    what = spec(strategies[name](**params), learner=learner, rounds=3)
    first = finished(tmp_path / "one", what)
    other = finished(tmp_path / "two", replace(what, shards=7), executor=REMOTE)
    assert picks(first) == picks(other)
    assert [r.metrics for r in first.rounds()] == [r.metrics for r in other.rounds()]
    memories = [stored(p, 2)["memory"] for p in (first, other)]
    key, tensor = ("policy", "layers.0.weight") if case == "adaptive" else ("", "rows")
    pair = [m[key][tensor] if key else m[tensor] for m in memories]
    assert torch.equal(*pair)


def test_other_hyperparameters_begin_with_an_empty_memory(tmp_path: Path) -> None:
    project = finished(tmp_path, tally())
    committee = project.committee(2)
    assert recall(project.workspace, 2, committee).memory["rounds"] == 2
    for other in (Tally(members=2), strategies["entropy"]()):
        workspace = replace(project.workspace, spec=replace(project.spec, strategy=other))
        assert recall(workspace, 2, committee).memory == {}


class Killed(Exception):
    """What ends a run in a test."""


@pytest.mark.parametrize("at", ["written", "committed", "selected"])
def test_killed_around_its_commit_a_round_remembers_the_same(
    at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finished(tmp_path / "whole", tally())
    root = tmp_path / "broken"
    project = Project.create(Ledger(root), "p", blob_pool(root), tally())
    project.prepare()
    oracle = Oracle(project.pool)
    killed = 0

    def commit(self: Ledger, name: str, round: int, part: Any) -> str:
        memory = part.part == "memory" and round == 1
        if memory and at == "written":
            raise Killed
        file = of_ledger(self, name, round, part)
        if memory and at == "committed":
            raise Killed
        return file

    def select(self: Ledger, name: str, round: int, *more: Any, **named: Any) -> None:
        of_selection(self, name, round, *more, **named)
        if round == 1 and at == "selected":
            raise Killed

    of_ledger, of_selection = Ledger.commit_columns, Ledger.commit_selection
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "commit_columns", commit)
        patch.setattr(Ledger, "commit_selection", select)
        while not killed:
            oracle.work(project)
            try:
                project.train(oracle.truth)
            except Killed:
                killed += 1
    project = Project.open(root, "p")
    while not project.finished:
        oracle.work(project)
        project.train(oracle.truth)
    assert picks(project) == picks(whole)
    assert torch.equal(stored(project, 2)["memory"]["gain"], stored(whole, 2)["memory"]["gain"])
    files = list((root / "memory").rglob("*.safetensors"))
    assert len(files) == (4 if at == "written" else 3)
    assert (
        sum(f.startswith("memory/") for f in collect_files(project.ledger, dry_run=False, age=0.0))
        == len(files) - 3
    )


def test_old_memories_go_with_old_columns(tmp_path: Path) -> None:
    project = finished(tmp_path, tally(keep="last"))
    assert len(list((tmp_path / "memory").rglob("*.safetensors"))) == 1
    assert stored(project, 2)["memory"]["rounds"] == 2


@pytest.mark.parametrize("keep", ["all", "last", "picks"])
def test_a_learner_reads_the_last_rounds_columns_of_what_is_unlabeled(
    keep: str, tmp_path: Path
) -> None:
    learner = Reader(steps=20, batch=16, epoch_steps=10)
    project = finished(tmp_path, spec(strategies["random"](), learner=learner, rounds=2, keep=keep))
    assert Reader.seen[0] is None and set(Reader.seen) == {0, 1, 2}
    labels = project.ledger.rounds("p")
    for round in (1, 2):
        read = Reader.seen[round]
        assert read is not None
        known = project.ledger.resolved("p", labels[round].labels_seq)
        assert list(read.ids) == sorted(i for i in project.pool.ids("pool") if i not in known)
        some = list(read.ids[:40])
        expected = log_probs_of(project, round - 1, some) if keep == "all" or round == 1 else None
        if expected is not None:
            assert torch.equal(read["log_probs"][:40], expected)
        prepared = project.rounds()[round].outputs["prepare"]
        scanned = project.rounds()[round - 1].outputs["scan"]
        assert prepared["reads"] == scanned["columns"]
    assert project.rounds()[0].outputs["prepare"]["reads"] is None


def test_columns_for_another_learner_are_not_read(tmp_path: Path) -> None:
    project = finished(tmp_path, spec(strategies["entropy"](), rounds=1))
    learner = Reader(steps=20, batch=16, epoch_steps=10)
    plain = replace(project.workspace, spec=replace(project.spec, learner=learner))
    assert hash_read(plain, 1) is None and columns_read(plain, None, ()) is None
    assert hash_read(plain, 0) is None


@pytest.mark.parametrize("keep", ["last", "all"])
def test_a_committee_is_the_same_when_the_columns_it_read_are_gone(
    keep: str, tmp_path: Path
) -> None:
    learner = Reader(steps=20, batch=16, epoch_steps=10)
    what = spec(strategies["entropy"](), learner=learner, rounds=2, keep=keep)
    project = finished(tmp_path, what)
    trained = [row.outputs["train"]["model"] for row in project.rounds()]
    Reader.seen.clear()
    assert project.committee(2).hash == trained[2] and not Reader.seen
    if keep == "last":
        with pytest.raises(StorageError, match="are gone"):
            columns_read(project.workspace, hash_read(project.workspace, 1), ())


def test_training_that_reads_has_a_hash_of_its_own(tmp_path: Path) -> None:
    learner = Reader(steps=20, batch=16, epoch_steps=10)
    one = finished(tmp_path / "a", spec(strategies["entropy"](), learner=learner, rounds=1))
    two = finished(tmp_path / "b", spec(strategies["random"](), learner=learner, rounds=1))
    models = [[r.outputs["train"]["model"] for r in p.rounds()] for p in (one, two)]
    assert models[0][0] == models[1][0] and models[0][1] != models[1][1]
