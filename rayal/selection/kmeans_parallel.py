"""k-means||: k-means++ seeding in a few passes that draw many rows at once.

References:
    Bahmani, Moseley, Vattani, Kumar & Vassilvitskii, VLDB 2012, algorithm 2 (oversampling rounds,
    weights, weighted k-means++ on the candidates).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt

from rayal.selection.devices import to_device, to_host
from rayal.selection.distances import (
    factored,
    factored_each,
    factored_pairs,
    squared_norm,
    to_tensor,
)
from rayal.selection.draws import keyed_uniform, uniform
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.kmeans import KMeansPP, KMeansRun, KMeansShard, KMeansTile
from rayal.selection.progress import Commit, Progress
from rayal.selection.threads import Team
from rayal.selection.tiles import Floats, Proposal, Shared, Tile
from rayal.types import TILE_ROWS, Keys

_DRAW = 0xD2A3  # streams of chance apart from those of k-means++
_PLUS_PLUS = 0xD2A4
_NO_KEYS: Keys = np.zeros(0, np.uint64)


@dataclass(slots=True)
class ParallelTile(KMeansTile):
    """The running state of a tile in k-means||: besides, each row's nearest candidate, int64."""

    nearest: npt.NDArray[np.int64] | None = None


@dataclass(slots=True)
class ParallelShard(KMeansShard):
    """The running state of a shard in k-means||.

    Attributes:
        ask: what the phase asks of tiles: exact draws, sum, draw or count.
        rate: chance of a row to be drawn, per unit of mass.
    """

    ask: str = "exact"
    rate: float = 0.0


@dataclass(slots=True)
class Candidates:
    """The rows that were drawn.

    Attributes:
        keys: uint64 ``[M]``.
        a: the first factor ``[M, C]``.
        h: the second factor ``[M, D]``.
        norm: squared norms ``[M]`` of their products.
    """

    keys: Keys
    a: npt.NDArray[Any]
    h: npt.NDArray[Any]
    norm: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(slots=True)
class ParallelRun(KMeansRun):
    """The running state of the driver in k-means||.

    Attributes:
        phase: first, sum, draw, count or exact.
        drawn: passes that have drawn.
        candidates: the rows drawn so far.
    """

    phase: str = "first"
    drawn: int = 0
    candidates: Candidates = field(init=False)


@dataclass(frozen=True)
class KMeansParallel(KMeansPP):
    """k picks by k-means||, all of them rows of the pool.

    After a first centre, every round takes each row by itself with probability min(1, l q / sum
    of q), q its squared distance to the nearest candidate and l = oversampling x k. A candidate
    weighs as many rows as it is nearest to; weighted k-means++ on the driver picks k of them.
    Round trips: 2 rounds + 3, whatever k. The law is not that of k-means++. Where fewer than
    k candidates are distinct, k-means++ goes on from them. The driver holds about
    1 + rounds x oversampling x k rows, and one float per tile.

    Args:
        rounds: passes that draw.
        oversampling: rows drawn per pass, on average at most, as a multiple of k; a half to two.
    """

    title: ClassVar[str] = "k-means||"
    tile_kind: ClassVar[type[KMeansTile]] = ParallelTile
    shard_kind: ClassVar[type[KMeansShard]] = ParallelShard

    rows: Annotated[int, Ge(1)] = 128
    rounds: Annotated[int, Ge(1)] = 5
    oversampling: Annotated[float, Gt(0)] = 2.0

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return what the passes take, with as many candidates M as are drawn on average at most.

        A row keeps its nearest candidate too. A tile's counts are there as made, padded and
        stacked. Distances to a block of candidates are float64, with four arrays of their size.
        Candidates are on the driver twice while they are joined; every row meets all of them, and
        the picks.
        """
        once = super().footprint(shapes, rows, k)
        left = self.log_probs or self.residual
        wide = width(shapes, self.embedding) + (1 if left is None else width(shapes, left))
        candidates = min(rows, 1 + math.ceil(self.rounds * self.oversampling * k))
        blocks = self.rounds + (candidates + k) / self.rows  # each round's last one is cut
        return replace(
            once,
            row=once.row + 8,
            tile=max(once.tile, 3 * 8 * candidates),
            transient=TILE_ROWS * 34 * self.rows + 2_000_000,
            driver=once.driver + candidates * (2 * (4 * wide + 16) + 32 * 12),
            flops=2.0 * rows * wide * (candidates + k + 8),
            read=4.0 * rows * wide * (2 + blocks),
        )

    def approximation(self) -> dict[str, Any] | None:
        """Return the method and its parameters, with the share where candidates are a sample."""
        record = {"method": "kmeans||", "rounds": self.rounds, "oversampling": self.oversampling}
        return record | (super().approximation() or {})

    def block(self, progress: Progress) -> int:
        """Return one for the first centre; later the phase decides."""
        phase = progress.state_as(ParallelRun).phase
        return {"first": 1, "exact": self.rows}.get(phase, progress.left)

    def driver_state(self) -> ParallelRun:
        """Return the state of the first phase."""
        return ParallelRun()

    # -- shards -------------------------------------------------------------------------------

    def receive(self, shared: Shared, commit: Commit) -> None:
        """Learn what is asked next."""
        shard = shared.state_as(ParallelShard)
        shard.flat = bool(commit.columns.get("flat", False))
        shard.ask = commit.columns.get("ask", "exact")
        shard.rate = commit.columns.get("rate", 0.0)

    def commit(self, tile: Tile, commit: Commit) -> None:
        """Lower distances to candidates and remember the nearest; start again for the picks."""
        columns = commit.columns
        if columns.get("reset", False):
            tile.state_as(KMeansTile).centred = False
        chosen = () if columns.get("flat", False) else columns.get("a", ())
        for start in range(0, len(chosen), self.rows):
            self._lower(tile, commit, start)
        self._accumulate(tile)

    def _lower(self, tile: Tile, commit: Commit, start: int) -> None:
        stop = start + self.rows
        a, h = (to_tensor(commit.columns[n][start:stop], tile.device) for n in ("a", "h"))
        state = tile.state_as(ParallelTile)
        new = factored_each(state.a, tile.columns[self.embedding], state.norm, (a, h))
        value, nearest = (to_host(t) for t in new.min(dim=1))
        nearest = nearest + int(commit.columns.get("first", 0)) + start
        if state.nearest is None or not state.centred:
            state.mass, state.nearest, state.centred = value, nearest, True
            return
        closer = value < state.mass  # the earlier candidate keeps a tie
        state.nearest = np.where(closer, nearest, state.nearest)
        state.mass = np.minimum(value, state.mass)

    def offer(self, tiles: Sequence[Tile], m: int, step: int, team: Team) -> Proposal:
        """Return what the phase asks of all tiles."""
        if tiles[0].shared.state_as(ParallelShard).ask == "exact":
            return super().offer(tiles, m, step, team)
        return self.fold(team.map(lambda tile: self.propose(tile, m, step), tiles), m)

    def propose(self, tile: Tile, m: int, step: int) -> Proposal:
        """Return what the phase asks: the tile's sum, its drawn rows, or its counts."""
        shard, state = tile.shared.state_as(ParallelShard), tile.state_as(ParallelTile)
        mass = np.where(tile.eligible, state.mass, 0.0)
        if shard.ask == "sum":
            key = np.array([tile.name], dtype=np.uint64)
            return Proposal(np.zeros((1, 1)), key, {"sum": np.array([mass.sum()])})
        if shard.ask == "count":
            assert state.nearest is not None  # a candidate came before
            nearest = state.nearest[tile.eligible]
            size = int(nearest.max(initial=-1)) + 1
            counts = np.bincount(nearest, minlength=size)
            return Proposal(np.zeros((1, 1)), _NO_KEYS, {"count": counts})
        drawn = keyed_uniform(tile.keys, state.seed, step, _DRAW)
        rows = np.flatnonzero(drawn < shard.rate * mass)
        index = to_device(rows, tile.device)
        sent = {"a": to_host(state.a[index]), "norm": to_host(state.norm[index])}
        sent["h"] = to_host(tile.rows(self.embedding, rows))
        return Proposal(np.zeros((len(rows), 1)), tile.keys[rows], sent)

    def fold(self, proposals: Sequence[Proposal], m: int) -> Proposal:
        """Join sums and drawn rows in key order, add counts; else let the tiles race."""
        names = proposals[0].columns
        if "mass" in names:
            return super().fold(proposals, m)
        if "count" in names:
            size = max(len(p.columns["count"]) for p in proposals)
            counts = [
                np.pad(p.columns["count"], (0, size - len(p.columns["count"]))) for p in proposals
            ]
            return Proposal(np.zeros((1, 1)), _NO_KEYS, {"count": np.sum(counts, axis=0)})
        keys = np.concatenate([p.keys for p in proposals])
        order = np.argsort(keys)
        sent = {n: np.concatenate([p.columns[n] for p in proposals])[order] for n in names}
        return Proposal(np.zeros((len(keys), 1)), keys[order], sent)

    # -- the driver ---------------------------------------------------------------------------

    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Go one phase further: first centre, then (sum, draw) rounds, counts, picks, the rest."""
        run = progress.state_as(ParallelRun)
        if run.phase == "exact":
            return super().merge(proposal, progress)
        if run.phase == "first":
            return self._first(proposal, progress)
        if run.phase == "sum":
            total = math.fsum(proposal.columns["sum"].tolist())
            run.phase = "draw" if total > 0.0 else "count"
            rate = self.oversampling * progress.k / total if total > 0.0 else 0.0
            return _message(ask=run.phase, rate=rate)
        if run.phase == "draw":
            return self._drawn(proposal, run)
        return self._picks(proposal, progress)

    def _first(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Take the first centre as a candidate; without any mass k-means++ takes over."""
        run = progress.state_as(ParallelRun)
        if not np.isfinite(proposal.priority[0, 0]):
            run.phase = "exact"
            return super().merge(proposal, progress)
        a, h = proposal.columns["a"][:1], proposal.columns["h"][:1]
        norm = (squared_norm(to_tensor(a)) * squared_norm(to_tensor(h))).numpy()
        run.candidates, run.phase = Candidates(proposal.keys[:1], a, h, norm), "sum"
        return _message(ask="sum", a=a, h=h, first=0)

    def _drawn(self, proposal: Proposal, run: ParallelRun) -> Commit:
        """Take a round's rows in as candidates."""
        before = run.candidates
        a, h, norm = (proposal.columns[n] for n in ("a", "h", "norm"))
        run.candidates = Candidates(
            np.concatenate([before.keys, proposal.keys]),
            np.concatenate([before.a, a]),
            np.concatenate([before.h, h]),
            np.concatenate([before.norm, norm]),
        )
        run.drawn += 1
        run.phase = "sum" if run.drawn < self.rounds else "count"
        return _message(ask=run.phase, a=a, h=h, first=len(before))

    def _picks(self, proposal: Proposal, progress: Progress) -> Commit:
        """Pick among the weighted candidates."""
        run = progress.state_as(ParallelRun)
        rows, norm = run.candidates, run.candidates.norm
        weight = np.zeros(len(rows))
        counts = proposal.columns["count"]
        weight[: len(counts)] = counts
        if self.first == "uniform":
            start = np.ones(len(weight))
        else:
            start = norm if self.first == "norm" else np.where(norm == norm.max(), norm, 0.0)
        picked, scores = weighted_plus_plus(
            rows.a, rows.h, weight, progress.left, start=start, seed=progress.seed
        )
        run.phase = "exact"
        message = _message(ask="exact", reset=True, first=0, a=rows.a[picked], h=rows.h[picked])
        return Commit(rows.keys[picked], scores, message.columns)


def weighted_plus_plus(
    a: npt.NDArray[Any],
    h: npt.NDArray[Any],
    weight: Floats,
    k: int,
    *,
    start: Floats,
    seed: int,
    rows: int = 32,
) -> tuple[list[int], Floats]:
    """Draw up to k candidates in proportion to weight x squared distance to those drawn before.

    Draws are made from stale distances, a block at a time, and kept with probability true / stale,
    which restores the exact law. Fewer than k come back where fewer are distinct and have weight.

    Args:
        a: float32 ``[M, C]``.
        h: float32 ``[M, D]``.
        weight: ``[M]``.
        k: number of draws.
        start: ``[M]``, stands in for the squared distance in the first draw.
        seed: seeds the draws.
        rows: draws per block.

    Returns:
        Positions in order, and each one's squared distance when it was drawn.
    """
    left, right = to_tensor(a), to_tensor(h)
    norm = squared_norm(left) * squared_norm(right)
    picked: list[int] = []
    scores: list[float] = []
    stale, step = np.asarray(start, dtype=np.float64), 0
    while len(picked) < k:
        cumulative = np.cumsum(weight * stale)
        if len(cumulative) == 0 or cumulative[-1] <= 0.0:
            break
        count = rows if picked else 1
        draws = keyed_uniform(np.arange(count, dtype=np.uint64), seed, step, _PLUS_PLUS, 1)
        drawn = np.searchsorted(cumulative, draws * cumulative[-1], side="right")
        true = stale[drawn].copy()
        taken: list[int] = []
        for s, row in enumerate(drawn.tolist()):
            keep = uniform(seed, step, _PLUS_PLUS, 2, s) * stale[row] < true[s]
            if len(picked) + len(taken) == k or not keep:
                continue
            taken.append(row)
            scores.append(float(true[s]))
            pairs = factored_pairs(left[drawn], right[drawn], left[row], right[row])
            true = np.minimum(true, pairs.numpy())
        picked += taken
        old = stale if step else np.full(len(stale), np.inf)
        stale = factored(left, right, norm, old, (left[taken], right[taken]))
        step += 1
    return picked, np.array(scores)


def _message(**columns: Any) -> Commit:
    """Return a commit without picks."""
    return Commit(_NO_KEYS, np.zeros(0), columns)
