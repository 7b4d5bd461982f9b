"""k-means||: k-means++ seeding in a few passes that draw many rows at once.

References:
    Bahmani, Moseley, Vattani, Kumar & Vassilvitskii, VLDB 2012, algorithm 2 (oversampling rounds,
    weights, weighted k-means++ on the candidates).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from rayal.selection.kmeans import KMeansPP
from rayal.selection.objective import Commit, Progress
from rayal.selection.threads import Team
from rayal.selection.tiles import Floats, Proposal, Tile
from rayal.types import TILE_ROWS, Keys

_DRAW = 0xD2A3  # streams of chance apart from those of k-means++
_PLUS_PLUS = 0xD2A4
_NO_KEYS: Keys = np.zeros(0, np.uint64)


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
        found = min(rows, 1 + math.ceil(self.rounds * self.oversampling * k))
        blocks = self.rounds + (found + k) / self.rows  # each round's last one is cut
        return replace(
            once,
            row=once.row + 8,
            tile=max(once.tile, 3 * 8 * found),
            transient=TILE_ROWS * 34 * self.rows + 2_000_000,
            driver=once.driver + found * (2 * (4 * wide + 16) + 32 * 12),
            flops=2.0 * rows * wide * (found + k + 8),
            read=4.0 * rows * wide * (2 + blocks),
        )

    def approximation(self) -> dict[str, Any] | None:
        """Return the method and its parameters, with the share where candidates are a sample."""
        made = {"method": "kmeans||", "rounds": self.rounds, "oversampling": self.oversampling}
        return made | (super().approximation() or {})

    def block(self, progress: Progress) -> int:
        """Return one for the first centre; later the phase decides."""
        phase = progress.state.get("phase", "first")
        return {"first": 1, "exact": self.rows}.get(phase, progress.left)

    # -- shards -------------------------------------------------------------------------------

    def receive(self, shared: dict[str, Any], commit: Commit) -> None:
        """Learn what is asked next."""
        shared["flat"] = bool(commit.columns.get("flat", False))
        shared["ask"] = commit.columns.get("ask", "exact")
        shared["rate"] = commit.columns.get("rate", 0.0)

    def commit(self, tile: Tile, commit: Commit) -> None:
        """Lower distances to candidates and remember the nearest; start again for the picks."""
        columns = commit.columns
        if columns.get("reset", False):
            tile.state["centred"] = False
        chosen = () if columns.get("flat", False) else columns.get("a", ())
        for start in range(0, len(chosen), self.rows):
            self._lower(tile, commit, start)
        self._accumulate(tile)

    def _lower(self, tile: Tile, commit: Commit, start: int) -> None:
        stop = start + self.rows
        a, h = (to_tensor(commit.columns[n][start:stop], tile.device) for n in ("a", "h"))
        own = (tile.state["a"], tile.columns[self.embedding], tile.state["norm"])
        new = factored_each(*own, (a, h))
        value, nearest = (to_host(t) for t in new.min(dim=1))
        nearest = nearest + int(commit.columns.get("first", 0)) + start
        if not tile.state.get("centred"):
            tile.state.update(mass=value, nearest=nearest, centred=True)
            return
        closer = value < tile.state["mass"]  # the earlier candidate keeps a tie
        tile.state["nearest"] = np.where(closer, nearest, tile.state["nearest"])
        tile.state["mass"] = np.minimum(value, tile.state["mass"])

    def offer(self, tiles: Sequence[Tile], m: int, step: int, team: Team) -> Proposal:
        """Return what the phase asks of all tiles."""
        if tiles[0].shared.get("ask", "exact") == "exact":
            return super().offer(tiles, m, step, team)
        return self.fold(team.map(lambda tile: self.propose(tile, m, step), tiles), m)

    def propose(self, tile: Tile, m: int, step: int) -> Proposal:
        """Return what the phase asks: the tile's sum, its drawn rows, or its counts."""
        ask = tile.shared["ask"]
        mass = np.where(tile.eligible, tile.state["mass"], 0.0)
        if ask == "sum":
            key = np.array([tile.name], dtype=np.uint64)
            return Proposal(np.zeros((1, 1)), key, {"sum": np.array([mass.sum()])})
        if ask == "count":
            nearest = tile.state["nearest"][tile.eligible]
            size = int(nearest.max(initial=-1)) + 1
            counts = np.bincount(nearest, minlength=size)
            return Proposal(np.zeros((1, 1)), _NO_KEYS, {"count": counts})
        drawn = keyed_uniform(tile.keys, tile.state["seed"], step, _DRAW)
        rows = np.flatnonzero(drawn < tile.shared["rate"] * mass)
        index = to_device(rows, tile.device)
        sent = {n: to_host(tile.state[n][index]) for n in ("a", "norm")}
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
        state = progress.state
        phase = state.setdefault("phase", "first")
        if phase == "exact":
            return super().merge(proposal, progress)
        if phase == "first":
            return self._first(proposal, progress)
        if phase == "sum":
            total = math.fsum(proposal.columns["sum"].tolist())
            state["phase"] = "draw" if total > 0.0 else "count"
            rate = self.oversampling * progress.k / total if total > 0.0 else 0.0
            return _told(ask=state["phase"], rate=rate)
        if phase == "draw":
            return self._drawn(proposal, progress)
        return self._picks(proposal, progress)

    def _first(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Take the first centre as a candidate; without any mass k-means++ takes over."""
        if not np.isfinite(proposal.priority[0, 0]):
            progress.state["phase"] = "exact"
            return super().merge(proposal, progress)
        a, h = proposal.columns["a"][:1], proposal.columns["h"][:1]
        norm = (squared_norm(to_tensor(a)) * squared_norm(to_tensor(h))).numpy()
        found = {"keys": proposal.keys[:1], "a": a, "h": h, "norm": norm}
        progress.state.update(found=found, phase="sum", drawn=0)
        return _told(ask="sum", a=a, h=h, first=0)

    def _drawn(self, proposal: Proposal, progress: Progress) -> Commit:
        """Take a round's rows in as candidates."""
        state = progress.state
        found, first = state["found"], len(state["found"]["keys"])
        new = {"keys": proposal.keys, **{n: proposal.columns[n] for n in ("a", "h", "norm")}}
        state["found"] = {n: np.concatenate([found[n], new[n]]) for n in found}
        state["drawn"] += 1
        state["phase"] = "sum" if state["drawn"] < self.rounds else "count"
        return _told(ask=state["phase"], a=new["a"], h=new["h"], first=first)

    def _picks(self, proposal: Proposal, progress: Progress) -> Commit:
        """Pick among the weighted candidates."""
        found = progress.state["found"]
        weight = np.zeros(len(found["keys"]))
        counts = proposal.columns["count"]
        weight[: len(counts)] = counts
        start = {"norm": found["norm"], "uniform": np.ones(len(weight)), "largest": None}[
            self.first
        ]
        if start is None:
            start = np.where(found["norm"] == found["norm"].max(), found["norm"], 0.0)
        picked, scores = weighted_plus_plus(
            found["a"], found["h"], weight, progress.left, start=start, seed=progress.seed
        )
        progress.state["phase"] = "exact"
        chosen = {n: found[n][picked] for n in ("a", "h")}
        made = _told(ask="exact", reset=True, first=0, **chosen)
        return Commit(found["keys"][picked], scores, made.columns)


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


def _told(**columns: Any) -> Commit:
    """Return a commit without picks."""
    return Commit(_NO_KEYS, np.zeros(0), columns)
