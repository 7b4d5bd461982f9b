"""Averages of a network's weights over the last steps, and the BatchNorm statistics they need."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from rayal.learners.base import TrainState
from rayal.learners.loop import batchnorms


def average_of(kind: str, name: str) -> str:
    """Return the key under which ``TrainState.averages`` holds a network's average."""
    return kind if name == "task" else f"{kind}_{name}"


def averaged(state: TrainState, name: str) -> AveragedModel:
    """Return the average of a network's weights."""
    average = state.averages[average_of("swa", name)]
    assert isinstance(average, AveragedModel)
    return average


@torch.no_grad()
def refresh_batchnorm(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of BatchNorm to the mean over the batches of one pass.

    Other modules stay in eval mode: statistics belong to the network as it answers, without
    dropout. A batch of one row is passed over, since it has no variance.
    """
    norms = batchnorms(net)
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    net.eval()
    batches = [x for x in batches if len(x) > 1]
    for norm in norms if batches else ():
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches, each with the same weight
        norm.train()
    for x in batches:
        net(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()
