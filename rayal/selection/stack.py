"""The rows of a shard's tiles as one matrix, read where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.selection.devices import to_device, widened
from rayal.selection.tiles import Tile

Rows = npt.NDArray[np.int64]


class Stack:
    """One column of all tiles of a shard, its rows numbered from 0 over the tiles in their order.

    Tiles that lie side by side in memory are one run. From here on the tiles' keys and which rows
    are eligible are views of arrays over all rows.

    Args:
        tiles: at least one.
        column: the column ``[T, D]``.

    Attributes:
        keys: uint64 ``[N]``.
        eligible: bool ``[N]``.
        width: D.
        device: where the column is held.
    """

    def __init__(self, tiles: Sequence[Tile], column: str) -> None:
        self.keys = np.concatenate([tile.keys for tile in tiles])
        self.eligible = np.concatenate([tile.eligible for tile in tiles])
        for tile, rows in spans(tiles):
            tile.keys, tile.eligible = self.keys[rows], self.eligible[rows]
        self._runs = _joined([tile.stored[column] for tile in tiles])
        self._starts = np.cumsum([0, *map(len, self._runs)])
        self.width, self.device = self._runs[0].shape[1], self._runs[0].device

    def __len__(self) -> int:
        return len(self.keys)

    def blocks(self, rows: slice, size: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield a range of rows where they lie, at most ``size`` at once, float32 ``[n, D]``."""
        first = int(np.searchsorted(self._starts, rows.start, side="right")) - 1
        for run, start in zip(self._runs[first:], self._starts[first:].tolist(), strict=False):
            if start >= rows.stop:
                return
            stop = min(start + len(run), rows.stop)
            for at in range(max(start, rows.start), stop, size):
                end = min(at + size, stop)
                yield slice(at, end), widened(run[at - start : end - start])

    def gather(self, rows: Rows, into: Tensor) -> Tensor:
        """Copy rows, in ascending order, into float32 ``[n, D]`` of the device, and return it."""
        cuts = np.searchsorted(rows, self._starts)
        for run in np.flatnonzero(cuts[1:] > cuts[:-1]).tolist():
            here = slice(cuts[run], cuts[run + 1])
            index = to_device(rows[here] - self._starts[run], self.device)
            if self._runs[run].dtype == into.dtype:
                torch.index_select(self._runs[run], 0, index, out=into[here])
            else:
                into[here].copy_(self._runs[run].index_select(0, index))
        return into


def spans(tiles: Sequence[Tile]) -> Iterator[tuple[Tile, slice]]:
    """Yield each tile with the range of its rows in the stack."""
    start = 0
    for tile in tiles:
        yield tile, slice(start, start + len(tile.keys))
        start += len(tile.keys)


def _joined(columns: Sequence[Tensor]) -> list[Tensor]:
    """Return the columns, those that lie side by side in memory as one."""
    runs: list[Tensor] = []
    for column in columns:
        last = runs[-1] if runs else None
        if last is not None and _adjacent(last, column):
            size = (len(last) + len(column), *last.shape[1:])
            runs[-1] = last.as_strided(size, last.stride(), last.storage_offset())
        else:
            runs.append(column)
    return runs


def _adjacent(first: Tensor, second: Tensor) -> bool:
    return bool(
        first.is_contiguous()
        and second.is_contiguous()
        and first.dtype == second.dtype
        and first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
        and first.storage_offset() + first.numel() == second.storage_offset()
    )
