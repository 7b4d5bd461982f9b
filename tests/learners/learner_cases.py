"""A small task, tiny networks and a store that can be killed, for tests of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rayal.labels import ClassLabel
from rayal.learners import (
    LabeledRows,
    Learner,
    TensorRows,
    TrainContext,
    TrainData,
    TrainState,
    fit,
)
from rayal.tasks import TableTask

CLASSES, FEATURES = 3, 4


class Killed(Exception):
    """What ends a training in a test."""


@dataclass
class DirStore:
    """Checkpoints in a folder; raises at one epoch, before or after it counts."""

    folder: Path
    kill_before: int | None = None
    kill_after: int | None = None
    rows: dict[int, tuple[Path, bool]] = field(default_factory=dict)

    def latest(self) -> tuple[int, Path] | None:
        return (max(self.rows), self.rows[max(self.rows)][0]) if self.rows else None

    def save(self, epoch: int, write: Callable[[Path], None], final: bool) -> None:
        path = self.folder / f"{epoch}.safetensors"
        write(path)
        if epoch == self.kill_before:
            self.kill_before = None
            raise Killed
        self.rows[epoch] = (path, final)
        if epoch == self.kill_after:
            self.kill_after = None
            raise Killed


TASK = TableTask(ClassLabel(("a", "b", "c")), ("w", "x", "y", "z"))


def tiny_net(seed: int, *, dropout: float = 0.3, norm: bool = True) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = [nn.BatchNorm1d(8)] if norm else []
        return nn.Sequential(
            nn.Linear(FEATURES, 8), *middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, CLASSES)
        )


def tiny_data(n: int = 20, *, unlabeled: int = 30, classes: int = CLASSES) -> TrainData:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n + unlabeled, FEATURES, generator=draw)
    y = torch.arange(n) % classes
    ids = [f"item:{i:04d}" for i in range(n + unlabeled)]
    x[:n] += 2.0 * nn.functional.one_hot(y, FEATURES)
    return TrainData(
        LabeledRows(TensorRows(ids[:n], x[:n]), y), unlabeled=TensorRows(ids[n:], x[n:])
    )


def tiny_context(
    learner: Learner, data: TrainData, *, build: Callable[[int], Any] = tiny_net, **changes: Any
) -> TrainContext:
    values: dict[str, Any] = {
        "task": TASK,
        "statistics": TASK.fit(data.labeled.rows.take(torch.arange(len(data.labeled)))),
        "n_labeled": len(data.labeled),
        "n_outputs": CLASSES,
        "steps": learner.steps,
        "seed": 1,
        "round": 0,
        "member": 0,
        "build": build,
    }
    return TrainContext(**values | changes)


def trained(
    learner: Learner, folder: Path, data: TrainData | None = None, **changes: Any
) -> TrainState:
    """Train without a kill."""
    data = data or tiny_data()
    ctx = tiny_context(learner, data, **changes)
    folder.mkdir(parents=True, exist_ok=True)
    return fit(learner, data, ctx, checkpoint=DirStore(folder))


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal bit by bit."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
