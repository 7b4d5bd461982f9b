"""Signals beside the class predictions: embeddings, heads, moments, views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rayal.errors import NeedsError, nearest
from rayal.models.committee import Committee
from rayal.signals.base import Forward, Signal, extras_of
from rayal.signals.predictions import LogProbs, check_member, log_mean


@dataclass(frozen=True)
class Embedding(Signal):
    """The input of a member's last linear layer, ``embedding`` ``[N, D]``.

    Args:
        member: the member whose network is asked.
    """

    targets: ClassVar[tuple[str, ...]] = ("class", "number")
    narrow: ClassVar[bool] = True

    member: int = 0

    def names(self) -> tuple[str, ...]:
        """Return ``embedding``."""
        return ("embedding",)

    def check(self, committee: Committee) -> None:
        """Raise NeedsError if there is no such member, or its network has no embedding."""
        check_member(self.member, committee)
        committee.net(self.member).head  # noqa: B018 - raises, with what to do

    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return the embedding; it shares its forward pass with the member's log_probs."""
        return {"embedding": f.embedding(self.member).float()}


@dataclass(frozen=True)
class Extra(Signal):
    """A column ``[N, …]`` that the learner gives beside the predictions, of member 0.

    Args:
        name: the column.
    """

    targets: ClassVar[tuple[str, ...]] = ("class", "number")

    name: str

    def names(self) -> tuple[str, ...]:
        """Return the learner's name of the column."""
        return (self.name,)

    def check(self, committee: Committee) -> None:
        """Raise NeedsError unless the learner gives the column for a row of zeros."""
        with torch.inference_mode():
            known = extras_of(committee, _row_of_zeros(committee))
        if self.name not in known:
            raise NeedsError(f"the learner gives no {self.name!r}; {nearest(self.name, known)}")

    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return the column."""
        return {self.name: f.extras()[self.name].float()}


def _row_of_zeros(committee: Committee) -> Tensor:
    weight = next(committee.nets[0].parameters())
    return torch.zeros((1, *committee.task.input_shape), device=weight.device)


@dataclass(frozen=True)
class Moments(Signal):
    """Predictive moments of a number, ``moments`` float64 ``[N, 3]``, in its units.

    They are the mean, the variance of the model (of its weights), and the variance of the noise.
    Members are mixed with equal weights: the spread of their means adds to the model's variance
    (Lakshminarayanan, Pritzel & Blundell, NeurIPS 2017, section 2.4).
    """

    targets: ClassVar[tuple[str, ...]] = ("number",)

    def names(self) -> tuple[str, ...]:
        """Return ``moments``."""
        return ("moments",)

    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return the moments of the members' mixture."""
        moments = torch.stack([f.moments(m) for m in range(f.committee.size)])  # [M, N, 3]
        mixed = moments.mean(dim=0)
        mixed[:, 1] += moments[:, :, 0].var(dim=0, correction=0)
        return {"moments": mixed}


def prediction_of(target: str) -> Signal:
    """Return the signal that tells what a committee predicts of a class or of a number."""
    return LogProbs() if target == "class" else Moments()


@dataclass(frozen=True)
class ViewLogProbs(Signal):
    """Log-probabilities of K augmented views, ``view_log_probs`` ``[N, K, C]``.

    A view's draws come from (model seed, view, id key), so they are the same in any batch. Of
    several members it is the log of their mean.

    Args:
        views: K.
    """

    views: int = 8

    def names(self) -> tuple[str, ...]:
        """Return ``view_log_probs``."""
        return ("view_log_probs",)

    def check(self, committee: Committee) -> None:
        """Raise NeedsError unless there is at least one view."""
        if self.views < 1:
            raise NeedsError(f"views is {self.views}; at least 1 is needed, 8 is usual")

    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return the views in order."""
        members = range(f.committee.size)
        views = [log_mean([f.view(k, m) for m in members]) for k in range(self.views)]
        return {"view_log_probs": torch.stack(views, dim=1)}
