"""Small networks for small images."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Lt, MinLen
from torch import nn

from rayal.errors import SettingsError
from rayal.models.base import TaskNet
from rayal.registry import networks


@networks.register("small_cnn")
def small_cnn(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    widths: Annotated[tuple[Annotated[int, Gt(0)], ...], MinLen(2)] = (16, 32, 96),
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.5,
) -> TaskNet:
    """Return a small convolutional network: convolutions, a hidden layer, dropout, a linear layer.

    Convolutions are 3 x 3 with padding 1; ReLU and 2 x 2 max-pooling follow each.

    Args:
        input_shape: ``(channels, height, width)`` of an image.
        n_outputs: columns of the logits.
        widths: channels of the convolutions, and last the width of the hidden layer.
        dropout: dropout probability behind the hidden layer.

    Raises:
        SettingsError: rows are no images, or too small to be halved that often.
    """
    channels, height, width = image_shape("small_cnn", input_shape)
    *convolutions, hidden = widths
    halvings = len(convolutions)
    if min(height, width) >> halvings == 0:
        raise SettingsError(
            f"small_cnn: images of {height} x {width} cannot be halved {halvings} times; give "
            "fewer widths, or a larger task.size"
        )
    stages: dict[str, nn.Module] = {}
    for i, outputs in enumerate(convolutions, start=1):
        convolution = nn.Conv2d(channels, outputs, 3, padding=1)
        # the largest is rectified: the same numbers, from a quarter of the rectifications
        stages[f"conv{i}"] = nn.Sequential(convolution, nn.MaxPool2d(2), nn.ReLU(inplace=True))
        channels = outputs
    flat = channels * (height >> halvings) * (width >> halvings)
    stages["hidden"] = nn.Sequential(nn.Flatten(1), nn.Linear(flat, hidden), nn.ReLU(inplace=True))
    stages["dropout"] = nn.Dropout(dropout)
    return TaskNet({**stages, "head": nn.Linear(hidden, n_outputs)})


def image_shape(network: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (channels, height, width), or raise SettingsError where rows are no images."""
    if len(input_shape) != 3:
        raise SettingsError(
            f"{network} takes images [channels, height, width], rows have shape "
            f"{list(input_shape)}; use the network mlp"
        )
    channels, height, width = input_shape
    return channels, height, width
