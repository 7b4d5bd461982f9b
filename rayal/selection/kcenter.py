"""K-center: the farthest row from everything chosen so far.

References:
    Gonzalez, Theoretical Computer Science 38, 1985 (greedy, 2-approximation);
    Sener & Savarese, ICLR 2018, algorithm 1 (as an active-learning strategy).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.selection.distances import euclidean, factored_pairs, to_tensor
from rayal.selection.draws import keyed_uniform
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.objective import Commit, Floats, Objective, Progress, Proposal, Tile
from rayal.types import TILE_ROWS

CONTEXT_ROWS = 32  # labeled rows per opening message; wider products need not be bit-stable


@dataclass(frozen=True)
class KCenter(Objective):
    """Greedy k-center in blocks that are exactly the one-by-one sequence.

    Shards propose their farthest rows and the value of the best row left out. Distances only
    fall, so the driver may accept proposals for as long as the best of them beats that bound.
    Without labeled rows the first centre is a uniform draw by the seed.

    Args:
        column: the embedding column ``[N, D]``.
        rows: proposals per step.
    """

    title: ClassVar[str] = "k-center"

    column: str = "embedding"
    rows: int = 32

    @property
    def needs(self) -> tuple[str, ...]:
        """The embedding."""
        return (self.column,)

    @property
    def context(self) -> tuple[str, ...]:
        """Labeled and pending rows are centres already."""
        return (self.column,)

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return what the traversal takes.

        A row keeps the first draw and its squared distance, 8 bytes each. A tile is shifted to
        the origin (float32) and squared (float64, twice). A block of 32 candidates is taken to
        serve 24 picks; data with many near ties need more blocks.
        """
        d = width(shapes, self.column)
        passes = 2 + k / 24
        return Footprint(
            row=16,
            tile=self.rows * (16 + 4 * d),
            transient=TILE_ROWS * (20 * d + 24 * self.rows),
            driver=self.rows * 24 * d,
            flops=2.0 * rows * d * self.rows * passes,
            read=24.0 * rows * d * passes,  # the column, its shifted copy, and their squares
        )

    def block(self, progress: Progress) -> int:
        """Return the proposals of the next step: one until there is a centre."""
        return self.rows if "open" in progress.state else 1

    def begin(self, tile: Tile, seed: int) -> None:
        """Draw the order that stands in for distances until there is a centre."""
        tile.state["first"] = keyed_uniform(tile.keys, seed)

    def gain(self, tile: Tile) -> Floats:
        """Return squared distances to the nearest centre."""
        return np.asarray(tile.state.get("squared", tile.state["first"]))

    def open(self, context: Mapping[str, npt.NDArray[Any]], progress: Progress) -> list[Commit]:
        """Send labeled and pending rows as centres, some at a time."""
        rows = context.get(self.column)
        if rows is None or len(rows) == 0:
            return []
        progress.state["open"] = True
        return [
            self._commit_of(rows[start : start + CONTEXT_ROWS], CONTEXT_ROWS)
            for start in range(0, len(rows), CONTEXT_ROWS)
        ]

    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Accept proposals in greedy order while they beat every row that was left out."""
        if len(proposal) == 0:
            return None
        if "open" not in progress.state:
            progress.state["open"] = True
            first = proposal.columns[self.column][:1]
            return self._commit_of(first, self.rows, proposal.keys[:1], np.array([np.inf]))
        vectors = to_tensor(proposal.columns[self.column])
        squared = proposal.priority[:, 0].copy()
        taken: list[int] = []
        scores: list[float] = []
        while len(taken) < min(len(proposal), progress.left):
            best = _best(squared, proposal.keys)
            if taken and not _beats(squared[best], int(proposal.keys[best]), proposal.bound):
                break
            taken.append(best)
            scores.append(float(squared[best]))
            squared = np.minimum(squared, _distances_to(vectors, best))
            squared[taken] = -np.inf
        return self._commit_of(
            proposal.columns[self.column][taken],
            self.rows,
            proposal.keys[taken],
            np.array(scores),
        )

    def reported(self, values: Floats) -> Floats:
        """Return distances of squared distances."""
        return np.asarray(np.sqrt(values))

    def receive(self, shared: dict[str, Any], commit: Commit) -> None:
        """Keep the first centre as origin of products, which then lose fewer digits."""
        shared.setdefault("origin", to_tensor(commit.columns["centres"][:1]))

    def commit(self, tile: Tile, commit: Commit) -> None:
        """Lower each row's distance to that of its nearest new centre."""
        centres, width = to_tensor(commit.columns["centres"]), int(commit.columns["width"])
        x, origin = tile.columns[self.column], tile.shared["origin"]
        new = euclidean(x, centres, width, origin).amin(dim=1).numpy()
        old = tile.state.get("squared")
        tile.state["squared"] = new if old is None else np.minimum(old, new)

    def _commit_of(
        self,
        centres: npt.NDArray[Any],
        width: int,
        keys: npt.NDArray[np.uint64] | None = None,
        scores: Floats | None = None,
    ) -> Commit:
        return Commit(
            np.zeros(0, np.uint64) if keys is None else keys,
            np.zeros(0) if scores is None else scores,
            {"centres": centres, "width": width},
        )


def _best(value: Floats, keys: npt.NDArray[np.uint64]) -> int:
    """Return the position of the largest value, the smaller key winning a tie."""
    ties = np.flatnonzero(value == value.max())
    return int(ties[np.argmin(keys[ties])])


def _beats(value: float, key: int, bound: tuple[tuple[float, ...], int] | None) -> bool:
    return bound is None or (value, -key) > (bound[0][0], -bound[1])


def _distances_to(vectors: Tensor, row: int) -> Floats:
    ones = torch.ones((len(vectors), 1))
    return factored_pairs(ones, vectors, ones[row], vectors[row]).numpy()
