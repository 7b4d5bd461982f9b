"""What a choice is worth: covering radius or potential; to judge approximations by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.selection.distances import euclidean, factored, origin_of, squared_norm, to_tensor
from rayal.selection.greedy import LocalShards, Shard, choose
from rayal.selection.kcenter import KCenter
from rayal.selection.kmeans import KMeansPP
from rayal.selection.objective import Objective
from rayal.selection.tiles import Tile, cut_tiles
from rayal.types import Keys

SAMPLE_ROWS = 20_000  # rows on which a choice is measured, at most about
DRAWS = 5  # exact draws that a potential is compared with
_WIDTH = 32  # centres per product


@dataclass(frozen=True)
class Quality:
    """A choice beside an exact one, both measured on the same uniform sample of the pool.

    Attributes:
        measure: covering radius (largest distance to the nearest centre, labeled ones included) or
            potential (mean squared distance to the nearest pick); smaller is better.
        value: of the choice that was made.
        reference: of an exact choice of as many rows from the sample alone (a potential: the mean
            of DRAWS choices, since they are drawn). It sees the rows it is measured on, so it is a
            strict standard: an exact choice from the whole pool is usually somewhat above it too.
        rows: rows of the sample.
    """

    measure: str
    value: float
    reference: float
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Return the figures with their ratio, None where the reference is 0."""
        ratio = self.value / self.reference if self.reference > 0.0 else None
        return {**vars(self), "ratio": ratio}


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
        found = np.full(len(x), np.inf)
        for some in _blocks(centres):
            found = euclidean(x, norm, found, some, origin=origin)
        return found

    return float(np.sqrt(max((nearest(t)[t.eligible].max(initial=0.0) for t in tiles), default=0)))


def potential(tiles: Sequence[Tile], factors: tuple[str, str], picks: Sequence[Tile]) -> float:
    """Return the mean squared distance of eligible rows a⊗h to the nearest eligible pick.

    Args:
        tiles: their ``state`` holds the first factor ``[T, C]``, their columns the second.
        factors: names of the two.
        picks: tiles of the same form.
    """
    left, right = factors
    chosen = [torch.from_numpy(t.eligible) for t in picks]
    a = torch.cat([t.state[left][rows] for t, rows in zip(picks, chosen, strict=True)])
    h = torch.cat([t.columns[right][rows] for t, rows in zip(picks, chosen, strict=True)])
    total, count = 0.0, 0
    for tile in tiles:
        pairs = zip(_blocks(a), _blocks(h), strict=True)
        own = (tile.state[left], tile.columns[right], tile.state["norm"])
        nearest = np.full(len(tile.keys), np.inf)
        for some in pairs:
            nearest = factored(*own, nearest, some)
        total += float(nearest[tile.eligible].sum())
        count += int(tile.eligible.sum())
    return total / max(1, count)


def quality(
    objective: Objective,
    sample: Sequence[Tile],
    picks: tuple[Keys, Mapping[str, npt.NDArray[Any]]],
    context: Mapping[str, npt.NDArray[Any]],
    *,
    seed: int,
) -> Quality | None:
    """Return how good a choice is beside an exact one on a sample; None where nothing is defined.

    Args:
        objective: the approximate objective.
        sample: tiles with a uniform sample of the rows that could be chosen.
        picks: keys ``[k]`` and columns ``[k, …]`` of what was chosen.
        context: columns of labeled and pending rows.
        seed: the query seed.
    """
    exact = exact_form(objective)
    rows = sum(int(tile.eligible.sum()) for tile in sample)
    if exact is None or rows == 0 or len(picks[0]) == 0:
        return None
    value = _measured(exact, sample, *picks, context=context, seed=seed)
    k = min(len(picks[0]), rows)
    draws = 1 if isinstance(exact, KCenter) else DRAWS
    references = []
    for draw in range(draws):
        held = [Tile(t.keys, t.columns, t.eligible.copy(), group=t.group) for t in sample]
        shards = LocalShards([Shard(exact, held, seed + draw)])
        best = choose(exact, shards, k, seed=seed + draw, context=context, runners_up=0)
        columns = _rows_of(sample, best.keys, exact.needs)
        references.append(_measured(exact, sample, best.keys, columns, context=context, seed=seed))
    measure = "covering radius" if isinstance(exact, KCenter) else "potential"
    return Quality(measure, value, sum(references) / draws, rows)


def exact_form(objective: Objective) -> KCenter | KMeansPP | None:
    """Return the exact objective that an approximate one stands for, where it can be measured."""
    if isinstance(objective, KCenter):
        return KCenter(objective.column, objective.rows)
    if isinstance(objective, KMeansPP):
        names = ("residual", "embedding", "log_probs", "first", "rows")
        return KMeansPP(**{n: getattr(objective, n) for n in names})
    return None


def _measured(
    exact: KCenter | KMeansPP,
    sample: Sequence[Tile],
    keys: Keys,
    columns: Mapping[str, npt.NDArray[Any]],
    *,
    context: Mapping[str, npt.NDArray[Any]],
    seed: int,
) -> float:
    if isinstance(exact, KCenter):
        centres = [columns[exact.column], context.get(exact.column, columns[exact.column][:0])]
        return covering_radius(sample, exact.column, np.concatenate(centres))
    tiles = [replace(t, state={}) for t in sample]
    picks = cut_tiles(keys, {n: to_tensor(columns[n]) for n in exact.needs})
    for tile in (*tiles, *picks):
        exact.begin(tile, seed)
    return potential(tiles, ("a", exact.embedding), picks)


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
