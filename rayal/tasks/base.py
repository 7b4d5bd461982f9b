"""What a row is: how it is decoded, normalised and augmented, and what is predicted of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import torch
from torch import Tensor

from rayal.errors import LabelError, NeedsError, PoolError, nearest
from rayal.labels import ClassLabel, Label
from rayal.tasks.metrics import classification_metrics
from rayal.tasks.vocabulary import Vocabulary
from rayal.types import Keys


@dataclass(frozen=True)
class Task(ABC):
    """Base of the tasks that predict one class of each row.

    Args:
        labels: the classes, in the order of the logits.
    """

    kind: ClassVar[str]
    #: the pool's column that is the transformed input as it stands, where there is one
    column: ClassVar[str | None] = None
    #: whether rows have augmented views
    has_views: ClassVar[bool] = True
    labels: ClassLabel

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one decoded row."""

    @property
    def n_outputs(self) -> int:
        """Columns of the logits, C."""
        return len(self.labels.classes)

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The tokeniser, where rows are token ids."""
        return None

    @abstractmethod
    def decode(self, rows: pa.Table) -> Tensor:
        """Return raw model input of pool rows, float32 ``[N, *input_shape]``.

        Raises:
            PoolError: a row cannot be decoded; the message names its id.
        """

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        """Return the constants of the eval transform, from the labeled rows alone.

        They are mean and population standard deviation, float32, per feature or per channel; the
        deviation of what does not vary (beyond rounding) is 1.

        Args:
            x: raw input of the labeled rows, ``[N, *input_shape]``.

        Raises:
            NeedsError: there are no rows.
        """
        if len(x) == 0:
            raise NeedsError("statistics of 0 labeled rows are not defined; label some items first")
        values = x.double()
        over = [d for d in range(x.ndim) if d != 1]
        mean = values.mean(dim=over)
        deviation = values.std(dim=over, correction=0)
        varies = deviation > torch.finfo(torch.float32).eps * mean.abs()
        deviation = torch.where(varies, deviation, torch.ones_like(deviation))
        return {"mean": mean.float(), "std": deviation.float()}

    def transform(self, x: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return (x - mean) / std, the eval transform of raw input ``[N, *input_shape]``."""
        shape = (-1, *(1 for _ in x.shape[2:]))
        mean, deviation = (statistics[n].to(x).reshape(shape) for n in ("mean", "std"))
        return (x - mean).div_(deviation)

    @abstractmethod
    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return a weakly augmented copy of transformed rows, each with draws of its own.

        Args:
            x: what ``transform`` gave, ``[N, *input_shape]``.
            generator: a CPU generator.
        """

    @abstractmethod
    def view(self, x: Tensor, keys: Keys, *, seed: int, view: int) -> Tensor:
        """Return ``x`` augmented as by ``augment``, with draws from (seed, view, id key).

        So a row's view has the same bits in any batch and at any position.

        Args:
            x: what ``transform`` gave, ``[N, *input_shape]``.
            keys: uint64 ``[N]``.
            seed: the model seed.
            view: the view's index.
        """

    def targets(self, labels: Sequence[Label]) -> Tensor:
        """Return the columns of class names, int64 ``[N]``.

        Raises:
            LabelError: a name is not among the classes.
        """
        column = {name: i for i, name in enumerate(self.labels.classes)}
        unknown = next((label for label in labels if label not in column), None)
        if unknown is not None:
            raise LabelError(
                f"label {unknown!r} is not among the {len(column)} classes; "
                f"{nearest(str(unknown), column)}"
            )
        return torch.tensor([column[label] for label in labels], dtype=torch.int64)

    def metrics(self, log_probs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return accuracy, nll (nats) and ece (15 bins) of ``[N, C]`` against int64 ``[N]``."""
        return classification_metrics(log_probs, targets)

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the kind and all settings as JSON; ``task_from_json`` reads it."""

    @classmethod
    @abstractmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Task:
        """Return the task that ``to_json`` described."""


class FixedTask(Task):
    """A task whose rows go to the network as they are: not standardised, without views."""

    has_views: ClassVar[bool] = False
    #: what a learner or strategy that asks for augmented views is told
    no_views: ClassVar[str]

    def fit(self, x: Tensor) -> dict[str, Tensor]:
        """Return no constants: the transform is the identity.

        Raises:
            NeedsError: there are no rows.
        """
        super().fit(x[:1])
        return {}

    def transform(self, x: Tensor, statistics: Mapping[str, Tensor]) -> Tensor:
        """Return the rows as they are."""
        return x

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Raise NeedsError: there are no augmented views."""
        raise NeedsError(self.no_views)

    def view(self, x: Tensor, keys: Keys, *, seed: int, view: int) -> Tensor:
        """Raise NeedsError: there are no augmented views."""
        raise NeedsError(self.no_views)


def column_of(rows: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column of pool rows, or raise PoolError where it is missing or has nulls."""
    if name not in rows.column_names:
        raise PoolError(
            f"rows have no column {name!r}, they have {rows.column_names}; the pool does not fit "
            "the task, ingest it again"
        )
    column = rows.column(name)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise PoolError(f"column {name!r} of {item_of(rows, row)} is null; ingest the pool again")
    return column


def item_of(rows: pa.Table, row: int) -> str:
    """Return how a message names a row."""
    named = "id" in rows.column_names
    return f"item {rows.column('id')[row].as_py()!r}" if named else f"row {row}"
