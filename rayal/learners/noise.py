"""The noise of numbers, as the ordinary learner estimates it: one variance for all rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from rayal.errors import NeedsError
from rayal.learners.base import TrainContext, TrainData
from rayal.learners.loop import plain_batches
from rayal.models.base import TaskNet
from rayal.models.noise import ConstantNoise

if TYPE_CHECKING:
    from rayal.tasks.base import Task

LEAST = 1e-6  # variance of the noise, of that of the labeled numbers: a fit through all of them


def fit_noise(
    net: nn.Module, data: TrainData, rows: Tensor, ctx: TrainContext, *, size: int
) -> None:
    """Set a network's noise variance to its mean squared error on some labeled rows, of numbers.

    Rows that it was trained on show less than its error on others; held-out rows do not.

    Args:
        net: a trained TaskNet.
        data: with the labeled rows.
        rows: int64 ``[n]``, positions of those that are judged.
        ctx: the member.
        size: rows of a batch.
    """
    link = cast(TaskNet, net).link if ctx.task.target == "number" else None
    if not isinstance(link, ConstantNoise):
        return
    net.eval()
    y = ctx.task.standardised(data.labeled.targets[rows], ctx.statistics)
    with torch.inference_mode():
        made = [
            net(x)[:, 0].double() for x in plain_batches(data.labeled.rows, rows, ctx, size=size)
        ]
        error = (torch.cat(made).cpu() - y).square().mean()
    with torch.no_grad():
        link.variance.fill_(max(LEAST, error.item()))


def check_supervised(
    task: Task, net: nn.Module, class_weights: str, label_smoothing: float
) -> None:
    """Raise NeedsError where nothing descends a gradient, or numbers are treated as classes."""
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise NeedsError(
            f"{type(net).__name__} has no weights that descend a gradient; train it by its own "
            "learner (network pbp: learner pbp), or choose another network, such as mlp"
        )
    given = {"class_weights": class_weights != "none", "label_smoothing": label_smoothing > 0}
    for name, wrong in given.items():
        if wrong and task.target == "number":
            raise NeedsError(
                f"learner.{name} is set, and the task predicts a number, which has no classes; "
                "leave it out"
            )
