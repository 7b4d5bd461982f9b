"""K-center: the farthest row from everything chosen so far.

References:
    Gonzalez, Theoretical Computer Science 38, 1985 (greedy, 2-approximation);
    Sener & Savarese, ICLR 2018, algorithm 1 (as an active-learning strategy).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from rayal.selection.devices import to_device
from rayal.selection.distances import Between, euclidean, origin_of, squared_norm, to_tensor
from rayal.selection.draws import keyed_uniform
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.objective import Commit, Objective, Progress
from rayal.selection.tiles import Floats, Proposal, Tile, best_rows
from rayal.types import TILE_ROWS

CONTEXT_ROWS = 256  # labeled rows per opening message
CENTRES = 256  # of one product
PAIRS = 1 << 16  # rows x centres up to which one product is made of all
SETTLED = 256  # rows brought up to date at once for the runners-up
_LAGS = (0, 16, 128, 1 << 30)  # centres not met by rows that are brought up to date together


@dataclass(frozen=True)
class KCenter(Objective):
    """Greedy k-center in blocks that are exactly the one-by-one sequence.

    Distances only fall, so what a row had is an upper bound. The driver names a threshold; shards
    bring the rows above it up to date, by one product with all centres they have not met, propose
    the farthest of them, and bound the rest. Proposals are accepted for as long as the best of
    them beats that bound: mostly a small share of the rows is touched for a block of picks.
    Without labeled rows the first centre is a uniform draw by the seed.

    Args:
        column: the embedding column ``[N, D]``.
        rows: most proposals per step.
    """

    title: ClassVar[str] = "k-center"

    column: str = "embedding"
    rows: int = 128

    @property
    def needs(self) -> tuple[str, ...]:
        """The embedding."""
        return (self.column,)

    @property
    def narrow(self) -> tuple[str, ...]:
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

        A row keeps its norm, its squared distance and how many centres it has met. A tile may be
        copied, shifted to its mean, beside the products with a block of centres. All rows meet the
        first centre; a quarter of the others' products is taken to be needed.
        """
        d = width(shapes, self.column)
        return Footprint(
            row=20,
            tile=self.rows * 32,
            transient=TILE_ROWS * (8 * d + 4 * CENTRES) + 2_000_000,
            driver=(k + self.rows * 6) * 4 * d,
            flops=2.0 * rows * d * (8 + k / 4),
            read=4.0 * rows * d * (3 + k / 30),
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
        """Return squared distances to the nearest centre, or bounds above the threshold's rows."""
        return np.asarray(tile.state["squared" if "squared" in tile.state else "first"])

    def propose(self, tile: Tile, m: int, step: int) -> Proposal:
        """Return the tile's farthest rows above the threshold, and a bound on all others."""
        gain, threshold = self.gain(tile), tile.shared.get("threshold")
        if threshold is None:
            return best_rows(tile, gain, m)
        above = tile.eligible & (gain >= threshold)
        found = best_rows(tile, gain, m, among=above)
        rest = np.where(tile.eligible & ~above, gain, -np.inf)
        if found.bound is None and (top := rest.max()) > -np.inf:
            best = np.flatnonzero(rest == top)
            return replace(found, bound=((float(top),), int(tile.keys[best].min())))
        return found

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
        if len(proposal) == 0 and proposal.bound is None:
            return None
        if "open" not in progress.state:
            progress.state["open"] = True
            first = proposal.columns[self.column][:1]
            return self._commit_of(first, proposal.keys[:1], np.array([np.inf]))
        between = Between(proposal.columns[self.column])
        squared = proposal.priority[:, 0].copy()
        taken: list[int] = []
        scores: list[float] = []
        while len(taken) < min(len(proposal), progress.left):
            best = _best(squared, proposal.keys)
            if not _beats(squared[best], int(proposal.keys[best]), proposal.bound):
                break
            taken.append(best)
            scores.append(float(squared[best]))
            squared = np.minimum(squared, between.row(best))
            squared[taken] = -np.inf
        centres = proposal.columns[self.column][taken]
        threshold = self._threshold(proposal, scores, progress)
        return self._commit_of(centres, proposal.keys[taken], np.array(scores), threshold)

    def _threshold(self, proposal: Proposal, scores: list[float], progress: Progress) -> float:
        """Return how far rows must lie to be looked at in the next step.

        As low as serves a block of picks: lower after a step that took all it was offered, higher
        after one that took few.
        """
        slack: float = progress.state.get("slack", 0.02)
        if len(scores) == len(proposal):
            slack = min(0.5, 2.0 * slack)
        elif 4 * len(scores) < len(proposal):
            slack = max(1e-4, slack / 2.0)
        progress.state["slack"] = slack
        if scores:
            return scores[-1] * (1.0 - slack)
        assert proposal.bound is not None
        return proposal.bound[0][0] * (1.0 - slack)

    def reported(self, values: Floats) -> Floats:
        """Return distances of squared distances."""
        return np.asarray(np.sqrt(values))

    def receive(self, shared: dict[Any, Any], commit: Commit) -> None:
        """Keep the new centres, and the threshold of the next step."""
        new = to_tensor(commit.columns["centres"], shared.get("device"))
        for name, value in (("centres", new), ("length", squared_norm(new))):
            old = shared.get(name)
            shared[name] = value if old is None else torch.cat([old, value])
        shared["threshold"] = commit.columns["threshold"]

    def commit(self, tile: Tile, commit: Commit) -> None:
        """Bring the distances of the rows above the threshold up to date."""
        state, threshold = tile.state, commit.columns["threshold"]
        if "squared" not in state:
            del state["first"]
            state["squared"] = np.full(len(tile.keys), np.inf)
            state["met"] = np.zeros(len(tile.keys), dtype=np.int32)
        if threshold is None:
            self._update(tile, np.arange(len(tile.keys)))
        else:
            self._update(tile, np.flatnonzero(tile.eligible & (state["squared"] >= threshold)))

    def settle(self, tile: Tile, m: int) -> None:
        """Bring the tile's m farthest rows up to date."""
        state = tile.state
        while "squared" in state:
            masked = np.where(tile.eligible, state["squared"], -np.inf)
            order = np.argsort(-masked, kind="stable")
            rows = order[: m + 1]
            if (state["met"][rows] == len(tile.shared["centres"])).all():
                return
            rows = order[: max(m + 1, SETTLED)]
            rows = rows[tile.eligible[rows] & (state["met"][rows] < len(tile.shared["centres"]))]
            if len(rows) == 0:
                return
            self._update(tile, rows)

    def _update(self, tile: Tile, rows: npt.NDArray[np.int64]) -> None:
        """Let rows meet all centres that they have not met; rows of like lag go together."""
        state, centres = tile.state, tile.shared["centres"]
        lag = len(centres) - state["met"][rows]
        few = len(rows) * int(lag.max(initial=0)) < PAIRS
        for low, high in itertools.pairwise((0, _LAGS[-1]) if few else _LAGS):
            some = rows[(lag > low) & (lag <= high)]
            if len(some):
                first = int(state["met"][some].min())
                for start in range(first, len(centres), CENTRES):
                    self._lower(tile, some, slice(start, start + CENTRES))
        state["met"][rows] = len(centres)

    def _lower(self, tile: Tile, rows: npt.NDArray[np.int64], which: slice) -> None:
        """Let rows meet some centres."""
        state, norm = tile.state, tile.state["norm"]
        origin, centres = state["origin"], tile.shared["centres"][which]
        length = tile.shared["length"][which] if origin is None else None
        if 2 * len(rows) > len(norm):  # a product costs less than a copy of that many rows
            x = tile.columns[self.column]
            made = euclidean(x, norm, state["squared"], centres, origin=origin, length=length)
            state["squared"][rows] = made[rows]
            return
        x, old = tile.rows(self.column, rows), state["squared"][rows]
        norm = norm[to_device(rows, norm.device)]
        made = euclidean(x, norm, old, centres, origin=origin, length=length)
        state["squared"][rows] = made

    def _commit_of(
        self,
        centres: npt.NDArray[Any],
        keys: npt.NDArray[np.uint64] | None = None,
        scores: Floats | None = None,
        threshold: float | None = None,
    ) -> Commit:
        return Commit(
            np.zeros(0, np.uint64) if keys is None else keys,
            np.zeros(0) if scores is None else scores,
            {"centres": centres, "threshold": threshold},
        )


def _best(value: Floats, keys: npt.NDArray[np.uint64]) -> int:
    """Return the position of the largest value, the smaller key winning a tie."""
    ties = np.flatnonzero(value == value.max())
    return int(ties[np.argmin(keys[ties])])


def _beats(value: float, key: int, bound: tuple[tuple[float, ...], int] | None) -> bool:
    return bound is None or (value, -key) > (bound[0][0], -bound[1])
