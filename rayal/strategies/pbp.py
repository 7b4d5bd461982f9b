"""Probabilistic backpropagation: a number's variance under the posterior of a network's weights.

Source: Hernández-Lobato & Adams, ICML 2015, "Probabilistic backpropagation for scalable learning of
Bayesian neural networks", section 3 (assumed-density filtering, refinement of the prior's factors
by expectation propagation) and the experiments on active learning by the predictive variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor, nn

from rayal.errors import NeedsError
from rayal.learners.base import (
    Batches,
    LabeledBatch,
    Learner,
    Stream,
    TrainContext,
    TrainData,
    TrainState,
)
from rayal.learners.filtering import Array, Posterior, PriorFactors, absorb
from rayal.models.probabilistic import ProbabilisticNet
from rayal.registry import learners, strategies
from rayal.selection.objective import Objective
from rayal.selection.topk import TopK, UniformDraw
from rayal.signals import Moments, Signal
from rayal.strategies.base import Ctx, Strategy
from rayal.types import Columns

_ALL = 1e12  # batches of rows in a pass: more than there are

# ---- learner -------------------------------------------------------------------------------------


@learners.register("pbp")
@dataclass(frozen=True)
class ProbabilisticBackpropagation(Learner):
    """Train a network with normal weights by assumed-density filtering, row after row.

    The refinement of the prior is skipped for a weight where it would not leave a normal weight and
    a Gamma distribution of the precision, and shortened where all weights together would not.

    Args:
        steps: passes over all labeled rows, each in an order of its own, with a refinement of the
            prior's factors behind it. Every pass counts the rows again, as in the authors' code,
            so that variances shrink with it: keep it the same in all rounds.
        batch: not used, a pass takes all rows.
        epoch_steps: passes between checkpoints.
    """

    steps: Annotated[int, Gt(0)] = 40
    epoch_steps: Annotated[int, Gt(0)] = 10

    hashed_as: ClassVar[tuple[str, ...]] = ("rayal.strategies.pbp", "ProbabilisticBackpropagation")
    targets: ClassVar[tuple[str, ...]] = ("number",)
    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Hernández-Lobato & Adams, ICML 2015, section 3"
    departures: ClassVar[str] = (
        "the prior's factors of all weights are refined at once, from one posterior, where the "
        "authors' code goes weight by weight. With 10 hidden units, or with 300 rows, variances "
        "rank alike (correlation 0.99); with 50 units and 30 to 60 rows they need not (0.6 to "
        "0.9), as the weights' precision runs off weight by weight, and is updated by a half, a "
        "quarter or less here, as far as it stays a distribution, and not at all where 2^-29 of "
        "the update is too much. A weight is not refined, and keeps its factors, where its cavity "
        "has no variance between 0 and 1e6 or a Gamma distribution without a mean variance (shape "
        "at most 1, rate at most 0), as in that code, and besides where the refined variance is at "
        "most 1e-100, the refined Gamma distribution has no mean variance, or a number is not "
        "finite. Rows are standardised anew in "
        "each round, where that code keeps its first constants. An update is left out for a "
        "weight whose mean is not finite, and for a Gamma distribution of the noise without a "
        "mean variance, which that code lets through"
    )

    def networks(self, ctx: TrainContext) -> nn.ModuleDict:
        """Return the network, with means drawn from the model seed.

        Raises:
            NeedsError: it has no normal weights.
        """
        networks = super().networks(ctx)
        if not isinstance(networks["task"], ProbabilisticNet):
            raise NeedsError(
                "the learner pbp trains normal weights, which this network does not have; set "
                "model: {network: pbp, params: {hidden: [50]}}"
            )
        return networks

    def streams(self) -> tuple[Stream, ...]:
        """Return all labeled rows, in a new order at each step."""
        return (Stream("labeled", "labeled", ratio=_ALL),)

    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        """Return the fresh network, and the factors of its prior as side tables."""
        state = TrainState(self.networks(ctx))
        _keep(state, PriorFactors.of(_posterior(state)))
        return state

    @torch.no_grad()
    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        """Do one pass over the labeled rows, refine the prior, and return the mean -log-density."""
        batch: LabeledBatch = batches["labeled"]
        rows = batch.x.flatten(1).double().cpu().numpy()
        posterior, factors = _posterior(state), _factors(state)
        with np.errstate(all="ignore"):  # updates that are not finite are left out
            logs = [absorb(posterior, x, y) for x, y in zip(rows, batch.y.tolist(), strict=True)]
            factors.refine(posterior)
        _take(state, posterior)
        _keep(state, factors)
        return {"loss": -math.fsum(logs) / len(logs)}


_TABLES = ("precision", "shifted", "shape", "rate")


def _posterior(state: TrainState) -> Posterior:
    net = cast(ProbabilisticNet, state.networks["task"])

    def arrays(tensors: Iterable[Tensor]) -> list[Array]:
        return [t.detach().cpu().numpy().copy() for t in tensors]

    return Posterior(arrays(net.means), arrays(net.variances), *arrays([net.noise, net.prior]))


def _take(state: TrainState, posterior: Posterior) -> None:
    net = cast(ProbabilisticNet, state.networks["task"])
    tensors = (*net.means, *net.variances, net.noise, net.prior)
    arrays = (*posterior.means, *posterior.variances, posterior.noise, posterior.prior)
    for tensor, array in zip(tensors, arrays, strict=True):
        tensor.copy_(torch.from_numpy(array))


def _keep(state: TrainState, factors: PriorFactors) -> None:
    for name in _TABLES:
        for layer, array in enumerate(getattr(factors, name)):
            state.tables[f"{name}.{layer}"] = torch.from_numpy(array)


def _factors(state: TrainState) -> PriorFactors:
    layers = range(len(cast(ProbabilisticNet, state.networks["task"]).means))
    tables = ([state.tables[f"{n}.{i}"].cpu().numpy().copy() for i in layers] for n in _TABLES)
    return PriorFactors(*tables)


# ---- strategy ------------------------------------------------------------------------------------


@strategies.register("pbp")
@dataclass(frozen=True)
class PBP(Strategy):
    """Label the items whose predicted number has the largest variance under the weights.

    Args:
        members: trained networks; the spread of their means counts too.
        query: the choice of items: variance | random (the same learner, and items as ``random``
            draws them).
    """

    query: Literal["variance", "random"] = "variance"

    learner: ClassVar[Learner | None] = ProbabilisticBackpropagation()
    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Hernández-Lobato & Adams, ICML 2015, experiments on active learning"
    departures: ClassVar[str] = (
        "the paper asks for one item at a time; k of them are the k largest variances. The noise's "
        "variance is the same for all items and is left out of the score"
    )

    def trained_by(self, chosen: Learner) -> Learner:
        """Return the chosen learner where it is of this kind, else the method's own as it is.

        Nothing is taken from another learner: its steps are of another size.
        """
        own = self.learner
        assert own is not None
        return chosen if isinstance(chosen, type(own)) else own

    def signals(self) -> tuple[Signal, ...]:
        """Return the predictive moments."""
        return (Moments(),) if self.query == "variance" else ()

    def score(self, s: Columns) -> Tensor | None:
        """Return the model's variance, in squared units of the number."""
        return s["moments"][:, 1].double() if self.query == "variance" else None

    def objective(self, ctx: Ctx) -> Objective:
        """Return the largest variances, or the draw of ``random``."""
        return TopK() if self.query == "variance" else UniformDraw()
