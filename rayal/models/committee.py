"""A committee: trained members with everything that is needed to ask them something."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import pyarrow as pa
from torch import Tensor, nn

from rayal.errors import NeedsError
from rayal.labels import ClassLabel, Label
from rayal.models.base import TaskNet
from rayal.types import Keys

Extras = Callable[[nn.ModuleDict, Tensor], Mapping[str, Tensor]]


class TaskLike(Protocol):
    """What a committee's user asks of its task."""

    @property
    def labels(self) -> ClassLabel:
        """What the answers look like."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one row."""

    @property
    def n_outputs(self) -> int:
        """Columns of the logits, C."""

    def decode(self, rows: pa.Table) -> Tensor:
        """Return raw model input, ``[N, …]``."""

    def transform(self, x: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return the eval transform of raw input."""

    def view(self, x: Tensor, keys: Keys, *, seed: int, view: int) -> Tensor:
        """Return an augmented view of transformed input."""

    def targets(self, labels: Sequence[Label]) -> Tensor:
        """Return labels as int64 ``[N]``."""

    def metrics(self, log_probs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return how good predictions are."""

    def to_json(self) -> dict[str, Any]:
        """Return the task as JSON."""


@dataclass(frozen=True, eq=False)
class Committee:
    """Trained members; one member is the ordinary case.

    Args:
        nets: each member's predictor; the key "task" is its TaskNet, others are a learner's heads.
        task: what a row is.
        statistics: constants of the eval transform, fitted on the labeled rows.
        hash: of everything that the members' weights depend on.
        seed: the model seed.
        round: the round it was trained in.
        extras: (a member's networks, transformed rows) to the learner's own columns ``[N, …]``.

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

    def __post_init__(self) -> None:
        for member, nets in enumerate(self.nets):
            if "task" not in nets or not isinstance(nets["task"], TaskNet):
                raise NeedsError(
                    f"member {member} has networks {sorted(nets)}; a TaskNet under the key 'task' "
                    "must be among them (wrap other modules in HookedNet)"
                )
        if not self.nets:
            raise NeedsError("a committee needs at least one member, 0 were given")

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
