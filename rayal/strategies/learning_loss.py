"""Learning loss: label what a module on the network's hidden layers expects to go wrong.

Source: Yoo & Kweon, CVPR 2019, "Learning loss for active learning", sections 3.2 (loss prediction
module) and 3.3 (equations 1 and 2: a margin ranking loss on pairs of a mini-batch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from rayal.errors import NeedsError
from rayal.learners import Learner, Supervised, TrainContext, TrainState
from rayal.learners.base import Batches
from rayal.models.base import TaskNet, chosen_taps, pooled, tap_widths
from rayal.registry import learners, strategies
from rayal.selection.topk import TopK
from rayal.signals import Extra, Signal
from rayal.strategies.base import Ctx, Joint
from rayal.types import Columns

TAPS = 4  # the residual networks of the paper have four blocks

# ---- network -------------------------------------------------------------------------------------


class LossModule(nn.Module):
    """Predicts the loss of each row, up to scale and offset, from pooled hidden layers.

    Args:
        names: the layers.
        features: their columns.
        width: columns that each is mapped to before all are joined.
    """

    def __init__(self, names: Sequence[str], features: Sequence[int], width: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.layers = nn.ModuleList(nn.Linear(columns, width) for columns in features)
        self.last = nn.Linear(width * len(self.layers), 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the predicted loss ``[N]`` of pooled layers ``[N, D]``, in the order of names."""
        hidden = [F.relu(f(x)) for f, x in zip(self.layers, features, strict=True)]
        predicted: Tensor = self.last(torch.cat(hidden, dim=1))
        return predicted[:, 0]


# ---- learner -------------------------------------------------------------------------------------


def ranking_loss(predicted: Tensor, losses: Tensor, margin: float) -> Tensor:
    """Return the mean hinge over disjoint pairs of a batch, a number: equation 2.

    Row i is paired with row B - 1 - i; of an odd number of rows the middle one has no partner, and
    one row alone ranks nothing. No gradient reaches the losses.

    Args:
        predicted: ``[B]``.
        losses: ``[B]``, the losses whose order the predictions should have.
        margin: difference that the predictions of a pair should have.
    """
    half = len(losses) // 2
    if half == 0:
        return predicted.sum() * 0.0
    target = losses.detach()
    first, second = target[:half], target.flip(0)[:half]
    sign = torch.where(first > second, 1.0, -1.0)
    difference = predicted[:half] - predicted.flip(0)[:half]
    return F.relu(margin - sign * difference).mean()


@learners.register("loss_prediction")
@dataclass(frozen=True)
class LossPrediction(Supervised):
    """Train a module that predicts each row's loss beside the network that has it.

    Args:
        ranking: weight of the ranking loss; with 0 the network trains as by ``supervised``, and
            nothing predicts losses: the strategy learning_loss refuses it.
        margin: difference that the predictions of a pair should have.
        detach: share of the steps after which the ranking loss no longer reaches the network.
        taps: the hidden layers that are read; null: the last four with weights.
        width: columns of each layer inside the module.
    """

    ranking: Annotated[float, Ge(0)] = 1.0
    margin: Annotated[float, Gt(0)] = 1.0
    detach: Annotated[float, Ge(0), Le(1)] = 0.6
    taps: tuple[str, ...] | None = None
    width: Annotated[int, Gt(0)] = 128

    hashed_as: ClassVar[tuple[str, ...]] = ("rayal.strategies.learning_loss", "LossPrediction")
    answers: ClassVar[tuple[str, ...]] = ("task", "loss")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = Supervised.presets
    taxonomy: ClassVar[str] = "learn to score"
    source: ClassVar[str] = "Yoo & Kweon, CVPR 2019, section 3.3"
    departures: ClassVar[str] = (
        "steps, optimiser and schedule are those of the settings, for network and module alike; "
        "the module is detached after 0.6 of the steps, as after 120 of the paper's 200 epochs; "
        "networks start anew in every round"
    )

    def networks(self, ctx: TrainContext) -> nn.ModuleDict:
        """Return the task's network and the module on its hidden layers."""
        networks = super().networks(ctx)
        task = cast(TaskNet, networks["task"])
        names = chosen_taps(task, self.taps, task.tap_names[-TAPS:])
        widths = tap_widths(task, names, ctx.task.input_shape)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(ctx.chance("loss module"))
            networks["loss"] = LossModule(names, widths, self.width).to(ctx.device)
        return networks

    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        """Do two phases: the network's loss, with the ranking until ``detach``; the module's."""
        batch, done = batches["labeled"], state.step / ctx.steps
        net, module = (
            cast(TaskNet, state.networks["task"]),
            cast(LossModule, state.networks["loss"]),
        )
        bf16 = self.precision == "bf16"
        with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits, tapped = net.taps(batch.x, module.names)
        logits = logits.float() if bf16 else logits
        losses = self.row_losses(logits, batch.y, smoothing=self.label_smoothing, done=done)
        weighted = losses if batch.weight is None else losses * batch.weight
        loss = self.joined(weighted.mean(), state, batches, ctx)
        features = [layer.to(losses.dtype) for layer in pooled(tapped, module.names)]
        if self.ranking and done < self.detach:
            loss = loss + self.ranking * ranking_loss(module(features), losses, self.margin)
        state.descend("task", loss)
        terms = {"loss": loss.item()}
        if self.ranking:
            predicted = module([layer.detach() for layer in features])
            ranking = ranking_loss(predicted, losses, self.margin)
            state.descend("loss", self.ranking * ranking)
            terms["ranking"] = ranking.item()
        self.average(state, ctx)
        return terms

    def extras(self, nets: nn.ModuleDict, x: Tensor) -> Mapping[str, Tensor]:
        """Return ``predicted_loss`` ``[N]``.

        Raises:
            NeedsError: with a ranking of 0 the module is not trained and predicts nothing.
        """
        if not self.ranking:
            raise NeedsError(
                "predicted_loss is asked of loss_prediction with ranking 0, which does not train "
                "the module that predicts it; set learner.ranking above 0 (the paper's is 1), or "
                "choose a strategy that does not ask for it, such as margin"
            )
        task, module = cast(TaskNet, nets["task"]), cast(LossModule, nets["loss"])
        _, tapped = task.taps(x, module.names)
        features = pooled(tapped, module.names)
        return {"predicted_loss": module([f.to(module.last.weight.dtype) for f in features])}


# ---- strategy ------------------------------------------------------------------------------------


@strategies.register("learning_loss")
@dataclass(frozen=True)
class LearningLoss(Joint):
    """Label the items for which a module on hidden layers predicts the largest loss.

    Args:
        members: trained networks; the prediction is that of the first.
        candidates: None ranks the whole pool; the paper ranks a random subset of 10,000 items.
    """

    learner: ClassVar[Learner | None] = LossPrediction()
    taxonomy: ClassVar[str] = "learn to score"
    source: ClassVar[str] = "Yoo & Kweon, CVPR 2019, sections 3.2 and 3.3"
    departures: ClassVar[str] = (
        "the whole pool is ranked unless candidates says of how many items, drawn anew each round"
    )
    approximations: ClassVar[str] = "candidates: the paper's own way to diversity, 10,000 there"

    def signals(self) -> tuple[Signal, ...]:
        """Return the learner's prediction."""
        return (Extra("predicted_loss"),)

    def score(self, s: Columns) -> Tensor:
        """Return the predicted loss, which has no absolute scale."""
        return s["predicted_loss"].double()

    def objective(self, ctx: Ctx) -> TopK:
        """Return the largest predictions, among a random subset where candidates says so."""
        return TopK(share=self.share(ctx))
