"""The protocol of a joint choice: tiles, proposals, commits, and the objective that decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.selection.footprint import Footprint, Shapes, width
from rayal.types import TILE_ROWS, Keys

Floats = npt.NDArray[np.float64]
PAD = 64  # rows of a tile are a multiple of this, so that matrix products never become GEMV


@dataclass
class Tile:
    """A fixed run of rows in key order, with the running arrays of one selection.

    Attributes:
        keys: uint64 ``[T]``; padding rows have key 0 and are not eligible.
        columns: name to tensor ``[T, …]``, padding rows are zero.
        eligible: bool ``[T]``, rows that may be picked.
        state: what the objective keeps per row.
        shared: what the objective keeps once per shard.
    """

    keys: Keys
    columns: Mapping[str, Tensor]
    eligible: npt.NDArray[np.bool_]
    state: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> int:
        """The tile's own key: that of its first row, the same wherever the tile lives."""
        return int(self.keys[0])


@dataclass(frozen=True)
class Proposal:
    """Rows that a shard offers, best first.

    Attributes:
        priority: float64 ``[m, P]``, compared from left to right, larger first.
        keys: uint64 ``[m]``; the smaller key wins a tie.
        columns: what the driver needs of these rows, ``[m, …]``.
        bound: (priority, key) of the best row that was left out; None when none was.
    """

    priority: Floats
    keys: Keys
    columns: Mapping[str, npt.NDArray[Any]]
    bound: tuple[tuple[float, ...], int] | None = None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Commit:
    """What the driver decided, broadcast to every shard.

    Attributes:
        keys: uint64 ``[b]``, the picks, in order; they stop being eligible.
        scores: float64 ``[b]``, each pick's value when it was picked.
        columns: what the shards need to update their state.
    """

    keys: Keys
    scores: Floats
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Progress:
    """The driver's side of one selection: how far it is, and what the objective remembers."""

    k: int
    seed: int
    step: int = 0
    keys: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """How many picks are missing."""
        return self.k - len(self.keys)


class Objective(ABC):
    """How k items are chosen together; frozen, its running arrays live in ``tile.state``."""

    #: what messages call it
    title: ClassVar[str] = "the joint choice"

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns of the pool's rows that the objective reads."""
        return ()

    @property
    def context(self) -> tuple[str, ...]:
        """Columns of labeled and pending rows that the objective reads."""
        return ()

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return what a selection takes besides the mapped columns; ``rayal plan`` counts by it.

        By default one pass that keeps nothing, with k whole proposals a tile.

        Args:
            shapes: shapes of one row of each column in ``needs``.
            rows: rows of all shards.
            k: number of picks.
        """
        wide = width(shapes, *self.needs)
        sent = min(k, TILE_ROWS) * (16 + 4 * wide)  # priority, key, columns
        return Footprint(tile=sent, transient=TILE_ROWS * 16 * wide, read=4.0 * rows * wide)

    def block(self, progress: Progress) -> int:
        """Return how many proposals the next step wants."""
        return progress.left

    def begin(self, tile: Tile, seed: int) -> None:
        """Set up ``tile.state``; called once per tile."""

    def summarize(self, tile: Tile, message: Any) -> Any | None:
        """Return the tile's part of a global quantity; None when nothing is asked."""
        return None

    def combine(self, first: Any, second: Any) -> Any:
        """Fold two parts; must be exactly associative and commutative (max, min, integers)."""
        raise TypeError(f"{type(self).__name__} summarizes but defines no fold")

    def reduce(self, total: Any, progress: Progress) -> Any | None:
        """Turn the folded parts into the next message; None ends the phase."""
        return None

    @abstractmethod
    def gain(self, tile: Tile) -> Floats:
        """Return each row's present value, ``[T]`` or ``[T, P]`` with tie-breakers behind."""

    def propose(self, tile: Tile, m: int, step: int) -> Proposal:
        """Return the tile's best m eligible rows."""
        return best_rows(tile, self.gain(tile), m, self.needs)

    def fold(self, proposals: Sequence[Proposal], m: int) -> Proposal:
        """Merge proposals into one of at most m rows."""
        return merge_rows(proposals, m)

    def open(self, context: Mapping[str, npt.NDArray[Any]], progress: Progress) -> list[Commit]:
        """Return commits (without picks) that tell the shards about labeled and pending rows."""
        return []

    @abstractmethod
    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Decide on the folded proposals; None ends the selection."""

    def reported(self, values: Floats) -> Floats:
        """Return gains as they are recorded; by default as they are compared."""
        return values

    def receive(self, shared: dict[str, Any], commit: Commit) -> None:
        """Keep, once per shard, what a commit brings."""

    def commit(self, tile: Tile, commit: Commit) -> None:
        """Update the tile's running state."""


def best_rows(tile: Tile, gain: Floats, m: int, columns: Sequence[str] = ()) -> Proposal:
    """Return a tile's m best eligible rows by (gain, tie-breakers, key), and the bound."""
    rows = np.flatnonzero(tile.eligible)
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
    index = torch.from_numpy(kept)
    sent = {name: tile.columns[name][index].numpy() for name in columns}
    return Proposal(priority[kept], tile.keys[kept], sent, bound)


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
    tiles = []
    for start in range(0, len(keys), TILE_ROWS):
        stop = min(start + TILE_ROWS, len(keys))
        pad = -(stop - start) % PAD
        mask = np.ones(stop - start, dtype=bool) if eligible is None else eligible[start:stop]
        tiles.append(
            Tile(
                np.pad(keys[start:stop], (0, pad)),
                {n: _pad(c[start:stop], pad) for n, c in columns.items()},
                np.pad(mask, (0, pad)),
            )
        )
    return tiles


def _pad(column: Tensor, rows: int) -> Tensor:
    if rows == 0:
        return column
    return torch.cat([column, column.new_zeros((rows, *column.shape[1:]))])
