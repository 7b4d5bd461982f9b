"""Tiles, the unit of all arithmetic, and proposals: the rows of them that may be chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.selection.devices import to_host, widened
from rayal.types import TILE_ROWS, Keys, part_rows

Floats = npt.NDArray[np.float64]
PAD = 64  # rows of a tile are a multiple of this, so that matrix products never become GEMV


class Widened(Mapping[str, Tensor]):
    """Columns read as float32 where they are stored in bf16; each reading makes a copy then.

    Args:
        stored: name to tensor.
    """

    __slots__ = ("stored",)

    def __init__(self, stored: Mapping[str, Tensor]) -> None:
        self.stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return widened(self.stored[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


StateT = TypeVar("StateT")


class Stateful:
    """A place where an objective keeps running state: one object of a kind of its own."""

    state: object

    def state_as(self, kind: type[StateT]) -> StateT:
        """Return the state, which is of this kind.

        Raises:
            TypeError: it is of another kind, or was never set.
        """
        if not isinstance(self.state, kind):
            raise TypeError(
                f"the state of {type(self).__name__} is {type(self.state).__name__}, "
                f"{kind.__name__} is asked for; set it where the selection begins"
            )
        return self.state


@dataclass
class Shared(Stateful):
    """One for all tiles of a shard.

    Attributes:
        device: where the shard holds its columns.
        state: what the objective keeps once per shard.
    """

    device: torch.device | None = None
    state: object = None


@dataclass
class Tile(Stateful):
    """A fixed run of rows in key order, with the running arrays of one selection.

    Attributes:
        keys: uint64 ``[T]``; padding rows have key 0 and are not eligible.
        columns: name to tensor ``[T, …]``, padding rows are zero; bf16 is read as float32.
        eligible: bool ``[T]``, rows that may be picked.
        state: what the objective keeps of the tile.
        shared: the shard's, the same object in all its tiles.
        group: key of the first row of the run of tiles (a part) that one shard holds whole.
        stored: the columns as they are held, in float32 or bf16.
    """

    keys: Keys
    columns: Mapping[str, Tensor]
    eligible: npt.NDArray[np.bool_]
    state: object = None
    shared: Shared = field(default_factory=Shared)
    group: int = 0
    stored: Mapping[str, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        columns = self.columns
        self.stored = columns.stored if isinstance(columns, Widened) else columns
        self.columns = Widened(self.stored)

    @property
    def device(self) -> torch.device:
        """The device of the columns."""
        return next((c.device for c in self.stored.values()), torch.device("cpu"))

    def to(self, device: torch.device) -> Tile:
        """Return the tile with its columns on a device, itself where they are there."""
        if device == self.device or not self.stored:
            return self
        return replace(self, columns={n: c.to(device) for n, c in self.stored.items()})

    def rows(self, name: str, rows: npt.NDArray[np.int64] | slice | int) -> Tensor:
        """Return some rows of a column, which alone are converted; a number gives one row."""
        column = self.stored[name]
        if isinstance(rows, np.ndarray):
            return widened(column.index_select(0, torch.from_numpy(rows).to(column.device)))
        return widened(column[rows])

    @property
    def name(self) -> int:
        """The tile's own key: that of its first row, the same wherever the tile lives."""
        return int(self.keys[0])

    @cached_property
    def _last(self) -> np.uint64:
        return np.uint64(self.keys.max())

    def drop(self, keys: Keys) -> None:
        """Let rows with one of these keys be eligible no more."""
        if len(keys) == 0 or len(self.keys) == 0:
            return
        here = keys[(keys >= self.keys[0]) & (keys <= self._last)]
        if len(here):
            self.eligible &= ~np.isin(self.keys, here)


@dataclass(frozen=True)
class Proposal:
    """Rows that a shard offers, best first.

    Attributes:
        priority: float64 ``[m, P]``, compared from left to right, larger first.
        keys: uint64 ``[m]``; the smaller key wins a tie.
        columns: what the driver needs of these rows, ``[m, …]``; on the shard, where they lie:
            ``tile`` and ``row``.
        bound: (priority, key) of the best row that was left out; None when none was.
    """

    priority: Floats
    keys: Keys
    columns: Mapping[str, npt.NDArray[Any]]
    bound: tuple[tuple[float, ...], int] | None = None

    def __len__(self) -> int:
        return len(self.keys)


def best_rows(
    tile: Tile, gain: Floats, m: int, *, among: npt.NDArray[np.bool_] | None = None
) -> Proposal:
    """Return a tile's m best eligible rows by (gain, tie-breakers, key), and the bound.

    Args:
        tile: the tile.
        gain: ``[T]``, or ``[T, P]`` with tie-breakers behind.
        m: most rows.
        among: ``[T]``, which rows; by default the eligible ones.
    """
    rows = np.flatnonzero(tile.eligible if among is None else among)
    priority = np.asarray(gain, dtype=np.float64).reshape(len(tile.keys), -1)
    if len(rows) > 2 * m + 2:  # cut first by the leading value; ties at the cut stay in
        lead = priority[rows, 0]
        cut = np.partition(lead, len(lead) - m - 1)[len(lead) - m - 1]
        rows = rows[lead >= cut]
    order = _order(priority[rows], tile.keys[rows])
    rows = rows[order]
    kept = rows[:m]
    bound = None
    if len(rows) > m:
        bound = (tuple(priority[rows[m]].tolist()), int(tile.keys[rows[m]]))
    return Proposal(priority[kept], tile.keys[kept], {"row": kept}, bound)


def located(number: int, proposal: Proposal) -> Proposal:
    """Return a tile's proposal with the tile's number on its shard."""
    here = np.full(len(proposal), number)
    return replace(proposal, columns={**proposal.columns, "tile": here})


def gather(
    tiles: Sequence[Tile], found: Proposal, names: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """Return columns of located rows, ``[m, …]``."""
    at = list(zip(found.columns["tile"].tolist(), found.columns["row"].tolist(), strict=True))
    columns = {}
    for name in names:
        rows = [tiles[t].rows(name, r) for t, r in at]
        columns[name] = to_host(torch.stack(rows) if rows else tiles[0].rows(name, slice(0)))
    return columns


def merge_rows(proposals: Sequence[Proposal], m: int) -> Proposal:
    """Merge sorted proposals and keep the m best; associative, so shards may fold first."""
    if len(proposals) == 1 and len(proposals[0]) <= m:
        return proposals[0]
    priority = np.concatenate([p.priority for p in proposals])
    keys = np.concatenate([p.keys for p in proposals])
    order = _order(priority, keys)
    kept = order[:m]
    bounds = [p.bound for p in proposals if p.bound is not None]
    if len(order) > m:
        cut = order[m]
        bounds.append((tuple(priority[cut].tolist()), int(keys[cut])))
    names = proposals[0].columns
    sent = {n: np.concatenate([p.columns[n] for p in proposals])[kept] for n in names}
    bound = max(bounds, key=lambda b: (b[0], -b[1])) if bounds else None
    return Proposal(priority[kept], keys[kept], sent, bound)


def _order(priority: Floats, keys: Keys) -> npt.NDArray[np.int64]:
    """Return row positions, best first: larger priority from left to right, then smaller key."""
    by = (keys, *(-priority[:, c] for c in reversed(range(priority.shape[1]))))
    return np.lexsort(by)


def cut_tiles(
    keys: Keys, columns: Mapping[str, Tensor], eligible: npt.NDArray[np.bool_] | None = None
) -> list[Tile]:
    """Cut rows, already in key order, into tiles of TILE_ROWS padded to a multiple of PAD."""
    tiles, part = [], part_rows(len(keys))
    for start in range(0, len(keys), TILE_ROWS):
        stop = min(start + TILE_ROWS, len(keys))
        pad = -(stop - start) % PAD
        mask = np.ones(stop - start, dtype=bool) if eligible is None else eligible[start:stop]
        tiles.append(
            Tile(
                np.pad(keys[start:stop], (0, pad)),
                {n: _pad(c[start:stop], pad) for n, c in columns.items()},
                np.pad(mask, (0, pad)),
                group=int(keys[start - start % part]),
            )
        )
    return tiles


def _pad(column: Tensor, rows: int) -> Tensor:
    if rows == 0:
        return column
    return torch.cat([column, column.new_zeros((rows, *column.shape[1:]))])
