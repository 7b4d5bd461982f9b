"""The base of learners: the training of one member, as frozen hyperparameters and some hooks.

The training loop owns time (steps, epochs, batches, checkpoints); a learner says which batches it
wants and what one step does with them. What changes while training lives in ``TrainState`` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from rayal.learners.data import (
    Batches,
    LabeledBatch,
    LabeledRows,
    Rows,
    Stream,
    TensorRows,
    TrainData,
    UnlabeledBatch,
)
from rayal.types import Columns, digest

if TYPE_CHECKING:
    from rayal.models.base import TaskNet
    from rayal.signals.base import Signal
    from rayal.tasks.base import Task

__all__ = [
    "Learner",
    "TrainContext",
    "TrainState",
    "TrainData",
    "Rows",
    "TensorRows",
    "LabeledRows",
    "Stream",
    "LabeledBatch",
    "UnlabeledBatch",
    "Batches",
    "Weights",
    "ScanRows",
]

CPU = torch.device("cpu")
Weights = Mapping[str, Tensor]
ScanRows = Callable[[nn.ModuleDict, "Sequence[Signal]", int | None], Columns]


@dataclass(frozen=True)
class TrainContext:
    """Facts about the member to be trained that a learner may use.

    Attributes:
        task: the task, which describes a row.
        statistics: constants of the eval transform and of numbers as targets, from the labeled
            rows.
        n_labeled: labeled rows.
        n_outputs: columns of the network's output.
        steps: optimiser steps of the whole training.
        seed: the model seed.
        round: the round, from 0.
        member: the member, from 0.
        build: seed -> a freshly initialised network of the task.
        device: where networks and batches are.
        dtype: type of weights and batches.
        scan: (networks, signals, limit) -> columns of the unlabeled rows; None where not offered.
        columns: what ``reads`` asked of the previous round's scan, of the items that are unlabeled
            now, sorted by id; None in the first round, or where that round was scanned for another
            learner.
        weights: what ``pretraining`` left or ``prepare`` returned, that all members start from.
    """

    task: Task
    statistics: Mapping[str, Tensor]
    n_labeled: int
    n_outputs: int
    steps: int
    seed: int
    round: int
    member: int
    build: Callable[[int], TaskNet]
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    scan: ScanRows | None = None
    columns: Columns | None = None
    weights: Weights | None = None

    def chance(self, *parts: str | int) -> int:
        """Return a 63-bit seed of its own for (seed, round, member, parts)."""
        return int(digest([self.seed, self.round, self.member, *parts]), 16) >> 1

    def generator(self, *parts: str | int) -> torch.Generator:
        """Return a CPU generator seeded by ``chance(*parts)``."""
        return torch.Generator().manual_seed(self.chance(*parts))


@dataclass
class TrainState:
    """Everything that changes while a member is trained; checkpointed whole.

    Attributes:
        networks: trained networks; ``"task"`` answers the task.
        optimizers: optimisers by name; each has one phase.
        schedulers: schedulers by the name of their optimiser; stepped after it.
        averages: networks that no optimiser touches: EMA, SWA, the best so far.
        tables: side tables on the CPU: pseudo-labels, row choices.
        scalars: the learner's own numbers.
        step: finished steps, so inside ``step`` the index of the present one.
        epoch: finished epochs.
        stopped: set by a learner to end training after this epoch.
    """

    networks: nn.ModuleDict
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    schedulers: dict[str, LRScheduler] = field(default_factory=dict)
    averages: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    tables: dict[str, Tensor] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    step: int = 0
    epoch: int = 0
    stopped: bool = False

    def descend(self, name: str, loss: Tensor) -> None:
        """Do one optimiser phase: gradients reach the parameters of that optimiser alone."""
        optimizer = self.optimizers[name]
        own = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
        optimizer.zero_grad(set_to_none=True)
        loss.backward(inputs=own)  # type: ignore[no-untyped-call]
        optimizer.step()
        if name in self.schedulers:
            self.schedulers[name].step()

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as nested dictionaries of tensors and numbers."""
        return {
            "networks": self.networks.state_dict(),
            "optimizers": {n: o.state_dict() for n, o in self.optimizers.items()},
            "schedulers": {n: s.state_dict() for n, s in self.schedulers.items()},
            "averages": self.averages.state_dict(),
            "tables": dict(self.tables),
            "scalars": dict(self.scalars),
            "step": self.step,
            "epoch": self.epoch,
            "stopped": self.stopped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state whose networks and optimisers have the same names and shapes."""
        self.networks.load_state_dict(state["networks"])
        self.averages.load_state_dict(state["averages"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, scheduler in self.schedulers.items():
            scheduler.load_state_dict(state["schedulers"][name])
        self.tables, self.scalars = dict(state["tables"]), dict(state["scalars"])
        self.step, self.epoch, self.stopped = state["step"], state["epoch"], state["stopped"]


@dataclass(frozen=True)
class Learner(ABC):
    """Base of all learners: frozen, without state; a field is a hyperparameter with its bounds.

    Args:
        steps: optimiser steps, whatever the number of labeled rows.
        batch: labeled rows of a step.
        epoch_steps: steps between checkpoints, the unit of the epoch hooks.
    """

    steps: Annotated[int, Gt(0)] = 300
    batch: Annotated[int, Gt(0)] = 64
    epoch_steps: Annotated[int, Gt(0)] = 50

    #: what the hashes of its models hold, of a class that had models before they held registered
    #: names; it never changes, and no new class gets one
    hashed_as: ClassVar[tuple[str, ...]]
    #: named recipes: hyperparameters that the settings' `preset` fills in
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    #: what to do about a loss that is not finite
    remedy: ClassVar[str] = (
        "lower the learning rate, and look for extreme values among the labeled rows"
    )
    #: what it can learn to predict: class, number
    targets: ClassVar[tuple[str, ...]] = ("class",)
    taxonomy: ClassVar[str]
    source: ClassVar[str]
    departures: ClassVar[str] = "none"

    def check(self, task: Task, networks: nn.ModuleDict) -> None:
        """Raise NeedsError, with a remedy, if it does not fit a task and its fresh networks."""

    def reads(self) -> tuple[Signal, ...]:
        """Return the signals of the previous round's scan that training wants."""
        return ()

    def pretraining(self, ctx: TrainContext) -> Learner | None:
        """Return a learner that is trained first, on all rows of the pool and no label.

        It is trained once per pool snapshot, network and model seed, like a member of its own,
        with checkpoints and on the executor. What its predictor holds is in ``ctx.weights`` of
        all members, under ``network.parameter``.
        """
        return None

    def prepare(self, ctx: TrainContext, data: TrainData) -> Weights | None:
        """Return weights that all members start from, in ``ctx.weights``; made anew each time.

        What takes long, or needs the pool, is a ``pretraining``; then this is not asked.
        """
        return None

    def networks(self, ctx: TrainContext) -> nn.ModuleDict:
        """Return all networks, freshly initialised; ``"task"`` answers the task."""
        return nn.ModuleDict({"task": ctx.build(ctx.chance("network"))})

    @abstractmethod
    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        """Return the state before the first step."""

    def streams(self) -> tuple[Stream, ...]:
        """Return the batches that a step wants."""
        return (Stream("labeled", "labeled"),)

    @abstractmethod
    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        """Do one step, in one or several optimiser phases, and return its loss terms."""

    def on_epoch_start(self, state: TrainState, ctx: TrainContext, data: TrainData) -> None:
        """Refresh what holds for an epoch, such as pseudo-labels in ``state.tables``."""

    def on_epoch_end(self, state: TrainState, ctx: TrainContext, data: TrainData) -> None:
        """Look back at an epoch; may set ``state.stopped``."""

    def on_end(self, state: TrainState, ctx: TrainContext, data: TrainData) -> None:
        """Finish the weights that answer, after the last step."""

    def predictor(self, state: TrainState) -> nn.ModuleDict:
        """Return the networks that answer, under keys of ``networks`` and of their shapes."""
        return nn.ModuleDict({"task": state.networks["task"]})

    def extras(self, nets: nn.ModuleDict, x: Tensor) -> Mapping[str, Tensor]:
        """Return columns ``[N, …]`` of the learner's own heads, by name."""
        return {}
