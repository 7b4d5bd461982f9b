"""Find items by id: from the key of an id to its part, tile and row, touching no other row.

A part's keys ascend, so a binary search in the key column of each part is the whole index:
8 bytes an item, read at the first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayal.errors import StorageError
from rayal.ledger.records import PoolPart
from rayal.pool.storage import open_random, present
from rayal.types import TILE_ROWS, Keys, id_keys, key_sum

_BLOCK = 1024  # rows that are copied at once
_Places = npt.NDArray[np.int64]  # [n, 2]: part and row of each item, -1 where it is in none


class _Mapped(NamedTuple):
    reader: Any  # a RecordBatchFileReader
    keys: Keys


class Lookup:
    """The rows of parts by their ids.

    Args:
        root: the storage root.
        parts: the parts to look into, at least one.
    """

    def __init__(self, root: Path, parts: Sequence[PoolPart]) -> None:
        self._root = root
        self._parts = parts

    def contains(self, ids: Sequence[str]) -> list[bool]:
        """Return for each id whether a part holds it."""
        places = self._find(ids)
        candidates = np.flatnonzero(places[:, 0] >= 0)
        if not len(candidates):
            return [False] * len(ids)
        there = self._rows(places[candidates], ["id"]).column("id").to_pylist()
        named = dict(zip(candidates.tolist(), there, strict=True))
        return [named.get(row) == item for row, item in enumerate(ids)]

    def take(self, ids: Sequence[str]) -> pa.Table:
        """Return the rows of ids that the parts hold, in the order of the ids."""
        return self._rows(self._find(ids), self._mapped[0].reader.schema.names)

    def at(
        self,
        positions: npt.NDArray[np.int64],
        *,
        role: str,
        columns: list[str] | None = None,
    ) -> pa.Table:
        """Return rows by their positions in the parts of a role, one part after the other.

        Args:
            positions: ``[n]``, from 0.
            role: ``pool`` or ``test``.
            columns: names of those that are read; by default all.
        """
        number, starts = self._starts[role]
        at = np.searchsorted(starts, positions, side="right") - 1
        places = np.stack([number[at], positions - starts[at]], axis=1)
        return self._rows(places, columns or self._mapped[0].reader.schema.names)

    @cached_property
    def _starts(self) -> dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """The numbers of the parts of each role, and the position of the first row of each."""
        by_role = {}
        for role in {part.role for part in self._parts}:
            numbers = [i for i, part in enumerate(self._parts) if part.role == role]
            rows = [self._parts[i].rows for i in numbers]
            starts = np.concatenate([[0], np.cumsum(rows)])[:-1].astype(np.int64)
            by_role[role] = (np.array(numbers, np.int64), starts)
        return by_role

    def id_of(self, key: int) -> str | None:
        """Return the id of the item with a key, None if no part holds it."""
        places = self._places(np.array([key], np.uint64))
        if places[0, 0] < 0:
            return None
        return str(self._rows(places, ["id"]).column("id")[0].as_py())

    @cached_property
    def _mapped(self) -> list[_Mapped]:
        mapped = []
        for part in self._parts:
            path = present(self._root / part.file)
            reader = open_random(path)
            tiles = [reader.get_batch(tile) for tile in range(reader.num_record_batches)]
            keys = np.concatenate([tile.column("key").to_numpy() for tile in tiles])
            verify(part, path, keys)
            mapped.append(_Mapped(reader, keys))
        return mapped

    def _find(self, ids: Sequence[str]) -> _Places:
        return self._places(id_keys(ids))

    def _places(self, keys: Keys) -> _Places:
        places = np.full((len(keys), 2), -1, np.int64)
        for number, (_, part_keys) in enumerate(self._mapped):
            at = np.minimum(np.searchsorted(part_keys, keys), len(part_keys) - 1)
            here = part_keys[at] == keys
            places[here, 0] = number
            places[here, 1] = at[here]
        return places

    def _rows(self, places: _Places, columns: list[str]) -> pa.Table:
        """Return rows in the order of their places, in chunks of bounded size."""
        schema = self._mapped[0].reader.schema.remove_metadata()
        none = schema.empty_table().select(columns)
        starts = range(0, len(places), _BLOCK)
        blocks = (self._block(places[start : start + _BLOCK], columns) for start in starts)
        return pa.concat_tables([none, *blocks])

    def _block(self, places: _Places, columns: list[str]) -> pa.Table:
        order = np.lexsort((places[:, 1], places[:, 0]))
        part, row = places[order].T
        changes = (part[1:] != part[:-1]) | (row[1:] // TILE_ROWS != row[:-1] // TILE_ROWS)
        pieces = []
        for rows in np.split(np.arange(len(order)), np.flatnonzero(changes) + 1):
            tile, at = int(row[rows[0]]) // TILE_ROWS, row[rows] % TILE_ROWS
            batch = self._mapped[part[rows[0]]].reader.get_batch(tile).select(columns)
            pieces.append(batch.take(pa.array(at)).replace_schema_metadata(None))
        return pa.Table.from_batches(pieces).combine_chunks().take(pa.array(np.argsort(order)))


def verify(part: PoolPart, path: Path, keys: Keys) -> None:
    """Raise StorageError unless a file's keys are those that the ledger holds."""
    stored = (len(keys), key_sum(keys))
    if stored != (part.rows, part.key_sum):
        raise StorageError(
            f"{path} has {stored[0]} rows with key sum {stored[1]}, the ledger holds {part.rows} "
            f"with {part.key_sum}; restore the file from a backup"
        )
