"""A committee: trained members with everything that is needed to ask them something."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, cast

import pyarrow as pa
import torch
from torch import Tensor, nn

from rayal.errors import NeedsError
from rayal.labels import Label, Labels
from rayal.models.base import TaskNet
from rayal.models.compiled import compiled
from rayal.models.text import VocabularyLike
from rayal.types import Keys

Extras = Callable[[nn.ModuleDict, Tensor], Mapping[str, Tensor]]


class TaskLike(Protocol):
    """The part of a task that a committee's users need."""

    column: ClassVar[str | None]

    @property
    def labels(self) -> Labels:
        """The form of the answers: classes or a number."""

    @property
    def target(self) -> str:
        """The kind of prediction: class | number."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one row."""

    @property
    def n_outputs(self) -> int:
        """Columns of the logits, C."""

    @property
    def vocabulary(self) -> VocabularyLike | None:
        """The tokeniser, where rows are token ids."""

    def decode(self, rows: pa.Table) -> Tensor:
        """Return raw model input, ``[N, …]``."""

    def transform(self, x: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return the eval transform of raw input."""

    def view(self, x: Tensor, keys: Keys, *, seed: int, view: int) -> Tensor:
        """Return an augmented view of transformed input."""

    def targets(self, labels: Sequence[Label]) -> Tensor:
        """Return labels as targets ``[N]``."""

    def moments(self, answers: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return a network's moments in units of the number, float64 ``[N, 3]``."""

    def metrics(self, predictions: Tensor, targets: Tensor) -> dict[str, float]:
        """Return the metrics of predictions."""

    def to_json(self) -> dict[str, Any]:
        """Return the task as JSON."""


def home_of(device: str) -> str:
    """Return the device if this process has it, else the CPU, where weights wait for one."""
    return device if device != "cuda" or torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, eq=False)
class Committee:
    """Trained members; one member is the ordinary case.

    Args:
        nets: each member's predictor; the key "task" is its TaskNet, others are a learner's heads.
        task: the task, which describes a row.
        statistics: constants of the eval transform, fitted on the labeled rows.
        hash: hash of everything that the members' weights depend on.
        seed: the model seed.
        round: the round it was trained in.
        extras: (a member's networks, transformed rows) to the learner's own columns ``[N, …]``.
        members: the number of each member; by default 0, 1, …; some are left out where a round
            went on without them.

    Raises:
        NeedsError: there is no member, or one without a TaskNet under "task".
    """

    nets: tuple[nn.ModuleDict, ...]
    task: TaskLike
    statistics: Mapping[str, Tensor]
    hash: str
    seed: int
    round: int
    extras: Extras | None = None
    members: tuple[int, ...] = ()
    _trunks: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    _compiled: dict[Any, Callable[[Tensor], Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if not self.members:
            object.__setattr__(self, "members", tuple(range(len(self.nets))))
        for member, nets in enumerate(self.nets):
            if "task" not in nets or not isinstance(nets["task"], TaskNet):
                raise NeedsError(
                    f"member {member} has networks {sorted(nets)}; a TaskNet under the key 'task' "
                    "must be among them (wrap other modules in HookedNet)"
                )
        if not self.nets:
            raise NeedsError("a committee needs at least one member, 0 were given")

    def move(self, device: str) -> None:
        """Move the networks to a device, that of the process which is to run them.

        Weights of convolutions lie channels-last, as the images do.
        """
        for nets in self.nets:
            nets.to(device).to(memory_format=torch.channels_last)

    def trunk(self, member: int) -> int:
        """Return the number of a member's stages before the first dropout module."""
        if member not in self._trunks:
            self._trunks[member] = self.net(member).stochastic_from or 0
        return self._trunks[member]

    def stages(self, member: int, start: int, stop: int | None) -> Callable[[Tensor], Tensor]:
        """Return stages of a member compiled, at first use for the present weights and shape."""
        key = (member, start, stop)
        if key not in self._compiled:
            self._compiled[key] = compiled(self.net(member), start, stop)
        return self._compiled[key]

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled code behind: it belongs to one machine."""
        return {**self.__dict__, "_compiled": {}}

    @property
    def n_outputs(self) -> int:
        """Columns of the logits, C."""
        return self.task.n_outputs

    @property
    def size(self) -> int:
        """Members, M."""
        return len(self.nets)

    def net(self, member: int) -> TaskNet:
        """Return the task network of a member."""
        return cast(TaskNet, self.nets[member]["task"])
