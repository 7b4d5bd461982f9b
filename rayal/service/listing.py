"""The items of a snapshot as the API names them: by id, by key, and by their place in the pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa

from rayal.engine.pool import Pool
from rayal.labels import ClassLabel, NumberLabel
from rayal.types import Keys


class PoolItems:
    """The items of one snapshot; nothing but ids and keys is read.

    Args:
        pool: the snapshot.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __len__(self) -> int:
        return len(self.pool)

    def contains(self, ids: Sequence[str]) -> list[bool]:
        """Return for each id whether the snapshot holds it."""
        return self.pool.contains(ids) if self.pool.parts else [False] * len(ids)

    def named(self, key: int) -> str | None:
        """Return the id of a key, of either role; None if no item has it."""
        wanted = np.uint64(key)
        for keys, ids in [*self._parts, *self._test]:
            at = int(np.searchsorted(keys, wanted))
            if at < len(keys) and keys[at] == wanted:
                return str(ids[at].as_py())
        return None

    def after(self, position: int) -> Iterator[tuple[int, str]]:
        """Yield place and id of the items to label, from a place on; places never change."""
        start = 0
        for keys, ids in self._parts:
            for row in range(max(0, position - start), len(keys)):
                yield start + row, str(ids[row].as_py())
            start += len(keys)

    @cached_property
    def _parts(self) -> list[tuple[Keys, pa.ChunkedArray]]:
        return self._of("pool")

    @cached_property
    def _test(self) -> list[tuple[Keys, pa.ChunkedArray]]:
        return self._of("test")

    def _of(self, role: str) -> list[tuple[Keys, pa.ChunkedArray]]:
        tables = [self.pool.read(part).select(["key", "id"]) for part in self.pool.parts_of(role)]
        return [(table.column("key").to_numpy(), table.column("id")) for table in tables]


def label_kind_of(pool: Pool, classes: Sequence[str] | None) -> ClassLabel | NumberLabel:
    """Return what an answer looks like: of the task's classes, of the pool's, or a number."""
    if classes:
        return ClassLabel(tuple(classes))
    return NumberLabel() if pool.info.get("label_kind") == "number" else ClassLabel(pool.classes or ())
