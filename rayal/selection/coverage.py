"""Distances of a shard's rows to their nearest centres: bounds first, exact where it counts.

A row keeps an upper bound of its squared distance: centres only lower it, so what it was once is
a bound. Products in float32 lower bounds, each widened by what rounding can be, so they may be
made in any grouping of rows. Where a row may be chosen, its distance is computed again from
differences in float64, a function of the row and the centres alone: choices do not depend on how
rows were grouped, on which shard, or by which thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.selection.devices import to_device, to_host, widened
from rayal.selection.distances import ERROR, FAR, apart, squared_norm
from rayal.selection.threads import Room, Team
from rayal.selection.tiles import Floats, Tile

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


CENTRES = 256  # of one product
BLOCK = 1 << 20  # numbers of the rows of one product
CACHED = 1 << 17  # numbers of rows that are read twice: they stay in the cache meanwhile
PART = 1 << 16  # rows looked through at once
CONFIRMED = 256  # rows whose exact distances are computed at once
ROW_READ, ROW_COPIED = 30, 75  # what reading or copying a row takes, in products with a centre
TINY = 1e-32  # squares below it are lost in float32
_ROOM = Room()

Bound = tuple[float, int]  # squared distance and key of the best row that was left out


@dataclass(slots=True)
class CoverageTile:
    """A tile's views ``[T]`` of what ``Coverage`` keeps of each row of the shard."""

    upper: Floats
    exact: npt.NDArray[np.bool_]
    met: npt.NDArray[np.int32]
    norm: npt.NDArray[np.float32]


class Coverage:
    """Upper bounds of the squared distances of a shard's rows to their nearest centre.

    Args:
        tiles: at least one; their ``state`` becomes a ``CoverageTile``.
        column: the column ``[T, D]`` that distances are of.

    Attributes:
        upper: float64 ``[N]``, the bounds; -inf for rows that may not be chosen.
        exact: bool ``[N]``, whether the bound is the distance to the nearest centre met.
        met: int32 ``[N]``, how many of the centres the row has met.
        count: how many centres there are.
    """

    def __init__(self, tiles: Sequence[Tile], column: str) -> None:
        self.stack = Stack(tiles, column)
        n, d = len(self.stack), self.stack.width
        self.upper = np.full(n, np.inf)
        self.exact = np.zeros(n, dtype=bool)
        self.met = np.zeros(n, dtype=np.int32)
        self._norm = np.zeros(n, dtype=np.float32)
        for tile, at in spans(tiles):
            views = (self.exact[at], self.met[at], self._norm[at])
            tile.state = CoverageTile(self.upper[at], *views)
        self.count = 0
        self._rows = max(CONFIRMED, BLOCK // d)
        self._error = ERROR * max(1.0, (d / 4096) ** 0.5)
        self._origin = self._origin_of()
        device = self.stack.device
        self._centres = self._moved = torch.empty((0, d), device=device)
        self._length = torch.empty(0, device=device)

    def _origin_of(self) -> Tensor | None:
        """Return about the rows' mean ``[1, D]`` where it lies so far from zero that digits go."""
        rows = np.arange(0, len(self.stack), max(1, len(self.stack) // 1024))
        room = torch.empty((len(rows), self.stack.width), device=self.stack.device)
        x = self.stack.gather(rows, room).double()
        mean = x.mean(dim=0, keepdim=True)
        far = float(squared_norm(mean))
        spread = float(squared_norm(x).mean()) - far
        return mean.float() if far > FAR * max(spread, 0.0) else None

    def extend(self, centres: Tensor) -> None:
        """Add centres, float32 ``[b, D]`` of the device; rows meet them when they are looked at."""
        if len(centres) == 0:
            return
        moved = centres if self._origin is None else centres - self._origin
        total = self.count + len(centres)
        if total > len(self._centres):  # doubled, so that what is there is copied few times
            self._centres = _longer(self._centres[: self.count], 2 * total)
            self._length = _longer(self._length[: self.count], 2 * total)
            own = self._origin is not None
            self._moved = _longer(self._moved[: self.count], 2 * total) if own else self._centres
        self._centres[self.count : total] = centres
        self._moved[self.count : total] = moved
        self._length[self.count : total] = squared_norm(moved).float()
        self.count = total

    def refresh(self, threshold: float, team: Team) -> None:
        """Let all rows with bounds at or above the threshold meet the centres they have not met."""
        self.upper[~self.stack.eligible] = -np.inf
        n = len(self.stack)
        size = min(PART, ceil(n / team.threads))
        parts = [slice(at, min(at + size, n)) for at in range(0, n, size)]
        team.map(lambda part: self._refresh(part, threshold), parts)

    def _refresh(self, part: slice, threshold: float) -> None:
        rows = part.start + np.flatnonzero(self.upper[part] >= threshold)
        lag = self.count - self.met[rows]
        rows, lag = rows[lag > 0], lag[lag > 0]
        first = int(self.met[part].min())
        whole = (part.stop - part.start) * (ROW_READ + self.count - first)
        if whole >= len(rows) * ROW_COPIED + int(lag.sum()):
            self.meet(rows)
            return
        new = np.empty(part.stop - part.start, dtype=np.float32)
        size = self._rows if first else max(64, CACHED // self.stack.width)  # norms come first
        for block, x in self.stack.blocks(part, size):
            here = slice(block.start - part.start, block.stop - part.start)
            self._lowest(block, x, first, out=new[here])
        self._lower(part, new)

    def meet(self, rows: Rows) -> None:
        """Let rows meet the centres that they have not met; those of like lag go together."""
        lag = np.minimum(self.count - self.met[rows], 65_535).astype(np.uint16)
        order = np.argsort(lag, kind="stable")
        rows, lag = rows[order], lag[order].astype(np.int64)
        new, at = np.empty(len(rows), dtype=np.float32), 0
        while at < len(rows):
            alike = int(np.searchsorted(lag, 2 * lag[at] + 16, side="right"))
            here = slice(at, min(at + self._rows, alike))
            first = int(self.met[rows[here]].min())
            rows[here].sort()
            self._lowest(rows[here], self._gathered(rows[here]), first, out=new[here])
            at = here.stop
        self._lower(rows, new)

    def _gathered(self, rows: Rows) -> Tensor:
        return self.stack.gather(rows, self._room("rows", len(rows), self.stack.width))

    def _room(self, name: str, *shape: int) -> Tensor:
        return _ROOM.take(name, *shape, device=self.stack.device)

    def _lowest(self, rows: slice | Rows, x: Tensor, first: int, out: npt.NDArray[Any]) -> None:
        """Compute min_j |c_j|² - 2 x_i·c_j over the centres from ``first`` on, float32 ``[n]``."""
        if self._origin is not None:
            x = torch.sub(x, self._origin, out=self._room("moved", *x.shape))
        if first == 0:
            self._norm[rows] = to_host(torch.linalg.vector_norm(x, dim=1).square_())
        for start in range(first, self.count, CENTRES):
            products = self._products(x, slice(start, min(start + CENTRES, self.count)))
            lowest = to_host(products.amin(dim=0))
            out[:] = lowest if start == first else np.minimum(out, lowest)

    def _lower(self, rows: slice | Rows, lowest: npt.NDArray[Any]) -> None:
        """Lower the bounds of rows by what the products gave."""
        norm = self._norm[rows].astype(np.float64)
        new = np.maximum(lowest + norm, 0.0)
        old, exact = self.upper[rows], self.exact[rows]
        # a centre nearer than d is no longer than |x| + d, so |x|² + |c|² is below 3|x|² + 2d²
        nearer = new <= old + self._rounding(norm, old)
        self.exact[rows] = exact & ~(nearer & (old > 0.0))
        self.upper[rows] = np.minimum(old, new + self._rounding(norm, new))
        self.met[rows] = self.count

    def _rounding(self, norm: Floats, squared: Floats) -> Floats:
        """Return what float32 products of rows with centres at such distances may be off."""
        return np.asarray(self._error * (3.0 * norm + 2.0 * squared) + TINY)

    def _products(self, x: Tensor, which: slice) -> Tensor:
        """Return |c_j|² - 2 x_i·c_j, float32 ``[b, n]``."""
        centres, length = self._moved[which], self._length[which, None]
        out = self._room("products", len(centres), len(x))
        if len(centres) == 1:
            torch.mv(x, centres[0], out=out[0])
            return out.mul_(-2.0).add_(length)
        return torch.addmm(length, centres, x.T, alpha=-2.0, out=out)

    def top(self, m: int, threshold: float = -np.inf) -> tuple[Rows, Bound | None]:
        """Return the m rows farthest from their nearest centre, exactly, and a bound on the others.

        Args:
            m: most rows.
            threshold: rows with bounds below it are left out, and counted in the bound.

        Returns:
            Rows by falling distance, the smaller key first where distances are equal; None for
            the bound where no row is left out.
        """
        wanted = m
        while True:
            rows, bound = self._best(wanted, threshold)
            head = rows[:m]
            if (self.exact[head] & (self.met[head] == self.count)).all():
                left = rows[m : m + 1]
                return head, self._bound(left) if len(left) else bound
            stale = rows[self.met[rows] < self.count]
            if len(stale):
                self.meet(stale)
            self._confirm(np.sort(rows[~self.exact[rows]]))
            wanted = max(CONFIRMED, 2 * wanted)

    def _bound(self, row: Rows) -> Bound:
        return float(self.upper[row[0]]), int(self.stack.keys[row[0]])

    def _best(self, m: int, threshold: float) -> tuple[Rows, Bound | None]:
        """Return the m rows with the largest bounds at or above the threshold, and the next."""
        rows_above: list[Rows] = []
        rest: list[Rows] = []
        for start in range(0, len(self.stack), PART):
            value = self.upper[start : start + PART].copy()
            above = np.flatnonzero((value >= threshold) & (value > -np.inf))
            if len(above) > m:  # ties at the cut stay in
                cut = np.partition(value[above], len(above) - m)[len(above) - m]
                above = above[value[above] >= cut]
            rows_above.append(start + above)
            value[above] = -np.inf
            if (largest := value.max()) > -np.inf:
                rest.append(start + np.flatnonzero(value == largest))
        rows = self._sorted(np.concatenate(rows_above))
        left = self._sorted(np.concatenate([rows[m:], *rest]))
        return rows[:m], self._bound(left) if len(left) else None

    def _sorted(self, rows: Rows) -> Rows:
        return np.asarray(rows[np.lexsort((self.stack.keys[rows], -self.upper[rows]))])

    def _confirm(self, rows: Rows) -> None:
        """Compute the distances of rows that have met all centres, exactly."""
        for at in range(0, len(rows), CONFIRMED):
            here = rows[at : at + CONFIRMED]
            self.upper[here] = self._exactly(here, self._gathered(here))
            self.exact[here] = True

    def _exactly(self, rows: Rows, x: Tensor) -> Floats:
        moved = x if self._origin is None else x - self._origin
        upper, norm = self.upper[rows], self._norm[rows].astype(np.float64)
        most = upper + self._rounding(norm, upper)
        wide, nearest = to_host(x.double()), np.full(len(rows), np.inf)
        for start in range(0, self.count, CENTRES):
            which = slice(start, min(start + CENTRES, self.count))
            products = to_host(self._products(moved, which)) + norm
            centre, row = np.nonzero((products <= most) | (products == products.min(axis=0)))
            centres = to_host(self._centres[which])
            for at in range(0, len(row), CONFIRMED):
                i, j = row[at : at + CONFIRMED], centre[at : at + CONFIRMED]
                np.minimum.at(nearest, i, apart(wide[i], centres[j].astype(np.float64)))
        return nearest


def _longer(held: Tensor, size: int) -> Tensor:
    longer = held.new_empty((size, *held.shape[1:]))
    longer[: len(held)] = held
    return longer
