"""DEAL: deep evidential active learning for image classification.

Source: Hemmer, Kühl & Schöffer, ICMLA 2020, "DEAL: deep evidential active learning for image
classification", sections III-B (the network gives a Dirichlet distribution, trained by the type II
likelihood and an annealed Kullback-Leibler term) and III-C (minimal margin of its mean). The loss
is that of Sensoy, Kaplan & Kandemir, NeurIPS 2018, equations 3 and 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, cast, get_args

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from rayal import acquisition
from rayal.errors import SettingsError, nearest
from rayal.learners import Learner, Supervised, TrainContext
from rayal.models.base import TaskNet
from rayal.registry import learners, strategies
from rayal.signals import Extra, LogProbs, Signal
from rayal.strategies.base import Strategy
from rayal.types import Columns

Evidence = Literal["softsign", "relu", "softplus", "exp"]
Acquisition = Literal["margin", "uncertainty", "entropy"]

# ---- network -------------------------------------------------------------------------------------


def _softsign(z: Tensor) -> Tensor:
    """Return log(1 + z / (1 + |z|)), with all digits also where alpha is close to 0."""
    nothing = torch.zeros_like(z)  # in the branch that is not taken, whose gradient stays finite
    above, below = torch.where(z >= 0, z, nothing), torch.where(z >= 0, nothing, z)
    grown = torch.log1p(2.0 * above) - torch.log1p(above)
    return torch.where(z >= 0, grown, -torch.log1p(-below))


_LOG_ALPHA: dict[str, Callable[[Tensor], Tensor]] = {
    "softsign": _softsign,
    "relu": lambda z: torch.log1p(F.relu(z)),
    "softplus": lambda z: torch.log1p(F.softplus(z)),
    "exp": lambda z: torch.log1p(z.clamp(-10.0, 10.0).exp()),
}


class LogConcentration(nn.Module):
    """Makes log alpha ``[N, C]`` of the last layer's output, alpha = 1 + evidence.

    As logits it predicts the mean of Dir(alpha): softmax(log alpha) = alpha / S.

    Args:
        evidence: softsign | relu | softplus | exp (of the output, limited to ±10).
    """

    def __init__(self, evidence: Evidence) -> None:
        super().__init__()
        self.evidence = evidence

    def forward(self, z: Tensor) -> Tensor:
        """Return log alpha ``[N, C]``, float32 or wider."""
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        return _LOG_ALPHA[self.evidence](wide)


# ---- learner -------------------------------------------------------------------------------------


def evidential_loss(log_alpha: Tensor, y: Tensor, weight: float) -> Tensor:
    """Return the loss of each row in float64, ``[B]``: -log of the type II likelihood + KL term.

    The Kullback-Leibler term compares with the uniform Dirichlet, and leaves out the evidence of
    the true class: alpha~ = y + (1 - y) alpha.

    Args:
        log_alpha: ``[B, C]``.
        y: one-hot targets, or smoothed ones, ``[B, C]``.
        weight: weight of the Kullback-Leibler term.
    """
    logs, y = log_alpha.double(), y.double()
    likelihood = (y * (torch.logsumexp(logs, dim=1, keepdim=True) - logs)).sum(dim=1)
    if weight == 0.0:
        return likelihood
    others = y + (1.0 - y) * logs.exp()
    return likelihood + weight * acquisition.divergence_from_uniform(others)


@learners.register("evidential")
@dataclass(frozen=True)
class Evidential(Supervised):
    """Train a network that gives a Dirichlet distribution over class probabilities.

    Args:
        evidence: map from the last layer's output to evidence: softsign (in (-1, 1), so alpha is
            in (0, 2)) | relu | softplus | exp, whose evidence is not negative.
        annealing: share of the steps in which the Kullback-Leibler weight rises linearly from 0.
        divergence: the Kullback-Leibler weight that it rises to.
        dense_decay: strength of the norm penalty ½|W|² on the last two linear layers.

    Raises:
        SettingsError: an unknown choice.
    """

    evidence: Evidence = "softsign"
    annealing: Annotated[float, Gt(0), Le(1)] = 0.5
    divergence: Annotated[float, Ge(0)] = 1.0
    dense_decay: Annotated[float, Ge(0)] = 0.005

    hashed_as: ClassVar[tuple[str, ...]] = ("rayal.strategies.deal", "Evidential")
    targets: ClassVar[tuple[str, ...]] = ("class",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = Supervised.presets
    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Hemmer, Kühl & Schöffer, ICMLA 2020, section III-B"
    departures: ClassVar[str] = (
        "the Kullback-Leibler weight rises over half of the steps, as 50 of the authors' 100 "
        "epochs; steps, optimiser and batch are those of the settings. So is weight_decay, which "
        "acts on all weights beside dense_decay: by adam or sgd the two add up on the last two "
        "linear layers; with 0 these alone are decayed, as published"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evidence not in get_args(Evidence):
            raise SettingsError(
                f"evidential.evidence: {self.evidence!r} does not exist; "
                f"{nearest(self.evidence, get_args(Evidence))}"
            )

    def networks(self, ctx: TrainContext) -> nn.ModuleDict:
        """Return the task's network, whose logits are log alpha."""
        networks = super().networks(ctx)
        cast(TaskNet, networks["task"]).link = LogConcentration(self.evidence)
        return networks

    def row_losses(self, logits: Tensor, y: Tensor, *, smoothing: float, done: float) -> Tensor:
        """Return ``evidential_loss`` with the annealed weight, float32 ``[B]``."""
        classes = logits.shape[1]
        targets = F.one_hot(y, classes) * (1.0 - smoothing) + smoothing / classes
        weight = self.divergence * min(1.0, done / self.annealing)
        return evidential_loss(logits, targets, weight).to(logits.dtype)

    def penalty(self, net: nn.Module) -> Tensor | None:
        """Return dense_decay · ½|W|² over the weights of the last two linear layers."""
        dense = [m for m in net.modules() if isinstance(m, nn.Linear)][-2:]
        if not self.dense_decay or not dense:
            return None
        return 0.5 * self.dense_decay * torch.stack([m.weight.square().sum() for m in dense]).sum()

    def extras(self, nets: nn.ModuleDict, x: Tensor) -> Mapping[str, Tensor]:
        """Return ``alpha`` ``[N, C]`` and ``vacuity`` ``[N]``."""
        log_alpha = nets["task"](x)
        return {"alpha": log_alpha.exp(), "vacuity": acquisition.vacuity(log_alpha)}


# ---- strategy ------------------------------------------------------------------------------------


@strategies.register("deal")
@dataclass(frozen=True)
class DEAL(Strategy):
    """Label the items whose mean Dirichlet prediction has the smallest margin.

    Args:
        members: trained networks; the uncertainty mass is that of the first.
        acquisition: the score: margin (of the mean) | uncertainty (C / S, the mass that belongs to
            no class) | entropy (of the mean).
    """

    acquisition: Acquisition = "margin"

    learner: ClassVar[Learner | None] = Evidential()
    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Hemmer, Kühl & Schöffer, ICMLA 2020, section III-C"
    departures: ClassVar[str] = (
        "that the margin is the method's own measure follows the paper's comparisons, its text was "
        "not at hand. Evidence by softsign as published may be negative: a fitted row then has as "
        "much uncertainty mass as one that nothing is known of (C = 10: 1.00 both), so uncertainty "
        "wants evidence: softplus or exp"
    )

    def signals(self) -> tuple[Signal, ...]:
        """Return the mean prediction, or the uncertainty mass."""
        return (Extra("vacuity") if self.acquisition == "uncertainty" else LogProbs(),)

    def score(self, s: Columns) -> Tensor:
        """Return the margin of the mean as ``margin`` does, its entropy, or C / S."""
        if self.acquisition == "uncertainty":
            return s["vacuity"].double()
        measure = acquisition.margin if self.acquisition == "margin" else acquisition.entropy
        return measure(s["log_probs"])
