"""Uncertainty of one predictive distribution, of a Dirichlet one, and expected gradient lengths.

References:
    Lewis & Gale, SIGIR 1994 (least confidence); Scheffer, Decomain & Wrobel, IDA 2001 (margin);
    Shannon, Bell System Technical Journal 1948 (entropy); Sensoy, Kaplan & Kandemir, NeurIPS
    2018, equations 1 and 5 (subjective opinions, KL term).
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


def softmax_gradient_length(log_probs: Tensor, embeddings: Tensor) -> Tensor:
    """Return the expected gradient length of the softmax layer, weights and bias, ``[N]``.

    For the label k the gradient of the cross-entropy is (p - e_k) ⊗ (h, 1), so its expected length
    is sqrt(|h|² + 1) Σ_k p_k |p - e_k| (Settles, Craven & Ray, NIPS 2007, for this layer).

    Args:
        log_probs: ``[N, C]``.
        embeddings: inputs h of the layer, ``[N, D]``.
    """
    logs = log_probs.double()
    probs = logs.exp()
    squares = probs * probs  # [N, C]
    others = squares.sum(dim=1, keepdim=True) - squares
    top = squares.argmax(dim=1, keepdim=True)  # its difference would lose all digits
    others.scatter_(1, top, squares.scatter(1, top, 0.0).sum(dim=1, keepdim=True))
    missing = torch.expm1(logs)  # p_k - 1, which of the largest is minus the sum of the others
    missing.scatter_(1, top, -least_confidence(log_probs)[:, None])
    lengths = (probs * (missing * missing + others).sqrt()).sum(dim=1)
    h = embeddings.double()
    return ((h * h).sum(dim=1) + 1.0).sqrt() * lengths
