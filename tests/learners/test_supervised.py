from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import (
    CLASSES,
    FEATURES,
    TASK,
    DirStore,
    same,
    tiny_context,
    tiny_data,
    tiny_net,
    trained,
)
from sklearn.datasets import load_digits
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from rayal.errors import SettingsError, UnknownNameError
from rayal.learners import (
    PRESETS,
    LabeledBatch,
    LabeledRows,
    Supervised,
    TensorRows,
    TrainData,
    fit,
)
from rayal.learners.data import balanced_weights
from rayal.learners.supervised import refresh_batchnorm
from rayal.registry import learners
from rayal.settings.parameters import build
from rayal.types import id_keys


def test_registered_with_checked_settings() -> None:
    assert learners["supervised"] is Supervised
    with pytest.raises(UnknownNameError, match="did you mean 'supervised'"):
        learners["supervisd"]
    with pytest.raises(SettingsError, match="did you mean 'adam'"):
        Supervised(optimizer="adamx")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="schedule: 'step' does not exist"):
        Supervised(schedule="step")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="set one of them to 0"):
        Supervised(swa=0.5, early_stopping=0.1)
    with pytest.raises(SettingsError, match="lr"):
        build(Supervised, {"lr": 0.0}, where="learner")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings(name: str) -> None:
    built = build(Supervised, PRESETS[name], where="learner")
    assert PRESETS[name].items() <= asdict(built).items()


def test_cosine_schedule_with_warmup() -> None:
    learner = Supervised(schedule="cosine", warmup=0.2)
    factors = [learner.factor(s, 10) for s in range(10)]
    assert factors[:2] == pytest.approx([1 / 3, 2 / 3])
    expected = [0.5 * (1 + math.cos(math.pi * s / 8)) for s in range(8)]
    assert factors[2:] == pytest.approx(expected)
    assert [factors[2], factors[6]] == pytest.approx([1.0, 0.5])
    flat = replace(learner, schedule="constant")
    assert [flat.factor(s, 10) for s in (2, 9)] == [1.0, 1.0]


def test_the_schedule_reaches_the_optimiser(tmp_path: Path) -> None:
    learner = Supervised(steps=4, epoch_steps=4, optimizer="sgd", lr=0.3, momentum=0.0)
    state = trained(learner, tmp_path)
    (group,) = state.optimizers["task"].param_groups
    assert group["lr"] == pytest.approx(0.0)  # after step 3 it would be that of step 4
    assert group["momentum"] == 0.0 and group["weight_decay"] == learner.weight_decay


def test_balanced_weights_agree_with_scikit_learn() -> None:
    y = torch.tensor([0, 0, 0, 2, 2, 5])
    weights = balanced_weights(y)
    assert weights.tolist() == pytest.approx([6 / 9] * 3 + [1.0] * 2 + [2.0])
    assert weights.tolist() == pytest.approx(compute_sample_weight("balanced", y.numpy()).tolist())
    assert weights.mean() == pytest.approx(1.0)


def plain(data: TrainData, rows: Tensor) -> Tensor:
    everything = data.labeled.rows.take(torch.arange(len(data.labeled)))
    return TASK.transform(data.labeled.rows.take(rows), TASK.fit(everything))


def linear(seed: int) -> Any:
    torch.manual_seed(seed)
    return nn.Linear(FEATURES, CLASSES)


@pytest.mark.parametrize("weighing", ["none", "balanced"])
def test_one_step_of_sgd_is_the_gradient_of_the_weighed_loss(weighing: Any, tmp_path: Path) -> None:
    data = tiny_data(20)
    skewed = replace(data.labeled, targets=(torch.arange(20) % 5 == 0).long())
    given = torch.linspace(0.5, 1.5, 20)
    data = replace(data, labeled=replace(skewed, weights=given))
    learner = Supervised(
        steps=1, optimizer="sgd", lr=0.5, weight_decay=0.0, class_weights=weighing,
        label_smoothing=0.1,
    )  # fmt: skip
    ctx = tiny_context(learner, data, build=linear)
    state = trained(learner, tmp_path, data, build=linear)
    net = linear(ctx.chance("network"))
    y, x = (
        skewed.targets,
        plain(data, torch.arange(20)),
    )
    smooth = 0.9 * F.one_hot(y, CLASSES) + 0.1 / CLASSES
    weights = given * (balanced_weights(y) if weighing == "balanced" else 1.0)
    loss = -(weights * (smooth * net(x).log_softmax(dim=1)).sum(dim=1)).sum() / 20
    loss.backward()
    moved: Any = state.networks["task"]
    assert torch.allclose(moved.weight, net.weight - 0.5 * net.weight.grad, atol=1e-6)


def test_swa_is_the_mean_of_the_last_steps(tmp_path: Path) -> None:
    taken: list[dict[str, Tensor]] = []

    class Watched(Supervised):
        def step(self, state: Any, batches: Any, ctx: Any) -> dict[str, float]:
            losses = super().step(state, batches, ctx)
            taken.append(
                {n: p.detach().clone() for n, p in state.networks["task"].named_parameters()}
            )
            return losses

    learner = Watched(steps=10, epoch_steps=3, batch=8, swa=0.35, lr=0.1)
    state = trained(learner, tmp_path)
    answer = dict(learner.predictor(state)["task"].named_parameters())
    for name, value in answer.items():
        mean = torch.stack([step[name] for step in taken[-4:]]).mean(dim=0)  # ceil(3.5) steps
        assert torch.allclose(value, mean, atol=1e-6)
    assert not torch.allclose(answer["0.weight"], taken[-1]["0.weight"], atol=1e-3)


def test_swa_batchnorm_statistics_are_those_of_a_full_pass(tmp_path: Path) -> None:
    learner, data = Supervised(steps=6, epoch_steps=3, batch=32, swa=0.5, lr=0.1), tiny_data()
    net: Any = learner.predictor(trained(learner, tmp_path, data))["task"]
    x = plain(data, torch.arange(20))
    hidden = net[0](x)
    assert torch.allclose(net[1].running_mean, hidden.mean(dim=0), atol=1e-6)
    assert torch.allclose(net[1].running_var, hidden.var(dim=0), atol=1e-6)
    assert net[1].momentum == 0.1


def test_refresh_agrees_with_torch_where_nothing_is_dropped() -> None:
    ours, theirs = tiny_net(0, dropout=0.0), tiny_net(0, dropout=0.0)
    batches = list(torch.randn(4, 16, FEATURES, generator=torch.Generator().manual_seed(0)))
    refresh_batchnorm(ours, batches)
    update_bn(batches, theirs)
    assert same(ours.state_dict(), theirs.state_dict())
    kept = {n: t.clone() for n, t in ours.state_dict().items()}
    refresh_batchnorm(ours, [torch.ones(1, FEATURES)])
    assert same(ours.state_dict(), kept)
    assert not ours.training


def test_early_stopping_returns_the_best_epoch(tmp_path: Path) -> None:
    data = tiny_data(40)
    noise = torch.randint(CLASSES, (40,), generator=torch.Generator().manual_seed(3))
    data = replace(data, labeled=replace(data.labeled, targets=noise))
    learner = Supervised(
        steps=200, epoch_steps=5, lr=0.1, schedule="constant", early_stopping=0.25, patience=3
    )
    folder = tmp_path / "whole"
    state = trained(learner, folder, data)
    assert state.epoch < 40
    order = torch.from_numpy(id_keys(data.labeled.rows.ids).argsort())
    held, rest = order[:10], order[10:].sort().values
    assert state.tables["held"].tolist() == held.sort().values.tolist()
    assert torch.equal(state.tables["rows.labeled"], rest)
    best = state.epoch - 3
    store = DirStore(tmp_path)
    ctx = tiny_context(learner, data)
    losses = []
    for epoch in range(1, state.epoch + 1):
        short = replace(learner, steps=5 * epoch, patience=99)
        net = trained(short, tmp_path / str(epoch), data).networks["task"].eval()
        x = plain(data, held)
        losses.append(F.cross_entropy(net(x), noise[held]).item())
        if epoch == best:
            assert same(learner.predictor(state)["task"].state_dict(), net.state_dict())
    assert min(losses) == losses[best - 1] == pytest.approx(state.scalars["best"], rel=1e-5)
    assert fit(learner, data, ctx, checkpoint=store).scalars == state.scalars


@pytest.mark.parametrize("params", [{}, {"early_stopping": 0.5}, {"swa": 0.5}, {"augment": True}])
@pytest.mark.parametrize(("n", "classes", "batch"), [(1, 1, 8), (9, 1, 4), (3, 3, 64), (5, 3, 1)])
def test_tiny_labeled_sets_train(
    params: dict[str, Any], n: int, classes: int, batch: int, tmp_path: Path
) -> None:
    learner = Supervised(steps=6, epoch_steps=2, batch=batch, class_weights="balanced", **params)
    data = tiny_data(n, classes=classes)
    ctx = tiny_context(learner, data)
    state = fit(learner, data, ctx, checkpoint=DirStore(tmp_path))
    assert state.step == 6
    first: Any = tiny_net(ctx.chance("network"))
    last: Any = learner.predictor(state)["task"]
    assert not torch.equal(first[0].weight, last[0].weight)
    assert all(t.isfinite().all() for t in last.state_dict().values())


def test_bf16_computes_in_bf16(tmp_path: Path) -> None:
    full: Any = trained(Supervised(steps=5), tmp_path / "fp32").networks["task"]
    half: Any = trained(Supervised(steps=5, precision="bf16"), tmp_path / "bf16").networks["task"]
    assert half[0].weight.dtype == torch.float32
    assert not torch.equal(half[0].weight, full[0].weight)
    assert torch.allclose(half[0].weight, full[0].weight, atol=1e-2)


def test_learns_digits_from_200_labels(tmp_path: Path) -> None:
    digits = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(digits.data).float()[order] / 16
    y = torch.from_numpy(digits.target).long()[order]
    ids = [f"digits:{i:04d}" for i in range(200)]
    data = TrainData(LabeledRows(TensorRows(ids, x[:200]), y[:200]))

    def mlp(seed: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    learner = Supervised()
    ctx = tiny_context(learner, data, build=mlp)
    state = fit(learner, data, ctx, checkpoint=DirStore(tmp_path))
    net = learner.predictor(state)["task"].eval()
    right = net(ctx.task.transform(x[200:], ctx.statistics)).argmax(dim=1) == y[200:]
    assert right.double().mean() > 0.85


def with_twins(data: TrainData, rows: list[int]) -> TrainData:
    """Attach a moved copy to some labeled rows."""
    labeled, at = data.labeled, torch.tensor(rows)
    ids = [labeled.rows.ids[i] for i in rows]
    twins = LabeledRows(TensorRows(ids, labeled.rows.take(at) + 0.5), labeled.targets[at])
    return TrainData(labeled, data.unlabeled, twins)


def test_attached_rows_weigh_as_their_share_of_the_training_set() -> None:
    data = with_twins(tiny_data(12), [1, 4, 7, 9])
    learner = Supervised(batch=12, steps=1)
    ctx = tiny_context(learner, data, build=partial(tiny_net, dropout=0.0, norm=False))
    state = learner.begin(ctx, data)
    assert state.scalars["attached"] == 4 / 16
    assert data.attached is not None
    batches = {
        name: LabeledBatch(tuple(rows.rows.ids), id_keys(rows.rows.ids), (x,), rows.targets)
        for name, rows in (("labeled", data.labeled), ("attached", data.attached))
        for x in [rows.rows.take(torch.arange(len(rows)))]
    }
    net = state.networks["task"]
    x = torch.cat([batches[n].x for n in ("labeled", "attached")])
    y = torch.cat([batches[n].y for n in ("labeled", "attached")])
    whole = torch.nn.functional.cross_entropy(net(x), y).item()  # as of one set of 16 rows
    assert learner.step(state, batches, ctx)["loss"] == pytest.approx(whole, rel=1e-5)


def test_twins_of_held_out_rows_are_held_out_too(tmp_path: Path) -> None:
    data = with_twins(tiny_data(20), list(range(20)))
    learner = Supervised(batch=8, steps=4, epoch_steps=2, early_stopping=0.3)
    state = learner.begin(tiny_context(learner, data), data)
    assert sorted(state.tables["rows.attached"].tolist()) == state.tables["rows.labeled"].tolist()
    assert len(state.tables["rows.attached"]) == 14 and state.scalars["attached"] == 0.5
    trained(learner, tmp_path, data)
