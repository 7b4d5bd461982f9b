"""Scores of a row from a Dirichlet distribution over class probabilities.

References:
    Sensoy, Kaplan & Kandemir, NeurIPS 2018, equations 1 and 5 (subjective opinions, KL term).
"""

from __future__ import annotations

import torch
from torch import Tensor


def vacuity(log_alpha: Tensor) -> Tensor:
    """Return C / S, the mass that belongs to no class, ``[N]`` of log-concentrations ``[N, C]``.

    S is the sum of the concentrations. Evidence e = alpha - 1 >= 0 keeps it in (0, 1].
    """
    return log_alpha.shape[1] / torch.logsumexp(log_alpha.double(), dim=1).exp()


def divergence_from_uniform(alpha: Tensor) -> Tensor:
    """Return KL(Dir(alpha) || Dir(1, …, 1)) in nats, ``[N]`` of concentrations ``[N, C]`` > 0."""
    total = alpha.sum(dim=1, keepdim=True)
    normalisers = torch.lgamma(total[:, 0]) - torch.lgamma(alpha).sum(dim=1)
    uniform = torch.lgamma(alpha.new_tensor(float(alpha.shape[1])))
    expected = ((alpha - 1.0) * (torch.digamma(alpha) - torch.digamma(total))).sum(dim=1)
    return normalisers - uniform + expected
