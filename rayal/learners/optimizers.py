"""Optimisers of the learners, and which weights have a learning rate of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from rayal.models.base import TaskNet

OptimizerName = Literal["adam", "adamw", "sgd"]


def trained_groups(net: nn.Module, encoder_lr: float) -> Sequence[Any]:
    """Return a network's trained weights, in groups where it has an encoder.

    Args:
        net: the network.
        encoder_lr: learning rate of the encoder's weights.
    """
    everything = [p for p in net.parameters() if p.requires_grad]
    encoder = net.encoder if isinstance(net, TaskNet) else None
    own = [] if encoder is None else [p for p in encoder.parameters() if p.requires_grad]
    if not own:
        return everything
    apart = {id(p) for p in own}
    rest = [p for p in everything if id(p) not in apart]
    return [{"params": rest}, {"params": own, "lr": encoder_lr}]


def make_optimizer(
    name: OptimizerName, weights: Sequence[Any], *, lr: float, weight_decay: float, momentum: float
) -> Optimizer:
    """Return the optimiser; fused, which saves a tenth of a step of a small network.

    Args:
        name: adam (weight decay as a norm penalty) | adamw (decoupled) | sgd.
        weights: what ``trained_groups`` gave.
        lr: learning rate of groups that name none.
        weight_decay: its strength.
        momentum: of sgd.
    """
    if name == "sgd":
        return SGD(weights, lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    kind = Adam if name == "adam" else AdamW
    return kind(weights, lr, weight_decay=weight_decay, fused=True)
