"""Learning loss: the ranking loss by hand, its two phases, and what it predicts on real digits."""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digit_cases import (
    CNN,
    PLAIN,
    committee_of,
    digit_pool,
    digit_spec,
    items,
    picks,
    pool_rows,
    rounds_of,
)
from scipy.stats import kendalltau
from torch import Tensor
from torch.nn import functional as F

import rayal
from rayal.engine.project import Project
from rayal.engine.spec import NetworkSpec
from rayal.engine.train import context
from rayal.errors import NeedsError
from rayal.labels import ClassLabel
from rayal.learners import LabeledBatch, LabeledRows, Supervised, TensorRows, TrainData, TrainState
from rayal.ledger import Ledger
from rayal.models import HookedNet, TaskNet
from rayal.models.base import chosen_taps, pooled
from rayal.registry import strategies
from rayal.strategies.learning_loss import LearningLoss, LossPrediction, ranking_loss
from rayal.tasks import ImageTask
from rayal.types import id_keys

TASK = ImageTask(ClassLabel(tuple("abc")), "raw", 1, (8, 8))
STATISTICS = {"mean": torch.zeros(1), "std": torch.ones(1)}
LEARNER = LossPrediction(steps=10, batch=6, epoch_steps=5, lr=0.05, optimizer="sgd")


def begun(learner: Supervised, rows: int = 6) -> tuple[TrainState, Any, LabeledBatch]:
    """Return a training's first state, its context and one batch."""
    x = torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(rows) % 3
    ids = tuple(f"item:{i}" for i in range(rows))
    data = TrainData(LabeledRows(TensorRows(ids, x), y))
    ctx = dataclasses.replace(context(learner, CNN, TASK, rows), statistics=STATISTICS)
    state = learner.begin(ctx, data)
    state.networks.train()
    return state, ctx, LabeledBatch(ids, id_keys(ids), (x,), y)


def weights(state: TrainState, name: str) -> list[Tensor]:
    return [p.detach().clone() for p in state.networks[name].parameters()]


def moved(before: list[Tensor], after: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def one_step(learner: Supervised, at: int = 0, rows: int = 6) -> TrainState:
    state, ctx, batch = begun(learner, rows)
    state.step = at
    torch.manual_seed(3)  # dropout
    learner.step(state, {"labeled": batch}, ctx)
    return state


def test_the_ranking_loss_by_hand() -> None:
    losses = torch.tensor([2.0, 1.0])
    assert ranking_loss(torch.tensor([0.3, 0.1]), losses, 1.0).item() == pytest.approx(0.8)
    assert ranking_loss(torch.tensor([0.1, 0.3]), losses, 1.0).item() == pytest.approx(1.2)
    assert ranking_loss(torch.tensor([1.5, 0.3]), losses, 1.0).item() == 0.0
    same = ranking_loss(torch.tensor([4.0, 4.0, 4.0, 4.0]), torch.randn(4), 0.7)
    assert same.item() == pytest.approx(0.7)
    equal = ranking_loss(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]), 1.0)
    assert equal.item() == 2.0  # of equal losses the first is not the larger


def test_the_ranking_loss_equals_the_published_sum_over_pairs() -> None:
    predicted, losses = torch.randn(9).double(), torch.rand(9).double()
    terms = []
    for i, j in ((0, 8), (1, 7), (2, 6), (3, 5)):  # the fifth of nine has no partner
        sign = 1.0 if losses[i] > losses[j] else -1.0
        terms.append(max(0.0, -sign * (predicted[i] - predicted[j]).item() + 1.0))
    assert ranking_loss(predicted, losses, 1.0).item() == pytest.approx(2 / 8 * sum(terms))
    shifted = ranking_loss(predicted + 50.0, losses, 1.0)
    assert shifted.item() == pytest.approx(2 / 8 * sum(terms))


def test_no_gradient_reaches_the_losses() -> None:
    losses = torch.rand(4, requires_grad=True)
    predicted = torch.randn(4, requires_grad=True)
    ranking_loss(predicted, losses * 2.0, 5.0).backward()  # type: ignore[no-untyped-call]
    assert losses.grad is None and predicted.grad is not None and predicted.grad.abs().sum() > 0


def test_both_phases_have_the_gradients_of_the_joint_loss_and_their_own_parameters() -> None:
    state, ctx, batch = begun(LEARNER)
    net, module = state.networks["task"], state.networks["loss"]
    assert isinstance(net, TaskNet)
    for name, part in (("task", net), ("loss", module)):
        groups = state.optimizers[name].param_groups
        own = {id(p) for group in groups for p in group["params"]}
        assert own == {id(p) for p in part.parameters()}
    torch.manual_seed(3)
    logits, tapped = net.taps(batch.x, ("conv1", "conv2", "hidden"))
    losses = F.cross_entropy(logits, batch.y, reduction="none")
    joint = losses.mean() + ranking_loss(module(pooled(tapped, tuple(tapped))), losses, 1.0)
    everything = [*net.parameters(), *module.parameters()]
    expected = torch.autograd.grad(joint, everything)
    torch.manual_seed(3)
    LEARNER.step(state, {"labeled": batch}, ctx)
    for parameter, gradient in zip(everything, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("at", "reaches"), [(0, True), (5, True), (6, False), (9, False)])
def test_the_module_lets_go_of_the_network_at_the_given_step(at: int, reaches: bool) -> None:
    start, _, _ = begun(LEARNER)
    plain = one_step(Supervised(**shared(LEARNER)), at)
    both = one_step(LEARNER, at)  # detach 0.6 of 10 steps
    assert moved(weights(plain, "task"), weights(both, "task")) is reaches
    assert moved(weights(start, "loss"), weights(both, "loss"))


def shared(learner: LossPrediction) -> dict[str, Any]:
    return {f.name: getattr(learner, f.name) for f in dataclasses.fields(Supervised)}


def test_batches_of_an_odd_number_and_of_one_row_train() -> None:
    for rows in (5, 1):
        state = one_step(LEARNER, rows=rows)
        assert all(torch.isfinite(p).all() for p in state.networks.parameters())


def test_taps_are_the_last_layers_with_weights_or_those_that_are_named() -> None:
    state, _, _ = begun(dataclasses.replace(LEARNER, taps=("conv2",), width=7))
    module = state.networks["loss"]
    assert module.names == ("conv2",) and module.last.in_features == 7  # type: ignore[union-attr]
    net = state.networks["task"]
    assert isinstance(net, TaskNet)
    assert net.tap_names == ("conv1", "conv2", "hidden")
    with pytest.raises(NeedsError, match="no stage 'conv9'"):
        begun(dataclasses.replace(LEARNER, taps=("conv9",)))
    flat = HookedNet(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), (1, 8, 8))
    with pytest.raises(NeedsError, match="no hidden layers that can be tapped"):
        chosen_taps(flat, None, flat.tap_names[:-1])


def test_layers_are_pooled_whatever_the_size_of_the_images() -> None:
    """Public ports pool by windows of a fixed size, which ties the module to one size of images."""
    learner = LossPrediction()
    widths = []
    for size in (8, 28):
        task = ImageTask(ClassLabel(tuple("abc")), "raw", 1, (size, size))
        nets = learner.networks(context(learner, CNN, task)).eval()
        predicted = learner.extras(nets, torch.rand(4, 1, size, size))["predicted_loss"]
        assert predicted.shape == (4,) and predicted.std() > 0
        widths.append([layer.in_features for layer in nets["loss"].layers])  # type: ignore[union-attr]
    assert widths[0] == widths[1] == [8, 8, 24]


def test_the_largest_prediction_is_labeled_first_with_its_own_id() -> None:
    columns = {"predicted_loss": np.array([-3.0, 8.0, 0.5])}
    picks = rayal.select("learning_loss", columns, 2, ids=["a", "b", "c"])
    assert picks.ids == ("b", "c") and picks.scores.tolist() == [8.0, 0.5]


def test_on_digits_the_module_ranks_losses_and_without_it_training_is_supervised(
    tmp_path: Path,
) -> None:
    on = rounds_of(tmp_path / "on", LearningLoss())
    learner = on.spec.learner
    assert isinstance(learner, LossPrediction) and learner.steps == PLAIN.steps
    without = dataclasses.replace(learner, ranking=0.0)
    off = rounds_of(tmp_path / "off", strategies["margin"](), learner=without)
    plain = rounds_of(tmp_path / "plain", strategies["margin"](), learner=PLAIN)
    with_it = committee_of(on)
    nets = [[p.detach() for p in committee_of(c).net(0).parameters()] for c in (off, plain, on)]
    assert not moved(nets[0], nets[1])  # bit for bit
    assert moved(nets[2], nets[1])
    assert picks(off) == picks(plain)
    assert set(items(on)) != set(items(off))

    raw, y = pool_rows(on)
    x = with_it.task.transform(raw, with_it.statistics)
    with torch.inference_mode():
        predicted = learner.extras(with_it.nets[0], x)["predicted_loss"]
        true = F.cross_entropy(with_it.net(0)(x), y, reduction="none")
    assert kendalltau(predicted, true).statistic > 0.25
    scores = dict(picks(on))
    ranked = {f"digit-{i:04d}": v for i, v in enumerate(predicted.tolist())}
    assert all(ranked[i] == pytest.approx(s, abs=1e-4) for i, s in scores.items())


def test_it_is_averaged_with_the_network_it_reads(tmp_path: Path) -> None:
    learner = dataclasses.replace(LEARNER, swa=0.5)
    state, ctx, batch = begun(learner)
    for step in range(5, 8):
        state.step = step
        learner.step(state, {"labeled": batch}, ctx)
    nets = learner.predictor(state)
    assert set(nets) == {"task", "loss"}
    assert moved(weights(state, "loss"), [p.detach() for p in nets["loss"].parameters()])
    assert set(learner.extras(deepcopy(nets).eval(), batch.x)) == {"predicted_loss"}


def test_candidates_are_a_random_subset_and_are_named_in_the_record(tmp_path: Path) -> None:
    project = rounds_of(tmp_path, LearningLoss(candidates=100))
    chosen = project.ledger.selection("p", 0)
    assert chosen is not None and chosen.provenance["approximation"]["candidates"] < 200


def test_a_network_whose_layers_are_unknown_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    with pytest.raises(NeedsError, match="no hidden layers"):
        rounds_of(tmp_path, LearningLoss(), network=NetworkSpec("mlp", {"widths": ()}))


def test_a_module_that_is_not_trained_is_refused_before_anything_starts(tmp_path: Path) -> None:
    learner = dataclasses.replace(LEARNER, ranking=0.0)
    pool = digit_pool(tmp_path)
    with pytest.raises(NeedsError, match=r"ranking 0.*learner\.ranking above 0"):
        Project.create(Ledger(tmp_path), "p", pool, digit_spec(LearningLoss(), learner=learner))
    assert Ledger(tmp_path).projects() == []
