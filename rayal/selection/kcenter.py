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

from rayal.selection.distances import between_rows, euclidean, origin_of, squared_norm, to_tensor
from rayal.selection.draws import keyed_uniform
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.objective import Commit, Objective, Progress
from rayal.selection.tiles import Floats, Proposal, Tile
from rayal.types import TILE_ROWS

CONTEXT_ROWS = 256  # labeled rows per opening message


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
    rows: int = 128

    @property
    def needs(self) -> tuple[str, ...]:
        """The embedding."""
        return (self.column,)

    @property
    def context(self) -> tuple[str, ...]:
        """Labeled and pending rows are centres already."""
        return (self.column,)

    @property
    def sends(self) -> tuple[str, ...]:
        """The driver weighs proposed rows against each other."""
        return (self.column,)

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return what the traversal takes.

        A row keeps the first draw, its norm and its squared distance, 8 bytes each. A tile may be
        copied, shifted to its mean, beside the products with a block of centres. A block of
        proposals is taken to serve 60 picks; data with many near ties need more blocks.
        """
        d = width(shapes, self.column)
        passes = 5 + k / 60
        return Footprint(
            row=24,
            tile=self.rows * 32,
            transient=TILE_ROWS * (4 * d + 8 * self.rows) + 2_000_000,
            driver=self.rows * 24 * d,
            flops=2.0 * rows * d * (k + 8 * passes),
            read=4.0 * rows * d * (2 + passes),
        )

    def block(self, progress: Progress) -> int:
        """Return the proposals of the next step: one until there is a centre."""
        return self.rows if "open" in progress.state else 1

    def begin(self, tile: Tile, seed: int) -> None:
        """Compute norms; draw the order that stands in for distances until there is a centre."""
        x = tile.columns[self.column]
        norm = squared_norm(x)
        origin = origin_of(x, norm)
        norm = norm if origin is None else squared_norm(x, origin)
        tile.state.update(norm=norm, origin=origin, first=keyed_uniform(tile.keys, seed))

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
            self._commit_of(rows[start : start + CONTEXT_ROWS])
            for start in range(0, len(rows), CONTEXT_ROWS)
        ]

    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Accept proposals in greedy order while they beat every row that was left out."""
        if len(proposal) == 0:
            return None
        if "open" not in progress.state:
            progress.state["open"] = True
            first = proposal.columns[self.column][:1]
            return self._commit_of(first, proposal.keys[:1], np.array([np.inf]))
        between = between_rows(proposal.columns[self.column])  # [m, m]
        squared = proposal.priority[:, 0].copy()
        taken: list[int] = []
        scores: list[float] = []
        while len(taken) < min(len(proposal), progress.left):
            best = _best(squared, proposal.keys)
            if taken and not _beats(squared[best], int(proposal.keys[best]), proposal.bound):
                break
            taken.append(best)
            scores.append(float(squared[best]))
            squared = np.minimum(squared, between[best])
            squared[taken] = -np.inf
        centres = proposal.columns[self.column][taken]
        return self._commit_of(centres, proposal.keys[taken], np.array(scores))

    def reported(self, values: Floats) -> Floats:
        """Return distances of squared distances."""
        return np.asarray(np.sqrt(values))

    def commit(self, tile: Tile, commit: Commit) -> None:
        """Lower each row's distance to that of its nearest new centre."""
        state, centres = tile.state, to_tensor(commit.columns["centres"])
        old = state["squared"] if "squared" in state else np.full(len(tile.keys), np.inf)
        x, norm, origin = tile.columns[self.column], state["norm"], state["origin"]
        state["squared"] = euclidean(x, norm, old, centres, origin=origin)

    def _commit_of(
        self,
        centres: npt.NDArray[Any],
        keys: npt.NDArray[np.uint64] | None = None,
        scores: Floats | None = None,
    ) -> Commit:
        return Commit(
            np.zeros(0, np.uint64) if keys is None else keys,
            np.zeros(0) if scores is None else scores,
            {"centres": centres},
        )


def _best(value: Floats, keys: npt.NDArray[np.uint64]) -> int:
    """Return the position of the largest value, the smaller key winning a tie."""
    ties = np.flatnonzero(value == value.max())
    return int(ties[np.argmin(keys[ties])])


def _beats(value: float, key: int, bound: tuple[tuple[float, ...], int] | None) -> bool:
    return bound is None or (value, -key) > (bound[0][0], -bound[1])
