"""Rows of numbers: columns of a table, or embeddings of a frozen backbone."""

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
from rayal.tasks.base import FixedTask, Task, column_of, item_of, keyed_normals
from rayal.types import Keys

JITTER = 0.1  # standard deviations


@dataclass(frozen=True)
class TableTask(Task):
    """One class, or one number, for each row of a table.

    Args:
        labels: the classes, or a number.
        features: names of the numeric columns, in order.
    """

    kind: ClassVar[str] = "table"
    features: tuple[str, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(features,)."""
        return (len(self.features),)

    def decode(self, rows: pa.Table) -> Tensor:
        """Return the features, float32 ``[N, D]``, from the column ``features``.

        Raises:
            PoolError: another number of features, or one that is no finite float32.
        """
        column = column_of(rows, "features")
        width = getattr(column.type, "list_size", None)
        if width != len(self.features):
            raise PoolError(
                f"rows have features of type {column.type}, the task has {len(self.features)} of "
                "them; ingest the pool again"
            )
        values = np.empty((len(column), width), np.float32)
        start = 0
        for chunk in column.chunks:
            flat = chunk.flatten().to_numpy(zero_copy_only=False)
            with np.errstate(over="ignore"):  # values beyond float32 are refused by name below
                values[start : start + len(chunk)] = flat.reshape(len(chunk), width)
            start += len(chunk)
        self._check_finite(values, rows)
        return torch.from_numpy(values)

    def augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return transformed rows with Gaussian jitter of 0.1 standard deviations."""
        noise = torch.randn(x.shape, generator=generator)
        return x + JITTER * noise.to(x)

    def view(self, x: Tensor, keys: Keys, *, seed: int, view: int) -> Tensor:
        """Return transformed rows with the jitter that belongs to (seed, view, id key)."""
        noise = keyed_normals(keys, x.shape[1], "table", seed, view)  # [N, D]
        return x + torch.from_numpy((JITTER * noise).astype(np.float32)).to(x)

    def to_json(self) -> dict[str, Any]:
        """Return the kind and all settings as JSON."""
        return {
            "kind": self.kind,
            "labels": self.labels.to_json(),
            "features": list(self.features),
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TableTask:
        """Return the task that ``to_json`` described."""
        return cls(label_kind(stored["labels"]), tuple(stored["features"]))

    def _check_finite(self, values: np.ndarray[Any, Any], rows: pa.Table) -> None:
        if np.isfinite(values).all():
            return
        row, feature = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise PoolError(
            f"feature {self.features[feature]!r} of {item_of(rows, row)} is "
            f"{rows.column('features')[row].as_py()[feature]}, which is no finite float32; correct "
            "or rescale it and ingest again, or ingest with missing: quarantine"
        )


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
