"""Training of a committee: each member once, epoch by epoch, into checkpoints that count.

Nothing here knows who calls: this process, or an actor elsewhere that trains one member with
``train_member``. A member is a pure function of what ``model_hash`` digests, so what is committed
under a hash is never trained again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from rayal.engine.storage import TEMPORARY, sync_folder
from rayal.errors import SettingsError, StorageError
from rayal.failpoints import failpoint
from rayal.learners.base import Learner, ScanRows, TrainContext, TrainData
from rayal.learners.checkpoint import CheckpointStore, checkpoint_kind, read_checkpoint
from rayal.learners.loop import Progress, fit
from rayal.models import build_network
from rayal.models.committee import Committee
from rayal.types import FORMAT_VERSION, Columns, digest

if TYPE_CHECKING:
    from rayal.labels import Label
    from rayal.models.base import TaskNet
    from rayal.tasks.base import Task

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class NetworkSpec:
    """A network by name.

    Args:
        name: its registered name, or ``module:factory``.
        params: keyword arguments of its factory.
        dtype: type of the weights: float32 | float64.

    Raises:
        SettingsError: the type is unknown.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise SettingsError(
                f"network {self.name!r}: dtype {self.dtype!r} given, allowed: {', '.join(DTYPES)}"
            )

    def build(self, task: Task, device: torch.device, seed: int) -> TaskNet:
        """Return a freshly initialised network for a task."""
        net = build_network(
            self.name,
            self.params,
            input_shape=task.input_shape,
            n_outputs=task.n_outputs,
            seed=seed,
        )
        return net.to(device, DTYPES[self.dtype])


def model_hash(
    *,
    learner: Learner,
    network: NetworkSpec,
    task: Task,
    labels: Mapping[str, Label],
    members: int,
    seed: int,
    round: int,
    threads_per_model: int = 1,
    unlabeled: tuple[int, int] | None = None,
) -> str:
    """Return the digest of everything that a committee's weights depend on.

    Args:
        learner: with its hyperparameters.
        network: with its parameters.
        task: with its classes and input shape.
        labels: the labeled items: id -> label, in any order.
        members: committee size.
        seed: the model seed.
        round: the round.
        threads_per_model: torch threads, which decide the order of sums.
        unlabeled: (rows, sum of id keys) of the unlabeled rows, where the learner reads them.
    """
    kind = type(learner)
    return digest(
        {
            "version": FORMAT_VERSION,
            "learner": [kind.__module__, kind.__qualname__, asdict(learner)],
            "network": asdict(network),
            "task": task.to_json(),
            "labels": sorted(labels.items()),
            "members": members,
            "seed": seed,
            "round": round,
            "threads": threads_per_model,
            "unlabeled": unlabeled,
        }
    )
