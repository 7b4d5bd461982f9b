"""Uncertainty of one predictive distribution.

References:
    Lewis & Gale, SIGIR 1994 (least confidence); Scheffer, Decomain & Wrobel, IDA 2001 (margin);
    Shannon, Bell System Technical Journal 1948 (entropy).
"""

from __future__ import annotations

import torch
from torch import Tensor

WIDE = 64  # columns from which sorting out the top two of each row is faster


def least_confidence(log_probs: Tensor) -> Tensor:
    """Return 1 - max_c p_c ``[N]`` of log-probabilities ``[N, C]``.

    Computed as -expm1(max log p), which keeps its digits where the maximum is close to 1.
    """
    return -torch.expm1(log_probs.amax(dim=1).double())


def margin(log_probs: Tensor) -> Tensor:
    """Return p_(2) - p_(1), the negated gap of the two largest, ``[N]`` of ``[N, C]``."""
    first, second = (top.double().exp() for top in _two_largest(log_probs))
    return second - first


def _two_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest and the second of each row, ``[N]`` each; of one column, that twice."""
    columns = x.shape[1]
    if columns == 1 or columns > WIDE:
        top = x.topk(min(2, columns), dim=1).values
        return top[:, 0], top[:, -1]
    across = x.T.contiguous()  # a running maximum over columns is vectorised over rows
    first = torch.maximum(across[0], across[1])
    second = torch.minimum(across[0], across[1])
    for column in across[2:]:
        second = torch.maximum(second, torch.minimum(first, column))
        first = torch.maximum(first, column)
    return first, second


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
