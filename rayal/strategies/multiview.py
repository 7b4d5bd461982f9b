"""AL-MV: hidden layers of one network as views of an item, each with an uncertainty of its own.

Source: He, Jin, Ding, Yi & Yan, ICME 2019, "Towards better uncertainty sampling: active learning
with multiple views for deep convolutional neural network". The paper's text was not at hand: what
stands here is a reconstruction from what surveys say of it (uncertainties of several hidden
layers, weighed adaptively per layer).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn import functional as F

from rayal import acquisition
from rayal.errors import NeedsError
from rayal.learners import Learner, Supervised, TrainContext, TrainData, TrainState
from rayal.learners.loop import plain_batches
from rayal.models.base import TaskNet, chosen_taps, pooled, tap_widths
from rayal.models.dropout import evaluating
from rayal.registry import learners, strategies
from rayal.signals import Extra, Signal
from rayal.strategies.base import Strategy
from rayal.types import Columns, id_keys

# ---- network -------------------------------------------------------------------------------------


class ViewHeads(nn.Module):
    """A linear softmax head on each of some pooled hidden layers; fitted, not descended.

    Args:
        names: the layers.
        features: their columns.
        classes: C.
    """

    accuracy: Tensor

    def __init__(self, names: Sequence[str], features: Sequence[int], classes: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.heads = nn.ModuleList(nn.Linear(columns, classes) for columns in features)
        self.requires_grad_(False)
        #: accuracy of each head, and last of the network's own, float32 [L]
        self.register_buffer("accuracy", torch.zeros(len(self.names) + 1))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return log-probabilities ``[N, C]`` of each head, of pooled layers ``[N, D]``."""
        return [F.log_softmax(head(x), dim=1) for head, x in zip(self.heads, features, strict=True)]


# ---- learner -------------------------------------------------------------------------------------


def fit_head(x: Tensor, y: Tensor, classes: int, ridge: float) -> tuple[Tensor, Tensor]:
    """Return weight ``[C, D]`` and bias ``[C]``, float64, of multinomial logistic regression.

    Features are standardised for the norm penalty, ½ ridge |W|², and the mean cross-entropy.

    Args:
        x: ``[n, D]``.
        y: int64 ``[n]``.
        classes: C.
        ridge: strength of the penalty, > 0, so that the minimum is unique but for a common bias.
    """
    x = x.double()
    mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0)
    scale = torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation))
    z = (x - mean) / scale
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(z @ weight.T + bias, y) + 0.5 * ridge * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        solver.step(loss)  # type: ignore[no-untyped-call]
    own = weight.detach() / scale
    return own, bias.detach() - own @ mean


def held_out_accuracy(x: Tensor, y: Tensor, folds: Sequence[Tensor], *, ridge: float) -> float:
    """Return the share of rows that a head fitted on the other folds gets right.

    Args:
        x: ``[n, D]``.
        y: int64 ``[n]``.
        folds: positions of each fold; a single fold gives 0, as nothing is known then.
        ridge: strength of the penalty.
    """
    right = 0
    for fold in folds if len(folds) > 1 else ():
        rest = torch.ones(len(y), dtype=torch.bool)
        rest[fold] = False
        weight, bias = fit_head(x[rest], y[rest], int(y.max()) + 1, ridge)
        right += int(((x[fold].double() @ weight.T + bias).argmax(dim=1) == y[fold]).sum())
    return right / len(y)


@learners.register("hidden_views")
@dataclass(frozen=True)
class HiddenViews(Supervised):
    """Train as ``supervised`` does, then fit a linear softmax head on each hidden layer.

    Args:
        taps: the hidden layers; null: up to four with weights before the one that feeds the last
            layer; none at all leaves the network's own prediction.
        folds: folds of the cross-validation, by id key, which measures each head's accuracy.
        ridge: norm penalty of the heads.
    """

    taps: tuple[str, ...] | None = None
    folds: Annotated[int, Ge(2)] = 5
    ridge: Annotated[float, Gt(0)] = 1e-2

    hashed_as: ClassVar[tuple[str, ...]] = ("rayal.strategies.multiview", "HiddenViews")
    targets: ClassVar[tuple[str, ...]] = ("class",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = Supervised.presets
    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "after He et al., ICME 2019"
    departures: ClassVar[str] = (
        "heads are fitted on the trained network's pooled layers, so training is not changed by "
        "them; the network's own prediction is judged by a head on its embedding, since it has "
        "seen all labeled rows itself. So has the embedding, and its accuracy is the more "
        "optimistic (60 digits: 0.75 stated, 0.47 on the pool; hidden layers within 0.11)"
    )

    def networks(self, ctx: TrainContext) -> nn.ModuleDict:
        """Return the task's network and the heads on its hidden layers."""
        networks = super().networks(ctx)
        task = cast(TaskNet, networks["task"])
        names = self.taps
        if names != ():
            names = chosen_taps(task, self.taps, task.tap_names[:-1][-4:])
        widths = tap_widths(task, names, ctx.task.input_shape)
        with torch.random.fork_rng(devices=[]):  # their first values are replaced
            torch.default_generator.manual_seed(0)
            networks["views"] = ViewHeads(names, widths, ctx.n_outputs).to(ctx.device)
        return networks

    def on_end(self, state: TrainState, ctx: TrainContext, data: TrainData) -> None:
        """Fit the heads on the labeled rows, and cross-validate them."""
        super().on_end(state, ctx, data)
        net = cast(TaskNet, super().predictor(state)["task"])
        views = cast(ViewHeads, state.networks["views"])
        features = self._features(net, views.names, ctx, data)
        y = data.labeled.targets
        order = torch.from_numpy(id_keys(data.labeled.rows.ids).argsort())
        folds = [order[i :: self.folds] for i in range(min(self.folds, len(order)))]
        for index, x in enumerate(features):
            views.accuracy[index] = held_out_accuracy(x, y, folds, ridge=self.ridge)
        for head, x in zip(views.heads, features[:-1], strict=True):
            weight, bias = fit_head(x, y, ctx.n_outputs, self.ridge)
            cast(nn.Linear, head).weight.copy_(weight)
            cast(nn.Linear, head).bias.copy_(bias)

    def _features(
        self, net: TaskNet, names: Sequence[str], ctx: TrainContext, data: TrainData
    ) -> list[Tensor]:
        """Return the pooled layers and the embedding of the labeled rows, ``[n, D]`` each."""
        batches = []
        everything = torch.arange(len(data.labeled))
        with evaluating(net), torch.no_grad():
            for x in plain_batches(data.labeled.rows, everything, ctx, size=self.batch):
                _, tapped = net.taps(x, names)
                batches.append([f.cpu() for f in (*pooled(tapped, names), net.embed(x).flatten(1))])
        return [torch.cat(parts) for parts in zip(*batches, strict=True)]

    def predictor(self, state: TrainState) -> nn.ModuleDict:
        """Return the network that answers, and the heads."""
        nets = super().predictor(state)
        nets["views"] = state.networks["views"]
        return nets

    def extras(self, nets: nn.ModuleDict, x: Tensor) -> Mapping[str, Tensor]:
        """Return ``hidden_log_probs`` ``[N, L, C]`` and ``view_accuracy`` ``[N, L]``.

        The network's own prediction is the last of the L views.
        """
        task, views = cast(TaskNet, nets["task"]), cast(ViewHeads, nets["views"])
        logits, tapped = task.taps(x, views.names)
        features = [f.to(views.accuracy.dtype) for f in pooled(tapped, views.names)]
        own = F.log_softmax(logits, dim=1, dtype=torch.float32)
        log_probs = torch.stack([*(v.float() for v in views(features)), own], dim=1)
        return {
            "hidden_log_probs": log_probs,
            "view_accuracy": views.accuracy.expand(len(x), -1).clone(),
        }


# ---- strategy ------------------------------------------------------------------------------------


@strategies.register("multiview")
@dataclass(frozen=True)
class MultiView(Strategy):
    """Label the items that the views of several hidden layers are most uncertain of.

    The score is Σ_l a_l H_l / log C, the views' entropies in [0, 1] with weights that sum to 1.

    Args:
        members: trained networks; the views are those of the first.
        weights: weights of the views: accuracy (a_l = softmax of the held-out accuracies /
            temperature) | uniform.
        temperature: softness of these weights; towards 0 the best view has all the weight.
        disagreement: weight of the views' Jensen-Shannon divergence / log C, which is added.
    """

    weights: Literal["accuracy", "uniform"] = "accuracy"
    temperature: Annotated[float, Gt(0)] = 0.1
    disagreement: Annotated[float, Ge(0)] = 0.0

    learner: ClassVar[Learner | None] = HiddenViews()
    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "He, Jin, Ding, Yi & Yan, ICME 2019 (reconstruction)"
    departures: ClassVar[str] = (
        "a reconstruction, the paper's text was not at hand: what a view's classifier is, and how "
        "views are weighed, is rayal's choice (linear heads on pooled layers; cross-validated "
        "accuracies under a softmax). Views are weighed by accuracy or alike; weights that are "
        "learned are not offered, nor is deep supervision, an auxiliary loss of the heads that "
        "would train the network's hidden layers"
    )

    def signals(self) -> tuple[Signal, ...]:
        """Return the views' predictions, and how often each view is right."""
        return (Extra("hidden_log_probs"), Extra("view_accuracy"))

    def score(self, s: Columns) -> Tensor:
        """Return the weighed mean of the views' normalised entropies ``[N]``.

        Raises:
            NeedsError: there is one class, whose entropy has no largest value to compare with.
        """
        log_probs = s["hidden_log_probs"]  # [N, L, C]
        rows, views, classes = log_probs.shape
        if classes < 2:
            raise NeedsError(
                f"multiview compares entropies with log C, and hidden_log_probs of shape "
                f"{list(log_probs.shape)} have C = {classes} classes; give at least 2"
            )
        entropies = acquisition.entropy(log_probs.reshape(-1, classes)).view(rows, views)
        largest = math.log(classes)
        accuracy = s["view_accuracy"].double()
        if self.weights == "uniform":
            accuracy = torch.zeros_like(accuracy)
        score = (torch.softmax(accuracy / self.temperature, dim=1) * (entropies / largest)).sum(1)
        if self.disagreement:
            divergence = acquisition.bald_of_members(log_probs) / largest
            score = score + self.disagreement * divergence
        return score
