"""Rows of a pool for training without labels, read and decoded when they are taken."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
from torch import Tensor

from rayal.engine.workspace import Inputs
from rayal.pool.reader import Pool
from rayal.tasks import Task
from rayal.types import digest, id_keys, key_sum


@dataclass(frozen=True)
class PoolRows:
    """Some items of a pool; no label is within reach.

    Args:
        pool: where they lie.
        task: how they are decoded.
        ids: their ids.
    """

    pool: Pool
    task: Task
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, positions: Tensor) -> Tensor:
        """Return decoded rows ``[B, …]`` at int64 positions ``[B]``."""
        return self.task.decode(self.pool.take([self.ids[i] for i in positions.tolist()]))

    @property
    def fingerprint(self) -> tuple[int, int]:
        """Their number, and a digest of the parts (named by their content) and of their keys."""
        parts = sorted(part.part for part in self.pool.parts_of("pool"))
        return len(self.ids), int(digest([parts, key_sum(id_keys(self.ids))]), 16)


@dataclass(frozen=True)
class EveryRow:
    """All items of a pool, labeled or not, in the order of its parts; no label is within reach.

    Ids are read with the rows that are asked for, so that nothing here grows with the pool but
    its lookup, 8 bytes an item where rows are taken.

    Args:
        inputs: where they lie and how they are decoded.
    """

    inputs: Inputs

    def __len__(self) -> int:
        return len(self.inputs.pool)

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids: for small pools."""
        return tuple(self.inputs.pool.ids("pool"))

    def names(self, positions: Tensor) -> tuple[str, ...]:
        """Return the ids at int64 positions ``[B]``."""
        return tuple(self._rows(positions, ["id"]).column("id").to_pylist())

    def take(self, positions: Tensor) -> Tensor:
        """Return decoded rows ``[B, …]`` at int64 positions ``[B]``."""
        return self.inputs.task.decode(self._rows(positions))

    @property
    def parts(self) -> list[str]:
        """The parts in order; their names are digests of their content."""
        return [part.part for part in self.inputs.pool.parts_of("pool")]

    def _rows(self, positions: Tensor, columns: list[str] | None = None) -> pa.Table:
        return self.inputs.pool.lookup.at(positions.numpy(), role="pool", columns=columns)
