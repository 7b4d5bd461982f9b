"""Predictions for augmented views of a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rayal.errors import NeedsError
from rayal.models.committee import Committee
from rayal.signals.base import Forward, Signal
from rayal.signals.predictions import log_mean


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
