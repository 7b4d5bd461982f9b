"""Uncertainty of one predictive distribution.

References:
    Lewis & Gale, SIGIR 1994 (least confidence); Scheffer, Decomain & Wrobel, IDA 2001 (margin);
    Shannon, Bell System Technical Journal 1948 (entropy).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

LEAST = -740.0  # a logarithm whose exponential is still 1e-322, and times it nothing
HALF = -math.log(2.0)
SURE = -0.05  # a logarithm from which on float32 costs what is left of 1 too many digits


def least_confidence(log_probs: Tensor) -> Tensor:
    """Return 1 - max_c p_c ``[N]`` of log-probabilities ``[N, C]``.

    Computed as the sum of the other probabilities, which keeps its digits where the maximum is
    close to 1: a float32 logarithm of it has none left there.
    """
    return _ranked(log_probs).others


def margin(log_probs: Tensor) -> Tensor:
    """Return p_(2) - p_(1), the negated gap of the two largest, ``[N]`` of ``[N, C]``.

    Of a sure row p_(1) is 1 - the sum of the others, as in ``least_confidence``.
    """
    first, second = _two_largest(log_probs.mT.contiguous())
    gap = second.double().exp_() - first.double().exp_()
    sure = torch.nonzero(first > SURE)[:, 0]
    if len(sure):
        _, second, others, _ = _ranked(log_probs[sure])
        gap[sure] = (second.double().exp_() + others) - 1.0
    return gap


def entropy(log_probs: Tensor) -> Tensor:
    """Return -sum_c p_c log p_c in nats ``[N]`` of log-probabilities ``[N, C]``; 0 log 0 = 0.

    A p_c above 1/2 is 1 - the sum of the others, as in ``least_confidence``.
    """
    first, _, others, terms = _ranked(log_probs)
    logs = torch.where(first > HALF, torch.log1p(-others), first.double())
    return terms - logs.exp() * logs


class _Ranked(NamedTuple):
    """Of each row: log p_(1) and log p_(2); the sum of p over all but (1), and of -p log p."""

    first: Tensor
    second: Tensor
    others: Tensor  # float64
    terms: Tensor  # float64


def _two_largest(across: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest and the second of each column of ``[C, N]``; of one row, that twice."""
    first = across[0]
    second = first if len(across) == 1 else torch.full_like(first, -math.inf)
    for column in across[1:]:
        second = torch.maximum(second, torch.minimum(first, column))
        first = torch.maximum(first, column)
    return first, second


def _ranked(log_probs: Tensor) -> _Ranked:
    """Return four tensors ``[N]`` of ``[N, C]``; of one column, its log p twice."""
    across = log_probs.mT.contiguous()  # sums over columns are vectorised over rows
    first = across[0]
    others = torch.zeros_like(first, dtype=torch.float64)
    if len(across) == 1:
        return _Ranked(first, first, others, others)
    second, terms = torch.full_like(first, -math.inf), torch.zeros_like(others)
    for column in across[1:]:
        less = torch.minimum(first, column)
        first, second = torch.maximum(first, column), torch.maximum(second, less)
        logs = less.to(torch.float64, copy=True)
        probs = logs.exp()
        others += probs
        terms -= probs.mul_(logs.clamp_min_(LEAST))  # 0 log 0 = 0
    return _Ranked(first, second, others, terms)


def probability_entropy(probs: Tensor) -> Tensor:
    """Return the entropy in nats over the last dimension of probabilities ``[…, C]``."""
    wide = probs.double()
    logs = wide.clamp_min(torch.finfo(torch.float64).tiny).log_()  # 0 log 0 = 0
    return -(wide * logs).sum(dim=-1)
