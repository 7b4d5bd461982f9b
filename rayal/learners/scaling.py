"""Scaling of raw rows by constants of the whole pool, streamed, and how a layer takes it in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from rayal.learners.base import TrainContext
from rayal.learners.data import Rows

Inputs = Literal["unit", "standard"]
ROWS = 1024  # rows that are read at once


class Scale(nn.Module):
    """Returns (x - shift) / width of raw rows ``[N, …]``, flattened to ``[N, V]``.

    Args:
        input_shape: shape of one row.
    """

    shift: Tensor
    width: Tensor

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        zeros = torch.zeros(input_shape).reshape(-1)
        self.register_buffer("shift", zeros)
        self.register_buffer("width", torch.ones_like(zeros))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled rows ``[N, V]``."""
        return (x.flatten(1) - self.shift) / self.width


@torch.no_grad()
def measure(scale: Scale, rows: Rows, inputs: Inputs) -> None:
    """Set a scale by one pass over rows, with memory for some of them.

    The constants are one per feature or channel. What does not vary (beyond rounding) is only
    shifted.

    Args:
        scale: it is changed.
        rows: all that are trained on.
        inputs: unit: smallest to 0 and largest to 1 | standard: mean 0 and deviation 1.
    """
    shift, width, shape = (_range if inputs == "unit" else _moments)(rows)
    varies = width > torch.finfo(torch.float32).eps * shift.abs()
    width = torch.where(varies, width, torch.ones_like(width))
    for buffer, values in ((scale.shift, shift), (scale.width, width)):
        over = values.reshape(-1, *(1 for _ in shape[1:])).expand(shape)
        buffer.copy_(over.reshape(-1))


def _chunks(rows: Rows) -> Iterator[Tensor]:
    for start in range(0, len(rows), ROWS):
        yield rows.take(torch.arange(start, min(start + ROWS, len(rows)))).double()


def _range(rows: Rows) -> tuple[Tensor, Tensor, torch.Size]:
    low, high, shape = torch.zeros(()), torch.zeros(()), torch.Size()
    for i, x in enumerate(_chunks(rows)):
        over = [d for d in range(x.ndim) if d != 1]
        least, most, shape = x.amin(dim=over), x.amax(dim=over), x.shape[1:]
        low, high = (least, most) if i == 0 else (low.minimum(least), high.maximum(most))
    return low, high - low, shape


def _moments(rows: Rows) -> tuple[Tensor, Tensor, torch.Size]:
    """Return mean and deviation; parts are merged by Chan, Golub & LeVeque, 1979."""
    count, shape = 0, torch.Size()
    mean = square = torch.zeros((), dtype=torch.float64)
    for x in _chunks(rows):
        over = [d for d in range(x.ndim) if d != 1]
        n, shape = x.numel() // x.shape[1], x.shape[1:]
        gap = x.mean(dim=over) - mean
        spread = x.var(dim=over, correction=0) * n
        square = square + spread + gap.square() * (count * n / (count + n))
        mean = mean + gap * (n / (count + n))
        count += n
    return mean, (square / max(count, 1)).sqrt(), shape


@torch.no_grad()
def take_in(linear: nn.Linear, scale: Scale, ctx: TrainContext) -> None:
    """Change a first layer, trained on scaled raw rows, to give the same of transformed rows.

    The eval transform is affine in each number of a row, whatever rows its constants come from. It
    is asked at both ends of the scale: at 0 and 1, digits would cancel of numbers that are large
    beside their spread.

    Args:
        linear: it is changed.
        scale: scale under which it was trained.
        ctx: context with the task and the constants of its eval transform.
    """
    shape = (1, *ctx.task.input_shape)
    shift, width = scale.shift.double().cpu(), scale.width.double().cpu()
    zero, one = (
        ctx.task.transform(end.view(shape), ctx.statistics).double().flatten()
        for end in (shift, shift + width)
    )
    folded = linear.weight.double().cpu() / (one - zero)
    linear.bias.sub_((folded @ zero).to(linear.bias))
    linear.weight.copy_(folded)
