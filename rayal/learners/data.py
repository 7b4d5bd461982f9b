"""Input of a learner: rows, streams, batches; an unlabeled batch cannot hold a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from rayal.errors import NeedsError
from rayal.types import Keys

Source = Literal["labeled", "unlabeled", "pseudo", "attached"]
Sampler = Literal["shuffle", "cyclic"]


class Rows(Protocol):
    """The rows behind a stream; they are decoded when they are taken."""

    @property
    def ids(self) -> Sequence[str]:
        """The ids of all rows, in row order."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def take(self, positions: Tensor) -> Tensor:
        """Return decoded, untransformed rows ``[B, …]`` at int64 positions ``[B]``."""


@runtime_checkable
class NamedRows(Protocol):
    """Rows whose ids are read when they are asked for, since there are many of them."""

    def names(self, positions: Tensor) -> tuple[str, ...]:
        """Return the ids at int64 positions ``[B]``."""


def names(rows: Rows, positions: Tensor) -> tuple[str, ...]:
    """Return the ids of rows at int64 positions ``[B]``."""
    if isinstance(rows, NamedRows):
        return rows.names(positions)
    return tuple(rows.ids[i] for i in positions.tolist())


@dataclass(frozen=True)
class TensorRows:
    """Rows that are in memory already.

    Args:
        ids: N ids.
        x: decoded rows, ``[N, …]``.
    """

    ids: Sequence[str]
    x: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: Tensor) -> Tensor:
        """Return the rows at ``positions``."""
        return self.x[positions]


@dataclass(frozen=True)
class LabeledRows:
    """Rows with their targets.

    Args:
        rows: N rows.
        targets: ``[N]``, as the task encodes labels.
        weights: float ``[N]`` of the rows in the loss; None weighs all the same.
    """

    rows: Rows
    targets: Tensor
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class TrainData:
    """The rows and columns that a member is trained on.

    Args:
        labeled: the labeled rows, sorted by id, so that training does not depend on their order.
        unlabeled: the other rows of the pool; no label is within reach from here.
        attached: rows that a strategy made for its picks.

    Raises:
        NeedsError: there is no labeled row, or the rows are not sorted by id.
    """

    labeled: LabeledRows
    unlabeled: Rows | None = None
    attached: LabeledRows | None = None

    def __post_init__(self) -> None:
        ids = list(self.labeled.rows.ids)
        if not ids or len(ids) != len(self.labeled.targets):
            raise NeedsError(
                f"{len(ids)} labeled rows with {len(self.labeled.targets)} targets were given; "
                "training needs at least one row and a target for each: label some items first"
            )
        if any(a >= b for a, b in pairwise(ids)):
            raise NeedsError("labeled rows must be distinct and sorted by id; sort them first")


@dataclass(frozen=True)
class PoolData(TrainData):
    """The rows that a pre-training is trained on, without any label.

    Args:
        labeled: none.
        unlabeled: all rows of the pool.
        attached: none.

    Raises:
        NeedsError: there are labels, or no rows.
    """

    labeled: LabeledRows = LabeledRows(TensorRows((), torch.zeros(0)), torch.zeros(0))

    def __post_init__(self) -> None:
        if len(self.labeled) or self.attached is not None or not self.unlabeled:
            rows = 0 if self.unlabeled is None else len(self.unlabeled)
            raise NeedsError(
                f"a pre-training was given {len(self.labeled)} labeled and {rows} unlabeled rows; "
                "it takes unlabeled rows alone, at least one"
            )


@dataclass(frozen=True)
class UnlabeledBatch:
    """Rows without labels: there is no field that could hold one.

    Attributes:
        ids: B ids.
        keys: uint64 ``[B]``, their id keys.
        views: one tensor ``[B, …]`` per view of the stream, in its order.
    """

    ids: tuple[str, ...]
    keys: Keys
    views: tuple[Tensor, ...]

    @property
    def x(self) -> Tensor:
        """The first view, ``[B, …]``."""
        return self.views[0]


@dataclass(frozen=True)
class LabeledBatch(UnlabeledBatch):
    """Rows with labels of annotators, or with pseudo-labels where the stream says so.

    Attributes:
        y: targets ``[B]``; numbers are standardised by the labeled rows.
        weight: float ``[B]`` of the rows in the loss, or None.
    """

    y: Tensor
    weight: Tensor | None = None


Batches = Mapping[str, Any]  # stream name -> LabeledBatch, or UnlabeledBatch for unlabeled rows


@dataclass(frozen=True)
class Stream:
    """One source of batches; a stream without rows gives none.

    A learner narrows a stream to some rows of its source by ``state.tables["rows.NAME"]``, int64
    positions, and re-weighs them by ``"weights.NAME"``. A pseudo stream must be given
    ``"rows.NAME"`` (positions of unlabeled rows) and ``"targets.NAME"``; it is shuffled anew in
    every epoch, since its rows may change at each.

    Args:
        name: key of its batches.
        source: labeled | unlabeled | pseudo (unlabeled rows with the learner's labels) | attached.
        ratio: rows of a batch relative to the learner's ``batch``.
        views: raw | plain (the eval transform) | weak (augmented); a name may stand several times.
        sampler: shuffle (no row twice in a pass, a last short batch is left out) | cyclic (in row
            order, round and round).
    """

    name: str
    source: Source
    ratio: float = 1.0
    views: tuple[str, ...] = ("plain",)
    sampler: Sampler = "shuffle"


def balanced_weights(targets: Tensor) -> Tensor:
    """Return n / (classes present x rows of the own class) per row: float32 ``[n]``, mean 1."""
    _, own, counts = torch.unique(targets, return_inverse=True, return_counts=True)
    weights: Tensor = len(targets) / (len(counts) * counts[own])
    return weights.float()
