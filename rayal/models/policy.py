"""A policy over a few candidates: a network with normal weights on the moments of all of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rayal.models.moments import NormalLinear, log_probit, normal_layers, propagate


class PolicyNet(nn.Module):
    """A network that gives M candidates probabilities: Φ(mean / sqrt(1 + variance)) by their sum.

    Its input is normal: the means and variances of all candidates, one behind the other. Where
    there are fewer than M, the places of the others are zero, and they are never taken.

    Args:
        slots: M.
        classes: C.
        hidden: width of the hidden layer.
        seed: seed of the initial weights.
    """

    def __init__(self, slots: int, classes: int, *, hidden: int, seed: int) -> None:
        super().__init__()
        self.slots, self.classes = slots, classes
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            first, last = nn.Linear(slots * classes, hidden), nn.Linear(hidden, slots)
        self.layers = nn.Sequential(NormalLinear(first), nn.ReLU(), NormalLinear(last))

    def forward(self, mean: Tensor, variance: Tensor, counts: Tensor) -> Tensor:
        """Return log-probabilities ``[B, M]`` of the candidates, float64; -inf behind the last one.

        Args:
            mean: ``[B, M, C]``.
            variance: ``[B, M, C]``.
            counts: int64 ``[B]``, how many candidates there are.
        """
        chances = log_probit(*propagate(self.layers, mean.flatten(1), variance.flatten(1)))
        there = torch.arange(self.slots) < counts[:, None]
        return chances.double().masked_fill(~there, -torch.inf).log_softmax(dim=1)

    def padded(self, moments: Tensor) -> Tensor:
        """Return moments ``[m, C]`` of m candidates with zeros behind them, ``[M, C]``."""
        missing = self.slots - len(moments)
        return torch.cat([moments, moments.new_zeros(missing, self.classes)])

    def divergence(self, precision: float) -> Tensor:
        """Return the sum of both layers' divergences from N(0, 1 / precision)."""
        return torch.stack([layer.divergence(precision) for layer in normal_layers(self)]).sum()


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """Return R_t = Σ_s gamma^s r_(t+s) of rewards ``[k]``."""
    returns = torch.empty_like(rewards)
    later = rewards.new_zeros(())
    for step in range(len(rewards) - 1, -1, -1):
        later = rewards[step] + gamma * later
        returns[step] = later
    return returns
