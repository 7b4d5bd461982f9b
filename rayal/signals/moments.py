"""Predictive moments of a number: its mean, and the variances of model and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rayal.signals.base import Forward, Signal
from rayal.signals.predictions import LogProbs


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
