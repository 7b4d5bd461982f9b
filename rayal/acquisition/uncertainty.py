"""Uncertainty of one predictive distribution.

References:
    Lewis & Gale, SIGIR 1994 (least confidence); Scheffer, Decomain & Wrobel, IDA 2001 (margin);
    Shannon, Bell System Technical Journal 1948 (entropy).
"""

from __future__ import annotations

import torch
from torch import Tensor


def least_confidence(log_probs: Tensor) -> Tensor:
    """Return 1 - max_c p_c ``[N]`` of log-probabilities ``[N, C]``.

    Computed as -expm1(max log p), which keeps its digits where the maximum is close to 1.
    """
    return -torch.expm1(log_probs.amax(dim=1).double())


def margin(log_probs: Tensor) -> Tensor:
    """Return p_(2) - p_(1), the negated gap of the two largest, ``[N]`` of ``[N, C]``."""
    top = log_probs.topk(min(2, log_probs.shape[1]), dim=1).values.double().exp()
    return top[:, -1] - top[:, 0]


def entropy(log_probs: Tensor) -> Tensor:
    """Return -sum_c p_c log p_c in nats ``[N]`` of log-probabilities ``[N, C]``; 0 log 0 = 0."""
    logs = log_probs.double()
    probs = logs.exp()
    return -torch.where(probs > 0, probs * logs, torch.zeros_like(probs)).sum(dim=1)


def probability_entropy(probs: Tensor) -> Tensor:
    """Return the entropy in nats over the last dimension of probabilities ``[…, C]``."""
    wide = probs.double()
    logs = wide.clamp_min(torch.finfo(torch.float64).tiny).log_()  # 0 log 0 = 0
    return -(wide * logs).sum(dim=-1)
