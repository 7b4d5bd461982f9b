"""Restricted Boltzmann machines: conditionals, and the gradient estimate by contrastive divergence.

References:
    Smolensky, Parallel Distributed Processing, 1986 (the machine);
    Hinton, Neural Computation 14(8), 2002, section 3 (contrastive divergence);
    Welling, Rosen-Zvi & Hinton, NIPS 2004 (Gaussian visible units).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Units = Literal["bernoulli", "gaussian"]
Draw = Callable[[Tensor, Units], Tensor]


@dataclass(frozen=True, eq=False)
class Machine:
    """A restricted Boltzmann machine with binary hidden units.

    Its energy is -hᵀ W v - bᵀ h - cᵀ v for binary visible units, and |v - c|² / 2 - hᵀ W v - bᵀ h
    for Gaussian ones of unit variance.

    Attributes:
        weight: W ``[H, V]``, in the layout of ``nn.Linear``.
        hidden: b ``[H]``.
        visible: c ``[V]``.
        units: of the visible side.
    """

    weight: Tensor
    hidden: Tensor
    visible: Tensor
    units: Units = "bernoulli"

    def hidden_mean(self, v: Tensor) -> Tensor:
        """Return p(h = 1 | v) ``[N, H]``."""
        return torch.sigmoid(v @ self.weight.T + self.hidden)

    def visible_mean(self, h: Tensor) -> Tensor:
        """Return E[v | h] ``[N, V]``."""
        mean = h @ self.weight + self.visible
        return torch.sigmoid(mean) if self.units == "bernoulli" else mean


@dataclass(frozen=True)
class Ascent:
    """The estimated gradient of the mean log-likelihood.

    Attributes:
        weight: ``[H, V]``.
        hidden: ``[H]``.
        visible: ``[V]``.
        error: mean squared error of the first reconstruction's mean, which is only watched.
    """

    weight: Tensor
    hidden: Tensor
    visible: Tensor
    error: Tensor


def drawn(mean: Tensor, units: Units) -> Tensor:
    """Return draws of units with these means, from torch's generator."""
    return torch.bernoulli(mean) if units == "bernoulli" else mean + torch.randn_like(mean)


def contrastive_divergence(
    machine: Machine, data: Tensor, *, steps: int = 1, draw: Draw = drawn
) -> Ascent:
    """Return the contrastive divergence estimate CD-k of a batch.

    The Gibbs chain starts at the data and draws both sides; the statistics take hidden
    probabilities in place of draws, so that with growing k they tend to the exact gradient.

    Args:
        machine: its parameters.
        data: ``[N, V]``; in [0, 1] for binary visible units.
        steps: k, Gibbs steps.
        draw: (means, kind of unit) -> draws.
    """
    first = p = machine.hidden_mean(data)
    v, error = data, data.new_zeros(())
    for step in range(steps):
        mean = machine.visible_mean(draw(p, "bernoulli"))
        if step == 0:
            error = (mean - data).square().mean()
        v = draw(mean, machine.units)
        p = machine.hidden_mean(v)
    n = len(data)
    return Ascent(
        weight=(first.T @ data - p.T @ v) / n,
        hidden=(first - p).mean(dim=0),
        visible=(data - v).mean(dim=0),
        error=error,
    )
