"""Rows of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayal.errors import PoolError
from rayal.labels import label_kind
from rayal.tasks.base import Task, column_of, item_of
from rayal.tasks.keyed import keyed_normals
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
