"""Small networks on the hidden layers of another: pooled features, and how wide they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rayal.errors import NeedsError
from rayal.models.base import TaskNet
from rayal.models.dropout import evaluating


def pooled(tapped: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """Return the mean over positions of each tapped layer, ``[N, D]`` of ``[N, D, …]``.

    Args:
        tapped: what ``TaskNet.taps`` gave.
        names: the layers, in the order of the result.
    """
    return [tapped[n].flatten(2).mean(dim=2) if tapped[n].ndim > 2 else tapped[n] for n in names]


def chosen_taps(net: TaskNet, given: Sequence[str], most: int) -> tuple[str, ...]:
    """Return the layers to tap: the given ones, else the last ``most`` with weights.

    Raises:
        NeedsError: the network's layers are not known, or it has none before the last.
    """
    names = tuple(given) or net.tap_names[-most:]
    if not names:
        raise NeedsError(
            f"{type(net).__name__} has no hidden layers that can be tapped; use a network of "
            "stages with at least one hidden layer, such as small_cnn or resnet18_small, or give "
            "your own as a TaskNet"
        )
    return names


@torch.no_grad()
def tap_widths(net: TaskNet, names: Sequence[str], input_shape: tuple[int, ...]) -> list[int]:
    """Return the columns D of each tapped layer when pooled, by a probe row in eval mode."""
    weight = next(net.parameters())
    row = torch.zeros((1, *input_shape), device=weight.device, dtype=weight.dtype)
    with evaluating(net):
        _, tapped = net.taps(row, names)
    return [features.shape[1] for features in pooled(tapped, names)]
