"""Deep Bayesian active learning with MC dropout.

Source: Gal, Islam & Ghahramani, ICML 2017, "Deep Bayesian active learning with image data",
section 4: acquisition functions over T stochastic forward passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from rayal import acquisition
from rayal.registry import strategies
from rayal.signals import MemberStats, Signal
from rayal.strategies.base import Strategy
from rayal.types import Columns

MASKS = "dropout masks are drawn once per pass and shared by all items, not per item"
_DECAY = (
    "the weight decay is the learner's and constant, where the paper's falls with the number of "
    "labeled items as 1/n"
)


@dataclass(frozen=True)
class Disagreement(Strategy):
    """Base of the scores over members x passes.

    Args:
        members: trained networks.
        passes: dropout masks per network; 0 uses the networks as they are.
    """

    passes: Annotated[int, Ge(0)] = 100

    taxonomy: ClassVar[str] = "informativeness"
    departures: ClassVar[str] = f"{MASKS}; {_DECAY}"

    def signals(self) -> tuple[Signal, ...]:
        """Return streamed statistics of the members' predictions."""
        return (MemberStats(passes=self.passes),)


@strategies.register("bald")
@dataclass(frozen=True)
class BALD(Disagreement):
    """Label the items whose label says most about the network's weights."""

    source: ClassVar[str] = "Gal, Islam & Ghahramani, ICML 2017, section 4 (BALD)"

    def score(self, s: Columns) -> Tensor:
        """Return H[mean] - mean H in nats."""
        return acquisition.bald(s["member_stats.mean"], s["member_stats.entropy"])


@strategies.register("mc_entropy")
@dataclass(frozen=True)
class MCEntropy(Disagreement):
    """Label the items whose mean prediction has the largest entropy."""

    source: ClassVar[str] = "Gal, Islam & Ghahramani, ICML 2017, section 4 (max entropy)"

    def score(self, s: Columns) -> Tensor:
        """Return H[mean] in nats."""
        return acquisition.probability_entropy(s["member_stats.mean"])


@strategies.register("variation_ratio")
@dataclass(frozen=True)
class VariationRatio(Disagreement):
    """Label the items with the least agreement on one class.

    Args:
        members: trained networks.
        passes: dropout masks per network; 0 uses the networks as they are.
        form: quantity compared: "mean" is 1 - max_c of the mean probabilities, the paper's; "vote"
            is 1 - the modal class's share of the members' votes, whose many ties go by BALD, then
            by entropy.
    """

    form: Literal["mean", "vote"] = "mean"

    source: ClassVar[str] = "Gal, Islam & Ghahramani, ICML 2017, section 4 (variation ratios)"

    def score(self, s: Columns) -> Tensor:
        """Return the ratio ``[N]``, with BALD and entropy behind it in the vote form."""
        mean = s["member_stats.mean"]
        if self.form == "mean":
            return acquisition.variation_ratio_mean(mean)
        votes = acquisition.variation_ratio_vote(s["member_stats.votes"])
        bald = acquisition.bald(mean, s["member_stats.entropy"])
        return torch.stack([votes, bald, acquisition.probability_entropy(mean)], dim=1)


@strategies.register("mean_std")
@dataclass(frozen=True)
class MeanSTD(Disagreement):
    """Label the items with the largest standard deviation, averaged over classes."""

    source: ClassVar[str] = "Gal, Islam & Ghahramani, ICML 2017, section 4 (mean STD)"

    def score(self, s: Columns) -> Tensor:
        """Return the mean over classes of sqrt(E[p²] - E[p]²)."""
        return acquisition.mean_standard_deviation(s["member_stats.variance"])
