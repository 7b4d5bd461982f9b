from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from rayal.engine.train import (
    FolderStore,
    NetworkSpec,
    load_committee,
    model_hash,
    torch_threads,
    train_committee,
)
from rayal.errors import SettingsError, StorageError
from rayal.labels import ClassLabel
from rayal.learners import (
    LabeledRows,
    Learner,
    Supervised,
    TensorRows,
    TrainContext,
    TrainData,
    TrainState,
)
from rayal.learners.base import Batches, Weights
from rayal.models import Committee
from rayal.tasks import Task

CLASSES = ("a", "b", "c")
SHORT = Supervised(steps=9, epoch_steps=3, batch=8, augment=True)
MLP = NetworkSpec("mlp", {"widths": [8], "dropout": 0.2})


class Killed(Exception):
    """What ends a training in a test."""


@dataclass
class Records:
    """What a driver keeps of checkpoints; can be made to fail at one."""

    root: Path
    rows: dict[int, tuple[int, str, bool]] = field(default_factory=dict)
    commits: list[tuple[int, int, bool]] = field(default_factory=list)
    kill: tuple[int, int] | None = None

    def store(self, member: int) -> FolderStore:
        return FolderStore(
            self.root,
            "projects/p/models",
            "cafe",
            member,
            committed=lambda: self.rows[member][:2] if member in self.rows else None,
            commit=partial(self.commit, member),
        )

    def commit(self, member: int, epoch: int, file: str, final: bool) -> None:
        if self.kill == (member, epoch):
            self.kill = None
            raise Killed
        assert (self.root / file).is_file()
        self.rows[member] = (epoch, file, final)
        self.commits.append((member, epoch, final))


def rows(n: int = 20) -> TrainData:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(0)).double()
    y = torch.arange(n) % 3
    x[:, :3] += 2.0 * nn.functional.one_hot(y, 3)
    return TrainData(LabeledRows(TensorRows([f"item:{i:04d}" for i in range(n)], x.float()), y))


def weights(committee: Committee) -> list[dict[str, Tensor]]:
    return [nets.state_dict() for nets in committee.nets]


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def arguments(task: Task, records: Records, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "learner": SHORT,
        "network": MLP,
        "task": task,
        "data": rows(),
        "seed": 3,
        "round": 2,
        "members": 2,
        "hash": "cafe",
        "store": records.store,
    }
    return values | changes
