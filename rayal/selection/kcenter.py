"""K-center: the farthest row from everything chosen so far.

References:
    Gonzalez, Theoretical Computer Science 38, 1985 (greedy, 2-approximation);
    Sener & Savarese, ICLR 2018, algorithm 1 (as an active-learning strategy).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from rayal.selection.coverage import BLOCK, CENTRES, CONFIRMED, PART, Coverage, CoverageTile
from rayal.selection.devices import to_host
from rayal.selection.distances import apart, to_tensor
from rayal.selection.draws import keyed_uniform
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.objective import Finished, Objective, Quality
from rayal.selection.progress import Commit, Progress
from rayal.selection.quality import Picks, beside_exact, covering_radius
from rayal.selection.threads import Team
from rayal.selection.tiles import Floats, Proposal, Shared, Tile, best_rows

CONTEXT_ROWS = 256  # labeled rows per opening message
SLACK = 0.04  # of the squared distance of the last pick: what the next step looks at
CLOSEST = 1e-10  # relative size of what rounding may do to float64 products


@dataclass(slots=True)
class KCenterShard:
    """The running state of a shard's traversal.

    Attributes:
        coverage: how far each row lies from its nearest centre.
        seed: of the first centre.
        threshold: squared distance from which on rows are looked at; None where all are.
    """

    coverage: Coverage
    seed: int
    threshold: float | None = None


@dataclass(slots=True)
class KCenterRun:
    """The running state of the driver's traversal.

    Attributes:
        open: whether there is a centre.
        slack: share of the last squared distance by which the threshold lies below it.
    """

    open: bool = False
    slack: float = SLACK


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
    shard_kind: ClassVar[type[KCenterShard]] = KCenterShard

    column: str = "embedding"
    rows: int = 256

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

        A row keeps its bound, its norm, how many centres it has met and whether the bound is
        exact. A shard keeps the centres, twice where they are shifted, with room for as many, and
        the rows that it proposes as made and packed. A thread holds a block of rows, its products
        with a block of centres, and some numbers of each row of a part. All rows meet the first
        centre; most of the others' products are taken to be needed.
        """
        d = width(shapes, self.column)
        return Footprint(
            row=8 + 4 + 4 + 1,
            transient=12 * max(BLOCK, CONFIRMED * d)
            + 4 * CENTRES * max(CONFIRMED, BLOCK // d)
            + 64 * min(rows, PART),
            shard=(4 * k + 3 * self.rows) * 4 * d + 2_000_000,
            driver=(k + self.rows * 8) * 4 * d + 32 * self.rows**2,
            flops=2.0 * rows * d * (1 + 0.75 * k),
            read=4.0 * rows * d * (2 + k / 50),
        )

    def block(self, progress: Progress) -> int:
        """Return the proposals of the next step: one until there is a centre."""
        return self.rows if progress.state_as(KCenterRun).open else 1

    def driver_state(self) -> KCenterRun:
        """Return the state before there is a centre."""
        return KCenterRun()

    def prepare(self, tiles: Sequence[Tile], seed: int, team: Team) -> None:
        """Set up what the shard's rows keep; no row is read before there is a centre."""
        tiles[0].shared.state = self.shard_kind(Coverage(tiles, self.column), seed)

    def gain(self, tile: Tile) -> Floats:
        """Return squared distances to the nearest centre, or bounds; the draw if there is none."""
        shard = tile.shared.state_as(KCenterShard)
        if shard.coverage.count == 0:
            return keyed_uniform(tile.keys, shard.seed)
        return tile.state_as(CoverageTile).upper

    def offer(self, tiles: Sequence[Tile], m: int, step: int, team: Team) -> Proposal:
        """Return the shard's farthest rows above the threshold, and a bound on all others."""
        shard = tiles[0].shared.state_as(KCenterShard)
        coverage, stack = shard.coverage, shard.coverage.stack
        if coverage.count == 0:
            whole = Tile(stack.keys, {}, stack.eligible)
            first = best_rows(whole, keyed_uniform(stack.keys, shard.seed), m)
            rows, value, bound = first.columns["row"], first.priority, first.bound
        else:
            lowest = -np.inf if shard.threshold is None else shard.threshold
            coverage.refresh(lowest, team)
            rows, left = coverage.top(m, lowest)
            value = coverage.upper[rows, None]
            bound = None if left is None else ((left[0],), left[1])
        order = np.argsort(rows)
        sent = np.empty((len(rows), stack.width), dtype=np.float32)
        room = torch.empty(sent.shape, device=stack.device)
        sent[order] = to_host(stack.gather(rows[order], room))
        return Proposal(value, stack.keys[rows], {self.column: sent}, bound)

    def open(self, context: Mapping[str, npt.NDArray[Any]], progress: Progress) -> list[Commit]:
        """Send labeled and pending rows as centres, some at a time."""
        rows = context.get(self.column)
        if rows is None or len(rows) == 0:
            return []
        progress.state_as(KCenterRun).open = True
        return [
            self._commit_of(rows[start : start + CONTEXT_ROWS])
            for start in range(0, len(rows), CONTEXT_ROWS)
        ]

    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Accept proposals in greedy order while they beat every row that was left out."""
        if len(proposal) == 0 and proposal.bound is None:
            return None
        run = progress.state_as(KCenterRun)
        if not run.open:
            run.open = True
            first = proposal.columns[self.column][:1]
            return self._commit_of(first, proposal.keys[:1], np.array([np.inf]))
        race = _Race(proposal.columns[self.column], proposal.priority[:, 0], proposal.keys)
        scores: list[float] = []
        while len(scores) < min(len(proposal), progress.left):
            best = race.best()
            if not _beats(race.upper[best], int(proposal.keys[best]), proposal.bound):
                break
            scores.append(float(race.upper[best]))
            race.take(best)
        centres = proposal.columns[self.column][race.taken]
        threshold = self._threshold(proposal, scores, run)
        return self._commit_of(centres, proposal.keys[race.taken], np.array(scores), threshold)

    def _threshold(self, proposal: Proposal, scores: list[float], run: KCenterRun) -> float:
        """Return how far rows must lie to be looked at in the next step.

        As low as serves a block of picks: lower after a step that took all it was offered, higher
        after one that took very few of it, else back towards what serves most data.
        """
        slack = run.slack
        if len(scores) == len(proposal):
            slack = min(0.5, 2.0 * slack)
        elif 32 * len(scores) < len(proposal):
            slack = max(SLACK / 4.0, slack / 2.0)
        else:
            slack = max(SLACK, slack / 2.0) if slack > SLACK else min(SLACK, slack * 1.5)
        run.slack = slack
        if scores:
            return scores[-1] * (1.0 - slack)
        assert proposal.bound is not None
        return proposal.bound[0][0] * (1.0 - slack)

    def reported(self, values: Floats) -> Floats:
        """Return distances of squared distances."""
        return np.asarray(np.sqrt(values))

    def receive(self, shared: Shared, commit: Commit) -> None:
        """Keep the new centres, and the threshold of the next step."""
        shard = shared.state_as(KCenterShard)
        device = shard.coverage.stack.device
        shard.coverage.extend(to_tensor(commit.columns["centres"], device))
        shard.threshold = commit.columns["threshold"]

    def settle(self, tiles: Sequence[Tile], m: int, team: Team) -> None:
        """Make the distances of the shard's m farthest rows exact."""
        coverage = tiles[0].shared.state_as(KCenterShard).coverage
        if coverage.count:
            coverage.refresh(np.inf, team)  # the rows that have met no centre at all
            coverage.top(m)

    def exact(self) -> KCenter:
        """Return the one-by-one greedy over all rows."""
        return KCenter(self.column, self.rows)

    def measure(self, finished: Finished) -> Quality | None:
        """Return the covering radius beside that of the exact greedy."""
        exact = self.exact()

        def radius(sample: Sequence[Tile], picks: Picks) -> float:
            rows = picks[1][exact.column]
            centres = [rows, finished.context.get(exact.column, rows[:0])]
            return covering_radius(sample, exact.column, np.concatenate(centres))

        return beside_exact(exact, finished, "covering radius", radius, draws=1)

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


class _Race:
    """The proposed rows among themselves: which is farthest once some of them are centres.

    Products in float64 bound the distances; a row that leads by a bound is computed again from
    differences, so that what is compared and recorded is a function of the rows alone.
    """

    def __init__(self, x: npt.NDArray[Any], squared: Floats, keys: npt.NDArray[np.uint64]) -> None:
        self._x = x.astype(np.float64)
        wide = torch.from_numpy(self._x)
        dots = (wide @ wide.T).numpy()
        scale = dots.diagonal()[:, None] + dots.diagonal()
        self._rounding = CLOSEST * scale
        self._between = scale - 2.0 * dots
        self._squared, self._keys = squared, keys
        self._exact = np.ones(len(x), dtype=bool)
        self.upper, self.taken = squared.copy(), list[int]()

    def best(self) -> int:
        """Return the row that leads, its distance exact; the smaller key wins a tie."""
        while True:
            ties = np.flatnonzero(self.upper == self.upper.max())
            best = int(ties[np.argmin(self._keys[ties])])
            if self._exact[best]:
                return best
            least = self._between[best, self.taken] - self._rounding[best, self.taken]
            near = np.array(self.taken)[least <= self.upper[best]]
            own = np.broadcast_to(self._x[best], (len(near), self._x.shape[1]))
            squared = apart(own, self._x[near]).min(initial=self._squared[best])
            self.upper[best], self._exact[best] = squared, True

    def take(self, row: int) -> None:
        """Let a row be a centre."""
        between, rounding = self._between[row], self._rounding[row]
        self._exact &= (between - rounding > self.upper) | (self.upper <= 0.0)
        self.upper = np.minimum(self.upper, between + rounding)
        self.taken.append(row)
        self.upper[self.taken] = -np.inf
        self._exact[self.taken] = True


def _beats(value: float, key: int, bound: tuple[tuple[float, ...], int] | None) -> bool:
    return bound is None or (value, -key) > (bound[0][0], -bound[1])
