"""Covering radius and potential of a choice, beside those of an exact one on a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.selection.distances import euclidean, factored, origin_of, squared_norm, to_tensor
from rayal.selection.greedy import LocalShards, Shard, choose
from rayal.selection.objective import Finished, Objective, Quality
from rayal.selection.tiles import Tile
from rayal.types import Keys

SAMPLE_ROWS = 20_000  # rows on which a choice is measured, at most about
DRAWS = 5  # exact draws that a potential is compared with
_WIDTH = 32  # centres per product

Picks = tuple[Keys, Mapping[str, npt.NDArray[Any]]]  # keys [k] and columns [k, …]
Factored = tuple[Tile, Tensor, Tensor]


def covering_radius(tiles: Sequence[Tile], column: str, centres: npt.NDArray[Any]) -> float:
    """Return the largest distance of an eligible row to its nearest centre; inf without centres.

    Args:
        tiles: hold ``column`` ``[T, D]``.
        column: the embedding.
        centres: ``[b, D]``.
    """
    if len(centres) == 0:
        return float("inf")

    def nearest(tile: Tile) -> npt.NDArray[np.float64]:
        x = tile.columns[column]
        norm = squared_norm(x)
        origin = origin_of(x, norm)
        norm = norm if origin is None else squared_norm(x, origin)
        lowest = np.full(len(x), np.inf)
        for some in _blocks(centres):
            lowest = euclidean(x, norm, lowest, some, origin=origin)
        return lowest

    return float(np.sqrt(max((nearest(t)[t.eligible].max(initial=0.0) for t in tiles), default=0)))


def potential(rows: Sequence[Factored], centres: Sequence[Factored], embedding: str) -> float:
    """Return the mean squared distance of eligible rows a⊗h to the nearest eligible centre.

    Args:
        rows: tiles, each with a ``[T, C]`` and the squared norms ``[T]`` of the products.
        centres: the same of the picks.
        embedding: the column h ``[T, D]``.
    """
    chosen = [torch.from_numpy(tile.eligible) for tile, _, _ in centres]
    pairs = list(zip(centres, chosen, strict=True))
    a = torch.cat([left[some] for (_, left, _), some in pairs])
    h = torch.cat([tile.columns[embedding][some] for (tile, _, _), some in pairs])
    total, count = 0.0, 0
    for tile, left, norm in rows:
        nearest = np.full(len(tile.keys), np.inf)
        for some in zip(_blocks(a), _blocks(h), strict=True):
            nearest = factored(left, tile.columns[embedding], norm, nearest, some)
        total += float(nearest[tile.eligible].sum())
        count += int(tile.eligible.sum())
    return total / max(1, count)


def beside_exact(
    exact: Objective,
    finished: Finished,
    measure: str,
    value_of: Callable[[Sequence[Tile], Picks], float],
    *,
    draws: int,
) -> Quality | None:
    """Return how good a choice is beside an exact one on a sample; None without rows or picks.

    Args:
        exact: the exact objective.
        finished: the choice.
        measure: name of what is measured.
        value_of: measures picks on a sample.
        draws: exact choices whose mean is the reference.
    """
    if len(finished.scores) == 0:
        return None
    picks = finished.picks(exact.needs)
    sample = finished.sample(exact)
    rows = sum(int(tile.eligible.sum()) for tile in sample)
    if rows == 0:
        return None
    value, seed = value_of(sample, picks), finished.seed
    k = min(len(picks[0]), rows)
    references = []
    for draw in range(draws):
        tiles = [Tile(t.keys, t.columns, t.eligible.copy(), group=t.group) for t in sample]
        shards = LocalShards([Shard(exact, tiles, seed + draw)])
        best = choose(exact, shards, k, seed=seed + draw, context=finished.context, runners_up=0)
        columns = _rows_of(sample, best.keys, exact.needs)
        references.append(value_of(sample, (best.keys, columns)))
    return Quality(measure, value, sum(references) / draws, rows)


def _rows_of(
    tiles: Sequence[Tile], keys: Keys, names: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """Return columns of the given rows, in any fixed order."""
    index = [torch.from_numpy(np.isin(t.keys, keys) & t.eligible) for t in tiles]
    pairs = list(zip(tiles, index, strict=True))
    return {n: torch.cat([t.columns[n][rows] for t, rows in pairs]).numpy() for n in names}


def _blocks(rows: Any) -> list[Tensor]:
    tensor = rows if isinstance(rows, Tensor) else to_tensor(rows)
    return list(torch.split(tensor, _WIDTH))
