"""Embeddings of a frozen backbone, as rows that a head is trained on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayal.errors import PoolError
from rayal.labels import label_kind
from rayal.tasks.base import FixedTask, column_of

_NO_VIEWS = (
    "embeddings of a frozen backbone are computed once and have no augmented views; set "
    "learner.augment to false, and choose a learner and a strategy that ask for none"
)


@dataclass(frozen=True)
class FeaturesTask(FixedTask):
    """One class or number for each embedding; rows are not standardised and not augmented.

    Args:
        labels: the classes, or a number.
        width: columns of the embedding, D.
        source: hash of what the embeddings were computed by.
    """

    kind: ClassVar[str] = "features"
    column: ClassVar[str | None] = "embedding"
    no_views: ClassVar[str] = _NO_VIEWS
    width: int
    source: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(D,)."""
        return (self.width,)

    def decode(self, rows: pa.Table) -> Tensor:
        """Return the embeddings, float32 ``[N, D]``: of one chunk a view of the file.

        Raises:
            PoolError: rows have embeddings of another width.
        """
        column = column_of(rows, "embedding")
        if getattr(column.type, "list_size", None) != self.width:
            raise PoolError(
                f"rows have embeddings of type {column.type}, the task's have {self.width} columns;"
                " remove the storage root's columns, and run again"
            )
        values = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in column.chunks]
        flat = values[0] if len(values) == 1 else np.concatenate([np.zeros(0, np.float32), *values])
        with warnings.catch_warnings():  # read-only memory: no network works in place on its input
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(flat.reshape(-1, self.width))

    def to_json(self) -> dict[str, Any]:
        """Return the kind and all settings as JSON."""
        named = {"width": self.width, "source": self.source}
        return {"kind": self.kind, "labels": self.labels.to_json(), **named}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> FeaturesTask:
        """Return the task that ``to_json`` described."""
        labels = label_kind(stored["labels"])
        return cls(labels, stored["width"], stored["source"])
