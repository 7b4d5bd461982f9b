"""Small networks on the hidden layers of another: pooled features, and how wide they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rayal.errors import NeedsError
from rayal.models.base import TaskNet
from rayal.models.dropout import evaluating


def pooled(tapped: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """Return the mean over positions of each tapped layer, ``[N, D]``.

    Args:
        tapped: result of ``TaskNet.taps``: feature maps ``[N, D, H, W]``, the vectors of a
            sequence ``[N, T, D]`` (of padding too, which word embeddings make 0), or ``[N, D]``.
        names: the layers, in the order of the result.
    """
    return [_pooled(tapped[name]) for name in names]


def _pooled(x: Tensor) -> Tensor:
    if x.ndim == 3:
        return x.mean(dim=1)
    return x.flatten(2).mean(dim=2) if x.ndim > 3 else x


def chosen_taps(
    net: TaskNet, given: Sequence[str] | None, default: Sequence[str]
) -> tuple[str, ...]:
    """Return the layers to tap: the given ones, else the default.

    Raises:
        NeedsError: there are none, as in a network whose layers are not known.
    """
    names = tuple(default if given is None else given)
    if not names:
        raise NeedsError(
            f"{type(net).__name__} of stages {', '.join(net.stage_names)} has no hidden layers "
            "that can be tapped; use a network with more hidden layers, such as small_cnn or "
            "resnet18_small, or give your own as a TaskNet of stages"
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
