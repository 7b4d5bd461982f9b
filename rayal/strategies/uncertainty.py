"""Uncertainty sampling by the softmax output.

Source: Wang & Shang, IJCNN 2014, "A new method for deep active learning", section III: least
confidence, margin and entropy over a deep network's softmax; the measures are older (Lewis & Gale
1994; Scheffer et al. 2001; Shannon 1948).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rayal import acquisition
from rayal.registry import strategies
from rayal.signals import LogProbs, Signal
from rayal.strategies.base import Strategy
from rayal.types import Columns

_DEPARTURE = (
    "the paper's unsupervised layer-wise pre-training is a learner, not part of the query rule: "
    "any learner may be combined with it"
)


@dataclass(frozen=True)
class _Softmax(Strategy):
    taxonomy: ClassVar[str] = "informativeness"
    departures: ClassVar[str] = _DEPARTURE

    def signals(self) -> tuple[Signal, ...]:
        """Return the committee's log-probabilities."""
        return (LogProbs(),)


@strategies.register("least_confidence")
@dataclass(frozen=True)
class LeastConfidence(_Softmax):
    """Label the items whose most probable class is least probable."""

    source: ClassVar[str] = "Wang & Shang, IJCNN 2014, section III (least confidence)"

    def score(self, s: Columns) -> Tensor:
        """Return 1 - max_c p_c."""
        return acquisition.least_confidence(s["log_probs"])


@strategies.register("margin")
@dataclass(frozen=True)
class Margin(_Softmax):
    """Label the items with the smallest gap between the two most probable classes."""

    source: ClassVar[str] = "Wang & Shang, IJCNN 2014, section III (margin sampling)"

    def score(self, s: Columns) -> Tensor:
        """Return p_(2) - p_(1)."""
        return acquisition.margin(s["log_probs"])


@strategies.register("entropy")
@dataclass(frozen=True)
class Entropy(_Softmax):
    """Label the items whose predictive distribution has the largest entropy."""

    source: ClassVar[str] = "Wang & Shang, IJCNN 2014, section III (entropy)"

    def score(self, s: Columns) -> Tensor:
        """Return the entropy in nats."""
        return acquisition.entropy(s["log_probs"])
