from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from learner_cases import (
    CLASSES,
    FEATURES,
    DirStore,
    Killed,
    same,
    tiny_context,
    tiny_data,
    tiny_net,
    trained,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from rayal.errors import NeedsError, ScoreError, StorageError
from rayal.learners import (
    LabeledBatch,
    LabeledRows,
    Learner,
    Stream,
    Supervised,
    TensorRows,
    TrainContext,
    TrainData,
    TrainState,
    UnlabeledBatch,
    fit,
)
from rayal.learners.base import Batches
from rayal.learners.checkpoint import Checkpoint, read_checkpoint
from rayal.learners.loop import fit_unless_done

SHORT: dict[str, Any] = {"steps": 11, "epoch_steps": 3, "batch": 8}
RESUMED: dict[str, dict[str, Any]] = {
    "adam": {},
    "adamw warm": {"optimizer": "adamw", "warmup": 0.3},
    "sgd": {"optimizer": "sgd", "lr": 0.1},
    "augmentation": {"augment": True, "label_smoothing": 0.1},
    "swa": {"swa": 0.7},
    "bf16": {"precision": "bf16"},
    "early stopping": {"early_stopping": 0.3, "patience": 9, "class_weights": "balanced"},
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("committed", [False, True])
def test_resumes_to_the_same_bits_after_a_kill_at_any_epoch(
    name: str, committed: bool, tmp_path: Path
) -> None:
    learner, data = Supervised(**SHORT, **RESUMED[name]), tiny_data()
    ctx = tiny_context(learner, data)
    whole = trained(learner, tmp_path / "whole")
    assert whole.epoch == 4
    for epoch in (1, 2, 3) if committed else (1, 2, 3, 4):
        folder = tmp_path / str(epoch)
        folder.mkdir()
        store = DirStore(folder)
        setattr(store, "kill_after" if committed else "kill_before", epoch)
        with pytest.raises(Killed):
            fit(learner, data, ctx, checkpoint=store)
        torch.rand(epoch)  # what else happens in a process must not matter
        resumed = fit(learner, data, ctx, checkpoint=store)
        assert same(resumed.state_dict(), whole.state_dict())
        final = read_checkpoint(store.rows[4][0])
        assert final.kind == "predictor"
        assert same(final.tree["nets"]["task"], learner.predictor(whole)["task"].state_dict())


@pytest.mark.parametrize("device", ["cpu", "cpu:0"])
def test_a_checkpoint_is_read_on_the_cpu_where_side_tables_belong(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device of the training, rows held out would not index those on the CPU."""
    places: list[str] = []

    def reading(path: Path, place: torch.device | str = "cpu") -> Checkpoint:
        places.append(str(place))
        return read_checkpoint(path, place)

    monkeypatch.setattr("rayal.learners.loop.read_checkpoint", reading)
    learner, data = Supervised(**SHORT, early_stopping=0.3, patience=9), tiny_data()
    ctx = tiny_context(learner, data, device=torch.device(device))
    store = DirStore(tmp_path, kill_after=2)
    with pytest.raises(Killed):
        fit(learner, data, ctx, checkpoint=store)
    state = fit(learner, data, ctx, checkpoint=store)
    assert places == ["cpu"] and state.epoch == 4 and "held" in state.tables


class Overtaken(DirStore):
    """A store whose latest epoch's file goes once, as another process commits the next one."""

    asked: int = 0

    def latest(self) -> tuple[int, Path] | None:
        self.asked += 1
        if self.asked == 1:
            return 1, self.folder / "gone.safetensors"
        return super().latest()


def test_an_epoch_that_another_process_has_replaced_is_asked_for_once_more(tmp_path: Path) -> None:
    learner, data = Supervised(**SHORT), tiny_data()
    ctx = tiny_context(learner, data)
    whole = trained(learner, tmp_path / "whole")
    first = DirStore(tmp_path, kill_after=2)
    with pytest.raises(Killed):
        fit(learner, data, ctx, checkpoint=first)
    store = Overtaken(tmp_path, rows=first.rows)
    assert same(fit(learner, data, ctx, checkpoint=store).state_dict(), whole.state_dict())
    # the one that is gone, whether there is another, and that one; then after the third epoch
    assert store.asked == 4


@dataclass
class Shared(DirStore):
    """A store into which another process has put its own files by the time of an epoch."""

    others: dict[int, tuple[Path, bool]] = field(default_factory=dict)
    at: int = 1
    saved: list[int] = field(default_factory=list)

    def save(self, epoch: int, write: Callable[[Path], None], final: bool) -> None:
        self.saved.append(epoch)
        if epoch >= self.at:
            self.rows |= self.others
        if epoch not in self.rows:
            super().save(epoch, write, final)


def test_who_finds_another_further_goes_on_with_the_others_epoch(tmp_path: Path) -> None:
    learner, data = Supervised(**SHORT), tiny_data()
    ctx = tiny_context(learner, data)
    whole = trained(learner, tmp_path / "whole")
    other = DirStore(tmp_path, kill_after=3)
    with pytest.raises(Killed):
        fit(learner, data, ctx, checkpoint=other)
    (tmp_path / "own").mkdir()
    store = Shared(tmp_path / "own", others=other.rows)
    state = fit_unless_done(learner, data, ctx, checkpoint=store)
    assert state is not None and same(state.state_dict(), whole.state_dict())
    assert store.saved == [1, 4]  # the second and third are the other's


@pytest.mark.parametrize("at", [1, 3])
def test_who_finds_the_training_finished_by_another_is_done(at: int, tmp_path: Path) -> None:
    learner, data = Supervised(**SHORT), tiny_data()
    ctx = tiny_context(learner, data)
    other = DirStore(tmp_path)
    fit(learner, data, ctx, checkpoint=other)
    (tmp_path / "own").mkdir()
    store = Shared(tmp_path / "own", others=other.rows, at=at)
    assert fit_unless_done(learner, data, ctx, checkpoint=store) is None
    assert store.saved == list(range(1, at + 1)) and store.latest() == other.latest()


def test_a_checkpoint_that_is_gone_for_good_is_an_error(tmp_path: Path) -> None:
    learner, data = Supervised(**SHORT), tiny_data()
    store = DirStore(tmp_path, rows={1: (tmp_path / "gone.safetensors", False)})
    with pytest.raises(StorageError, match=r"gone\.safetensors is missing"):
        fit(learner, data, tiny_context(learner, data), checkpoint=store)


def test_a_finished_training_is_not_gone_on_with(tmp_path: Path) -> None:
    learner, data = Supervised(**SHORT), tiny_data()
    store = DirStore(tmp_path)
    fit(learner, data, tiny_context(learner, data), checkpoint=store)
    assert [final for _, final in store.rows.values()] == [False, False, False, True]
    with pytest.raises(StorageError, match="end of a training"):
        fit(learner, data, tiny_context(learner, data), checkpoint=store)


@dataclass(frozen=True)
class Drawing(Supervised):
    """Keeps what torch draws and what augmentation makes of the first row, step by step."""

    drawn: ClassVar[list[tuple[float, float]]] = []

    def streams(self) -> tuple[Stream, ...]:
        return (Stream("labeled", "labeled", views=("raw", "weak"), sampler="cyclic"),)

    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        raw, weak = batches["labeled"].views
        self.drawn.append((torch.rand(1).item(), (weak - raw)[0, 0].item()))
        return {}


def test_no_two_steps_draw_the_same(tmp_path: Path) -> None:
    Drawing.drawn.clear()
    for member in (0, 1):
        trained(Drawing(steps=6, epoch_steps=2), tmp_path / str(member), member=member)
    torch_draws, augmentations = zip(*Drawing.drawn, strict=True)
    assert len(set(torch_draws)) == len(set(augmentations)) == 12


# ---- streams -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorder(Learner):
    """Keeps every batch, trains nothing."""

    wanted: tuple[Stream, ...] = ()
    seen: ClassVar[list[Mapping[str, Any]]] = []

    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        self.seen.clear()
        return TrainState(self.networks(ctx))

    def streams(self) -> tuple[Stream, ...]:
        return self.wanted

    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        self.seen.append(dict(batches))
        return {}


def recorded(
    tmp_path: Path, *streams: Stream, data: TrainData | None = None, **params: Any
) -> list[Mapping[str, Any]]:
    trained(Recorder(**params, wanted=streams), tmp_path, data)
    return list(Recorder.seen)


def test_a_pass_repeats_no_row_and_leaves_out_the_rest(tmp_path: Path) -> None:
    stream = Stream("labeled", "labeled")
    steps = recorded(tmp_path, stream, data=tiny_data(20), steps=12, batch=6, epoch_steps=5)
    passes = [[b["labeled"].ids for b in steps[i : i + 3]] for i in range(0, 12, 3)]
    for rows in passes:
        assert [len(ids) for ids in rows] == [6, 6, 6]
        assert len({i for ids in rows for i in ids}) == 18
    assert len({str(rows) for rows in passes}) == 4


def test_fewer_rows_than_a_batch_are_one_batch(tmp_path: Path) -> None:
    stream = Stream("labeled", "labeled")
    steps = recorded(tmp_path, stream, data=tiny_data(5), steps=3, batch=64)
    assert [sorted(b["labeled"].ids) for b in steps] == [[f"item:{i:04d}" for i in range(5)]] * 3


def test_batches_pair_rows_with_their_targets_and_keys(tmp_path: Path) -> None:
    data = tiny_data(20)
    weighed = replace(data, labeled=replace(data.labeled, weights=torch.arange(20) / 10))
    (batch,) = recorded(tmp_path, Stream("l", "labeled", views=("raw",)), data=weighed, steps=1)
    rows = torch.tensor([int(i.removeprefix("item:")) for i in batch["l"].ids])
    assert torch.equal(batch["l"].x, data.labeled.rows.take(rows))
    assert torch.equal(batch["l"].y, rows % CLASSES)
    assert torch.equal(batch["l"].weight, rows / 10)
    assert len(batch["l"].keys) == len(rows) == 20


def test_unlabeled_ratio_cyclic_order_and_several_views(tmp_path: Path) -> None:
    unlabeled = Stream("u", "unlabeled", ratio=1.5, views=("raw", "plain", "weak", "weak"))
    cyclic = Stream("c", "labeled", sampler="cyclic")
    steps = recorded(tmp_path, unlabeled, cyclic, data=tiny_data(20), steps=3, batch=8)
    assert [len(b["u"].ids) for b in steps] == [12, 12, 12]
    rows = [int(i[5:]) for b in steps for i in b["c"].ids]
    assert rows == [i % 20 for i in range(24)]
    raw, plain, weak, again = steps[0]["u"].views
    ctx = tiny_context(Supervised(), tiny_data(20))
    assert torch.equal(plain, ctx.task.transform(raw, ctx.statistics))
    assert not torch.equal(weak, plain)
    assert not torch.equal(weak, again)
    assert torch.equal(steps[0]["u"].x, raw)


def test_an_unlabeled_batch_has_nowhere_to_keep_a_label(tmp_path: Path) -> None:
    assert [f.name for f in fields(UnlabeledBatch)] == ["ids", "keys", "views"]
    (batch,) = recorded(tmp_path, Stream("u", "unlabeled"), steps=1)
    assert type(batch["u"]) is UnlabeledBatch
    assert not {"y", "label", "labels", "target", "targets", "weight"} & set(dir(batch["u"]))


def test_streams_without_rows_give_no_batch(tmp_path: Path) -> None:
    streams = (Stream("p", "pseudo"), Stream("a", "attached"), Stream("l", "labeled"))
    (batch,) = recorded(tmp_path / "none", *streams, steps=1)
    assert set(batch) == {"l"}
    empty = replace(tiny_data(), unlabeled=TensorRows([], torch.zeros(0, FEATURES)))
    assert recorded(tmp_path / "empty", Stream("u", "unlabeled"), data=empty, steps=1) == [{}]


@dataclass(frozen=True)
class Relabeling(Recorder):
    """Gives every epoch the same pseudo-labeled rows."""

    def on_epoch_start(self, state: TrainState, ctx: TrainContext, data: TrainData) -> None:
        state.tables["rows.p"] = torch.arange(30)
        state.tables["targets.p"] = torch.zeros(30, dtype=torch.int64)


def test_pseudo_rows_are_shuffled_anew_in_every_epoch(tmp_path: Path) -> None:
    wanted = (Stream("p", "pseudo"), Stream("u", "unlabeled"))
    trained(Relabeling(steps=4, epoch_steps=2, batch=10, wanted=wanted), tmp_path)
    first, second, third, fourth = (set(b["p"].ids) for b in Recorder.seen)
    assert not first & second and not third & fourth
    assert first & third or first & fourth  # a pass of three steps does not go on
    unlabeled = [i for b in Recorder.seen[:3] for i in b["u"].ids]
    assert len(set(unlabeled)) == 30  # its pass does


def test_attached_rows_are_labeled(tmp_path: Path) -> None:
    twins = LabeledRows(TensorRows(["twin"], torch.ones(1, FEATURES)), torch.tensor([2]))
    data = replace(tiny_data(), attached=twins)
    (batch,) = recorded(tmp_path, Stream("a", "attached"), data=data, steps=1)
    assert (batch["a"].ids, batch["a"].y.tolist()) == (("twin",), [2])


def test_missing_rows_and_views_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match="Recorder trains on unlabeled rows"):
        recorded(tmp_path, Stream("u", "unlabeled"), data=replace(tiny_data(), unlabeled=None))
    with pytest.raises(NeedsError, match="did you mean 'weak'"):
        recorded(tmp_path, Stream("l", "labeled", views=("weka",)))
    rows = TensorRows(["b", "a"], torch.zeros(2, FEATURES))
    with pytest.raises(NeedsError, match="sorted by id"):
        TrainData(LabeledRows(rows, torch.zeros(2)))
    with pytest.raises(NeedsError, match="at least one row"):
        TrainData(LabeledRows(TensorRows([], torch.zeros(0, FEATURES)), torch.zeros(0)))


# ---- learners with more than one network ---------------------------------------------------------


@dataclass(frozen=True)
class Adversarial(Learner):
    """A classifier and a critic that tells labeled from unlabeled, one phase each, and an EMA."""

    frozen: str = ""

    def networks(self, ctx: TrainContext) -> nn.ModuleDict:
        nets = super().networks(ctx)
        nets["critic"] = nn.Linear(CLASSES, 1)
        nets["teacher"] = ctx.build(0).requires_grad_(False)
        return nets

    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        nets = self.networks(ctx)
        nets["teacher"].load_state_dict(nets["task"].state_dict())
        names = [n for n in ("task", "critic") if n != self.frozen]
        return TrainState(nets, {n: SGD(nets[n].parameters(), 0.1, momentum=0.9) for n in names})

    def streams(self) -> tuple[Stream, ...]:
        return (Stream("labeled", "labeled"), Stream("unlabeled", "unlabeled", ratio=2.0))

    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        nets, labeled, unlabeled = state.networks, batches["labeled"], batches["unlabeled"]
        assert type(labeled) is LabeledBatch
        losses = {}
        for name in ("task", "critic"):
            sign = 1.0 if name == "task" else -1.0
            gap = nets["critic"](nets["task"](unlabeled.x)).mean()
            gap = gap - nets["critic"](nets["task"](labeled.x)).mean()
            loss = F.cross_entropy(nets["task"](labeled.x), labeled.y) + sign * 0.1 * gap
            if name != self.frozen:
                state.descend(name, loss)
            losses[name] = loss.item()
        with torch.no_grad():
            for slow, fast in zip(
                nets["teacher"].parameters(), nets["task"].parameters(), strict=True
            ):
                slow.lerp_(fast, 0.5)
        return losses

    def predictor(self, state: TrainState) -> nn.ModuleDict:
        nets = state.networks
        return nn.ModuleDict({"task": nets["teacher"], "critic": nets["critic"]})

    def extras(self, nets: nn.ModuleDict, x: Tensor) -> Mapping[str, Tensor]:
        return {"critic": nets["critic"](nets["task"](x))[:, 0]}


@pytest.mark.parametrize("frozen", ["task", "critic"])
def test_a_phase_touches_its_own_parameters_alone(frozen: str, tmp_path: Path) -> None:
    learner = Adversarial(**SHORT, frozen=frozen)
    plain = partial(tiny_net, norm=False)
    state = trained(learner, tmp_path, build=plain)
    moved = {"task": "critic", "critic": "task"}[frozen]
    fresh = trained(replace(learner, steps=1), tmp_path / "one", build=plain)
    assert same(state.networks[frozen].state_dict(), fresh.networks[frozen].state_dict())
    assert not same(state.networks[moved].state_dict(), fresh.networks[moved].state_dict())
    assert all(p.grad is None for p in state.networks[frozen].parameters())


def test_two_phases_and_a_moving_average_resume_bit_for_bit(tmp_path: Path) -> None:
    learner, data = Adversarial(**SHORT), tiny_data()
    whole = trained(learner, tmp_path / "whole")
    store = DirStore(tmp_path, kill_after=2)
    with pytest.raises(Killed):
        fit(learner, data, tiny_context(learner, data), checkpoint=store)
    resumed = fit(learner, data, tiny_context(learner, data), checkpoint=store)
    assert same(resumed.state_dict(), whole.state_dict())
    teacher, student = whole.networks["teacher"], whole.networks["task"]
    assert not same(teacher.state_dict(), student.state_dict())
    final = read_checkpoint(store.rows[4][0]).tree["nets"]
    assert set(final) == {"task", "critic"}
    assert same(final["task"], teacher.state_dict())


@dataclass(frozen=True)
class SelfTraining(Supervised):
    """Supervised, with the first ``count`` unlabeled rows as pseudo-labeled ones."""

    count: int = 0

    def streams(self) -> tuple[Stream, ...]:
        return (*super().streams(), Stream("pseudo", "pseudo", ratio=0.5))

    def on_epoch_start(self, state: TrainState, ctx: TrainContext, data: TrainData) -> None:
        start = state.epoch  # other rows at each epoch
        rows = torch.arange(start, start + self.count)
        state.tables["rows.pseudo"] = rows
        state.tables["targets.pseudo"] = rows % CLASSES
        state.tables["weights.pseudo"] = torch.full((self.count,), 0.5)

    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        terms = super().step(state, batches, ctx)
        if "pseudo" in batches:
            batch = batches["pseudo"]
            rows = torch.tensor([int(i[5:]) for i in batch.ids]) - 20
            assert rows.min() >= state.epoch and rows.max() < state.epoch + self.count
            assert torch.equal(batch.y, rows % CLASSES) and (batch.weight == 0.5).all()
            loss = F.cross_entropy(state.networks["task"](batch.x), batch.y)
            state.descend("task", loss * 0.5)
            terms["pseudo"] = loss.item()
        return terms


def test_pseudo_labels_come_from_the_side_table_of_the_epoch(tmp_path: Path) -> None:
    base = trained(Supervised(**SHORT), tmp_path / "base").networks
    none = trained(SelfTraining(**SHORT, count=0), tmp_path / "none").networks
    some = trained(SelfTraining(**SHORT, count=9), tmp_path / "some").networks
    assert same(base.state_dict(), none.state_dict())
    assert not same(base.state_dict(), some.state_dict())


# ---- the rest ------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_names_step_and_term(tmp_path: Path) -> None:
    data = tiny_data()
    x = torch.full((20, FEATURES), torch.nan)
    bad = replace(data, labeled=replace(data.labeled, rows=TensorRows(data.labeled.rows.ids, x)))
    says = "loss 'loss' is nan at step 0 of 11, round 0, member 0.* among the labeled rows"
    with pytest.raises(ScoreError, match=says):
        trained(Supervised(**SHORT), tmp_path, bad)


def test_progress_counts_steps(tmp_path: Path) -> None:
    learner, data, calls = Supervised(**SHORT), tiny_data(), []
    fit(
        learner,
        data,
        tiny_context(learner, data),
        checkpoint=DirStore(tmp_path),
        progress=lambda *call: calls.append(call),
    )
    assert calls == [("train", i, 11) for i in range(1, 12)]


def test_weights_and_batches_have_the_type_of_the_context(tmp_path: Path) -> None:
    state = trained(
        Supervised(**SHORT, class_weights="balanced"),
        tmp_path,
        build=lambda seed: tiny_net(seed).double(),
        dtype=torch.float64,
    )
    assert {p.dtype for p in state.networks.parameters()} == {torch.float64}
