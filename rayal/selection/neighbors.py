"""Exact nearest neighbours by blocks: matrix products sift, differences decide.

A block of float32 products gives squared distances with a known bound of their error. Pairs that
may be among the k nearest by that bound are computed again from float64 differences, and only these
values are compared: the result is exact, equal rows are at distance 0, ties go to the smaller key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.errors import BudgetError
from rayal.selection.arrays import Array, as_tensor, checked_keys, checked_numbers
from rayal.selection.distances import squared_norm
from rayal.types import Keys

ROWS = 1024  # rows whose neighbours are sought at once
OTHERS = 4096  # rows they are compared with at once
_PAIRS = 1 << 22  # elements of differences held at once
_EPSILON = 2.0**-24  # half a unit in the last place of a float32

Floats = npt.NDArray[np.float64]


@dataclass
class Block:
    """Rows that seek their neighbours, with the best found so far.

    Attributes:
        keys: uint64 ``[R]``.
        x: float32 ``[R, D]``.
        k: neighbours of each row.
        found: uint64 ``[R, k]``, keys of the nearest, nearest first; the largest key where missing.
        squared: float64 ``[R, k]``, their squared distances; inf where missing.
    """

    keys: Keys
    x: Tensor
    k: int
    found: Keys = field(init=False)
    squared: Floats = field(init=False)

    def __post_init__(self) -> None:
        """Start without neighbours."""
        shape = (len(self.keys), self.k)
        self.found = np.full(shape, np.iinfo(np.uint64).max, dtype=np.uint64)
        self.squared = np.full(shape, np.inf)

    def meet(self, keys: Keys, y: Tensor, origin: Tensor) -> None:
        """Take in which of at most OTHERS further rows are among the nearest.

        Args:
            keys: uint64 ``[M]``, ascending.
            y: float32 ``[M, D]``.
            origin: float32 ``[1, D]``, near the rows: products of differences to it keep digits.
        """
        rows, others = np.nonzero(self._possible(keys, y, origin))
        self._settle(rows, keys[others], lambda at: y[torch.from_numpy(others[at])])

    def compare(self, rows: npt.NDArray[np.int64], keys: Keys, y: Tensor) -> None:
        """Take in given pairs only: of each row's own position, another key and its row ``[P, D]``.

        Args:
            rows: int64 ``[P]``.
            keys: uint64 ``[P]``.
            y: float32 ``[P, D]``.
        """
        self._settle(rows, keys, lambda at: y[at])

    def _settle(
        self, rows: npt.NDArray[np.int64], keys: Keys, other: Callable[[slice], Tensor]
    ) -> None:
        """Compute the pairs' distances from differences, some at a time, and merge them."""
        step = max(1, _PAIRS // max(1, self.x.shape[1]))
        squared = np.empty(len(rows))
        for start in range(0, len(rows), step):
            at = slice(start, start + step)
            left = self.x[torch.from_numpy(rows[at])].double()
            squared[at] = squared_norm(left - other(at).double()).numpy()
        self._merge(rows, keys, squared)

    def _possible(self, keys: Keys, y: Tensor, origin: Tensor) -> npt.NDArray[np.bool_]:
        """Return which pairs may be among the k nearest, ``[R, M]``; never too few."""
        near, far = self.x - origin, y - origin
        here, there = squared_norm(near), squared_norm(far)
        length = here.sqrt().numpy() + float(there.max().sqrt())
        error = _EPSILON * (self.x.shape[1] + 16) * length**2  # twice the worst case
        bias = _padded(there.float()[:, None], OTHERS).T  # squared distances less |x|²:
        shifted = torch.addmm(bias, _padded(near, ROWS), _padded(far, OTHERS).T, alpha=-2.0)
        shifted = shifted[: len(near), : len(far)]
        limit = self.squared[:, -1] - here.numpy()
        if np.isinf(limit).any() and len(y) > self.k:  # nothing to beat yet: this block's k-th,
            kth = torch.topk(shifted, self.k + 1, largest=False).values[:, -1]  # itself apart
            limit = np.minimum(limit, kth.numpy() + error)
        bound = torch.from_numpy((limit + error).astype(np.float32))
        possible = ~(shifted > bound[:, None]).numpy()
        mine = np.flatnonzero(np.isin(self.keys, keys))
        possible[mine, np.searchsorted(keys, self.keys[mine])] = False
        return np.asarray(possible)

    def _merge(self, rows: npt.NDArray[np.int64], keys: Keys, squared: Floats) -> None:
        """Keep the k nearest of those found before and the given pairs."""
        touched = np.unique(rows)
        old = np.repeat(touched, self.k)
        rows = np.concatenate([old, rows])
        keys = np.concatenate([self.found[touched].ravel(), keys])
        squared = np.concatenate([self.squared[touched].ravel(), squared])
        order = np.lexsort((keys, squared, rows))
        rows, keys, squared = rows[order], keys[order], squared[order]
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        kept = place < self.k
        self.found[rows[kept], place[kept]] = keys[kept]
        self.squared[rows[kept], place[kept]] = squared[kept]

    @property
    def distances(self) -> npt.NDArray[np.float32]:
        """Distances of the nearest, float32 ``[R, k]``."""
        return np.sqrt(self.squared).astype(np.float32)


def nearest_neighbors(
    embeddings: Array, k: int, *, ids: Sequence[str] | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the k nearest other rows of every row, exactly, and their Euclidean distances.

    Nothing of size N x N is held. Equal rows are neighbours at distance exactly 0.

    Args:
        embeddings: ``[N, D]``.
        k: neighbours of each row, at most N - 1.
        ids: N distinct ids, whose keys break ties; without them the smaller position does.

    Returns:
        Positions int64 ``[N, k]``, nearest first, and distances float32 ``[N, k]``.

    Raises:
        BudgetError: there are fewer than k other rows.
        ScoreError: a row holds a number that is not finite.
    """
    x = as_tensor("embedding", embeddings)
    names, keys = checked_keys(ids, len(x))
    checked_numbers("embedding", x, names)
    check_k(k, len(x))
    order = np.argsort(keys, kind="stable")
    keys, x = keys[order], x[torch.from_numpy(order)]
    origin = x[:1]
    positions, distances = [], []
    for start in range(0, len(x), ROWS):
        block = Block(keys[start : start + ROWS], x[start : start + ROWS], k)
        for first in range(0, len(x), OTHERS):
            block.meet(keys[first : first + OTHERS], x[first : first + OTHERS], origin)
        positions.append(order[np.searchsorted(keys, block.found)])
        distances.append(block.distances)
    back = np.argsort(order)
    return np.concatenate(positions)[back], np.concatenate(distances)[back]


def check_k(k: int, rows: int) -> None:
    """Raise BudgetError unless every row has k others."""
    if not 1 <= k < rows:
        raise BudgetError(
            f"k = {k} neighbours of each of {rows} rows asked for; k must lie between 1 and "
            f"{rows - 1}"
        )


def _padded(x: Tensor, rows: int) -> Tensor:
    """Return x with rows of zeros up to a fixed number: every product has the same shape."""
    return torch.cat([x, x.new_zeros((rows - len(x), x.shape[1]))])
