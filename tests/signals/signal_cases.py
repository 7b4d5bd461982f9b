"""Committees and batches that the tests of signals share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rayal.labels import ClassLabel
from rayal.models import (
    Committee,
    HookedNet,
    TaskNet,
    build_network,
)
from rayal.models.committee import Extras
from rayal.signals import (
    Embedding,
    Forward,
    LogProbs,
    MemberLogProbs,
    MemberMoments,
    MemberStats,
    Signal,
    ViewLogProbs,
    compute,
)
from rayal.tasks import ImageTask, TableTask, Task
from rayal.types import id_keys

IMAGES = ImageTask(ClassLabel(tuple("abcd")), "raw", 1, (8, 8), flip=True)
TABLE = TableTask(ClassLabel(("a", "b")), ("f",))
EVERY = (
    LogProbs(),
    LogProbs(member=1),
    Embedding(),
    MemberStats(passes=3),
    ViewLogProbs(views=2),
    MemberLogProbs(passes=2),
    MemberMoments(passes=2),
)


class Fixed(nn.Module):
    """Answers the same log-probabilities for every row."""

    def __init__(self, *probs: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probs, dtype=torch.float64).log())

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


class Normed(nn.Module):
    """Layers with every kind of state, whose stages are unknown."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 5), nn.Dropout(0.5), nn.Linear(5, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def committee(nets: Sequence[TaskNet], task: Task = IMAGES, extras: Extras | None = None) -> Any:
    members = tuple(nn.ModuleDict({"task": net}) for net in nets)
    return Committee(members, task, {}, "hash", seed=5, round=2, extras=extras)


def cnns(count: int = 2, **params: Any) -> Any:
    shape = IMAGES.input_shape
    nets = [
        build_network("small_cnn", params, input_shape=shape, n_outputs=4, seed=s)
        for s in range(count)
    ]
    return committee(nets)


def fixed(*members: tuple[float, ...]) -> Any:
    return committee([HookedNet(Fixed(*probs), (1,)) for probs in members], TABLE)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn((n, 1, 8, 8), generator=torch.Generator().manual_seed(seed))


def ask(asked: Any, x: Tensor, *signals: Signal, start: int = 0) -> dict[str, Tensor]:
    ids = [f"item/{start + i}" for i in range(len(x))]
    return compute(signals, Forward(asked, x, ids, id_keys(ids)))


def count_calls(module: nn.Module) -> list[int]:
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    module.register_forward_pre_hook(count)
    return calls
