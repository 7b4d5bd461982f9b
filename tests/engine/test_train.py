from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from rayal.engine.spec import NetworkSpec
from rayal.engine.train import FolderStore, TrainRequest, load_committee, train_committee
from rayal.errors import StorageError
from rayal.labels import ClassLabel
from rayal.learners import (
    LabeledRows,
    Learner,
    Supervised,
    TensorRows,
    TrainContext,
    TrainData,
    TrainState,
)
from rayal.learners.base import CPU, Batches, Weights
from rayal.models import Committee
from rayal.selection.threads import torch_threads
from rayal.tasks import TableTask

TASK = TableTask(ClassLabel(("a", "b", "c")), ("w", "x", "y", "z"))
SHORT = Supervised(steps=9, epoch_steps=3, batch=8, augment=True, lr=0.05)
MLP = NetworkSpec("mlp", {"widths": [8], "dropout": 0.2})


class Killed(Exception):
    """What ends a training in a test."""


@dataclass
class Records:
    """What a driver keeps of checkpoints; can be made to fail at one."""

    root: Path
    rows: dict[int, tuple[int, str, bool]] = field(default_factory=dict)
    commits: list[tuple[int, int, bool]] = field(default_factory=list)
    kill: tuple[int, int] | None = None

    def store(self, member: int) -> FolderStore:
        return FolderStore(
            self.root,
            "projects/p/models",
            "cafe",
            member,
            committed=lambda: self.rows[member][:2] if member in self.rows else None,
            commit=partial(self.commit, member),
        )

    def commit(self, member: int, epoch: int, file: str, final: bool) -> None:
        if self.kill == (member, epoch):
            self.kill = None
            raise Killed
        assert (self.root / file).is_file()
        self.rows[member] = (epoch, file, final)
        self.commits.append((member, epoch, final))


def rows(n: int = 20) -> TrainData:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0)).double()
    y = torch.arange(n) % 3
    x[:, :3] += 2.0 * nn.functional.one_hot(y, 3)
    return TrainData(LabeledRows(TensorRows([f"item:{i:04d}" for i in range(n)], x.float()), y))


def weights(committee: Committee) -> list[dict[str, Tensor]]:
    return [nets.state_dict() for nets in committee.nets]


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def request(**changes: Any) -> TrainRequest:
    values: dict[str, Any] = {
        "learner": SHORT,
        "network": MLP,
        "task": TASK,
        "labels": {"x": "a", "y": "b"},
        "members": 2,
        "seed": 3,
        "round": 2,
    }
    return TrainRequest(**values | changes)


def trained(records: Records, progress: Any = None, **changes: Any) -> Committee:
    return train_committee(request(**changes), rows(), records.store, progress=progress)


def loaded(records: Records, **changes: Any) -> Committee:
    """Load the committee that ``trained`` trains."""
    wanted = request(**changes)
    stores = {member: records.store(member) for member in range(wanted.members)}
    return load_committee(wanted.learner, wanted.context(20), stores, "cafe")


def test_a_committee_trains_saves_and_loads(tmp_path: Path) -> None:
    records = Records(tmp_path)
    threads, calls = torch.get_num_threads(), []
    committee = trained(records, progress=lambda *call: calls.append(call))
    assert (committee.size, committee.n_outputs, committee.hash) == (2, 3, request().hash)
    assert (committee.seed, committee.round, committee.task) == (3, 2, TASK)
    assert torch.get_num_threads() == threads
    assert calls == [("train", i, 18) for i in range(1, 19)]
    assert records.commits == [(m, e, e == 3) for m in (0, 1) for e in (1, 2, 3)]
    assert not any(nets.training for nets in committee.nets)
    first, second = weights(committee)
    assert not equal(first, second)
    data = rows()
    statistics = TASK.fit(data.labeled.rows.take(torch.arange(20)))
    assert equal(committee.statistics, statistics)
    again = loaded(records)
    assert all(map(equal, weights(again), weights(committee)))
    assert equal(again.statistics, statistics)
    x = TASK.transform(data.labeled.rows.take(torch.arange(20)), statistics)
    right = again.net(0)(x).argmax(dim=1) == data.labeled.targets
    assert right.double().mean() > 0.5


def test_files_lie_where_they_are_recorded(tmp_path: Path) -> None:
    records = Records(tmp_path)
    trained(records, members=1)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 3 and {f.parent for f in files} == {tmp_path / "projects/p/models"}
    assert [f.name.split("-")[:3] for f in files] == [["cafe", "0", str(e)] for e in (1, 2, 3)]
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("kill", [(0, 1), (0, 3), (1, 1), (1, 2), (1, 3)])
def test_goes_on_after_a_kill_and_repeats_nothing_committed(
    kill: tuple[int, int], tmp_path: Path
) -> None:
    whole = trained(Records(tmp_path / "whole"))
    records = Records(tmp_path / "killed", kill=kill)
    with pytest.raises(Killed):
        trained(records)
    with pytest.raises(StorageError, match=f"member {kill[0]} of model cafe is not trained"):
        loaded(records)
    resumed = trained(records)
    assert all(map(equal, weights(resumed), weights(whole)))
    assert sorted(records.commits) == sorted(set(records.commits))
    done = len(records.commits)
    assert all(map(equal, weights(trained(records)), weights(whole)))
    assert len(records.commits) == done


def test_the_failpoint_lies_between_file_and_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[tuple[str, int, int]] = []
    records = Records(tmp_path)

    def point(name: str) -> None:
        files = len(list(tmp_path.rglob("[!.]*.safetensors")))
        passed.append((name, files, len(records.commits)))

    monkeypatch.setattr("rayal.engine.train.failpoint", point)
    trained(records, members=1)
    epochs = [("train.epoch", 1, 0), ("train.epoch", 2, 1), ("train.epoch", 3, 2)]
    assert passed == [("train.begin", 0, 0), *epochs]


def test_threads_are_set_and_restored(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with pytest.raises(Killed), torch_threads(before + 2):
        assert torch.get_num_threads() == before + 2
        raise Killed
    assert torch.get_num_threads() == before


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    records = Records(tmp_path)
    trained(records, members=1)
    (tmp_path / records.rows[0][1]).unlink()
    with pytest.raises(StorageError, match="is missing"):
        loaded(records, members=1)


@dataclass(frozen=True)
class Teacher(Learner):
    """A moving average answers, a head of its own gives a column, all start from ``prepare``."""

    def prepare(self, ctx: TrainContext, data: TrainData) -> Weights:
        net = ctx.build(ctx.chance("pretrained"))
        return {name: t * 2 for name, t in net.state_dict().items()}

    def networks(self, ctx: TrainContext) -> nn.ModuleDict:
        nets = super().networks(ctx)
        nets["teacher"], nets["head"] = ctx.build(0), nn.Linear(4, 1)
        return nets

    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        assert ctx.weights is not None
        nets = self.networks(ctx)
        for name in ("task", "teacher"):
            nets[name].load_state_dict(ctx.weights)
        trained = nn.ModuleList([nets["task"], nets["head"]])
        return TrainState(nets, {"both": SGD(trained.parameters(), 0.05)})

    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        nets, batch = state.networks, batches["labeled"]
        fit = nn.functional.cross_entropy(nets["task"](batch.x), batch.y)
        side = nets["head"](batch.x).square().mean()
        state.descend("both", fit + side)
        for slow, fast in zip(nets["teacher"].parameters(), nets["task"].parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.1)
        return {"fit": fit.item(), "side": side.item()}

    def predictor(self, state: TrainState) -> nn.ModuleDict:
        nets = state.networks
        return nn.ModuleDict({"task": nets["teacher"], "head": nets["head"]})

    def extras(self, nets: nn.ModuleDict, x: Tensor) -> Mapping[str, Tensor]:
        return {"side": nets["head"](x)[:, 0]}


def test_a_learner_decides_which_networks_answer_and_adds_columns(tmp_path: Path) -> None:
    records = Records(tmp_path)
    learner = Teacher(steps=6, epoch_steps=2)
    committee = trained(records, learner=learner, members=1)
    (nets,) = loaded(records, learner=learner, members=1).nets
    assert set(nets) == {"task", "head"}
    pretrained = TrainContext(
        TASK, {}, 20, 3, 6, seed=3, round=2, member=0, build=lambda s: MLP.build(TASK, CPU, s)
    )
    start = learner.prepare(pretrained, rows())
    gap = torch.stack(
        [(t - start[n]).abs().max() for n, t in nets["task"].named_parameters()]
    ).max()
    assert 0 < gap < 0.1  # near what it was prepared from: the average is slow
    assert committee.extras is not None
    x = torch.ones(5, 4)
    column = committee.extras(committee.nets[0], x)["side"]
    assert column.shape == (5,)
    assert torch.equal(column, nets["head"](x)[:, 0])


# ---- hash ----------------------------------------------------------------------------------------


def hashed(**changes: Any) -> str:
    return request(**changes).hash


def test_the_hash_names_everything_that_weights_depend_on() -> None:
    other = TableTask(ClassLabel(("a", "b", "d")), TASK.features)
    changes: list[dict[str, Any]] = [
        {"learner": replace(SHORT, lr=2e-3)},
        {"learner": Teacher()},
        {"network": NetworkSpec("mlp", {"widths": [9]})},
        {"task": other},
        {"labels": {"x": "a", "y": "c"}},
        {"labels": {"x": "a"}},
        {"members": 3},
        {"seed": 4},
        {"round": 3},
        {"threads_per_model": 2},
        {"unlabeled": (5, 77)},
    ]
    assert len({hashed(), *(hashed(**change) for change in changes)}) == len(changes) + 1
    assert hashed(labels={"y": "b", "x": "a"}) == hashed()


def test_a_field_that_does_not_say_how_it_enters_the_hash_is_refused() -> None:
    @dataclass(frozen=True)
    class Grown(TrainRequest):
        tail: int = 0

    with pytest.raises(KeyError):
        assert Grown(SHORT, MLP, TASK, {}, 1, 0, 0).hash


def test_networks_are_built_by_seed() -> None:
    assert equal(MLP.build(TASK, CPU, 1).state_dict(), MLP.build(TASK, CPU, 1).state_dict())
    assert not equal(MLP.build(TASK, CPU, 1).state_dict(), MLP.build(TASK, CPU, 2).state_dict())
