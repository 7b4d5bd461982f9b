"""K-center in two rounds: the best centres of every part, then the best of those.

References:
    Malkomes, Kusner, Chen, Weinberger & Moseley, NeurIPS 2015, algorithm 1 (greedy in every
    partition, greedy on the union: a 4-approximation, whatever the partition).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from rayal.selection.devices import to_host
from rayal.selection.distances import to_tensor
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.greedy import Chosen, LocalShards, Shard, choose
from rayal.selection.kcenter import KCenter, KCenterRun, KCenterShard
from rayal.selection.progress import Commit, Progress
from rayal.selection.threads import Team
from rayal.selection.tiles import Floats, Proposal, Shared, Tile, cut_tiles
from rayal.types import Keys, part_rows


@dataclass(frozen=True)
class _Squared(KCenter):
    """K-center whose scores stay squared distances."""

    def reported(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return values


@dataclass(slots=True)
class TwoRoundShard(KCenterShard):
    """The running state of a shard in two rounds.

    Attributes:
        groups: key of a group to its tiles.
        known: labeled and pending rows, ``[b, D]`` as they came.
    """

    groups: dict[int, list[Tile]] = field(default_factory=dict)
    known: list[npt.NDArray[Any]] = field(default_factory=list)


@dataclass(slots=True)
class TwoRoundRun(KCenterRun):
    """The running state of the driver in two rounds.

    Attributes:
        known: labeled and pending rows, ``[L, D]``.
        plan: keys, scores and rows of all picks, once the last round has run.
    """

    known: npt.NDArray[Any] | None = None
    plan: tuple[Keys, Floats, npt.NDArray[Any]] | None = None


@dataclass(frozen=True)
class TwoRoundKCenter(KCenter):
    """Greedy k-center over the union of each part's k greedy centres: one round trip for all picks.

    Both rounds start from the labeled and pending rows, which are centres already. The covering
    radius is at most four times the optimum; the exact greedy guarantees two. A part is fixed at
    ingest, so the picks do not depend on the number of shards. Declared gather: k rows of every
    part come to the driver at once, and every shard keeps the labeled rows.
    """

    title: ClassVar[str] = "two-round k-center"
    grouped: ClassVar[bool] = True
    shard_kind: ClassVar[type[KCenterShard]] = TwoRoundShard

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return what both rounds take; a part has so many rows as ingest gives it.

        While a thread is at a part it keeps the state of its rows a second time, and which are
        eligible. Every part sends k rows with key and score; the driver's greedy runs on those.
        """
        once = super().footprint(shapes, rows, k)
        part = min(rows, part_rows(rows))
        union = min(rows, k * -(-rows // part_rows(rows)))
        last = super().footprint(shapes, union, k)
        return replace(
            once,
            part=min(k, part) * (4 * width(shapes, self.column) + 16),
            transient=once.transient + part * (once.row + 1),
            driver=last.driver + union * (last.row + 1),
            flops=once.flops + last.flops,
            read=once.read + last.read,
        )

    def approximation(self) -> dict[str, Any] | None:
        """Return the method, with the share of candidates where they are a sample."""
        return {"method": "two_round", **(super().approximation() or {})}

    def block(self, progress: Progress) -> int:
        """Return all that is missing: every part offers as many."""
        return progress.left

    def prepare(self, tiles: Sequence[Tile], seed: int, team: Team) -> None:
        """Enter the tiles in their groups."""
        super().prepare(tiles, seed, team)
        shard = tiles[0].shared.state_as(TwoRoundShard)
        for tile in tiles:
            shard.groups.setdefault(tile.group, []).append(tile)

    def driver_state(self) -> TwoRoundRun:
        """Return the state before the parts have answered."""
        return TwoRoundRun()

    def open(self, context: Mapping[str, npt.NDArray[Any]], progress: Progress) -> list[Commit]:
        """Send labeled and pending rows, and keep them for the last round."""
        progress.state_as(TwoRoundRun).known = context.get(self.column)
        return super().open(context, progress)

    def receive(self, shared: Shared, commit: Commit) -> None:
        """Keep labeled and pending rows: a part's greedy starts from them."""
        super().receive(shared, commit)
        if len(commit.keys) == 0:
            shared.state_as(TwoRoundShard).known.append(commit.columns["centres"])

    def offer(self, tiles: Sequence[Tile], m: int, step: int, team: Team) -> Proposal:
        """Return the centres of the shard's groups."""
        return self.fold(team.map(lambda tile: self.propose(tile, m, step), tiles), m)

    def propose(self, tile: Tile, m: int, step: int) -> Proposal:
        """Return the greedy centres of the tile's group, once; its other tiles offer nothing."""
        shard = tile.shared.state_as(TwoRoundShard)
        group = shard.groups[tile.group]
        if step > 0 or tile is not group[0]:
            empty = to_host(tile.rows(self.column, slice(0)))
            return Proposal(np.zeros((0, 1)), tile.keys[:0], {self.column: empty})
        inner = [Tile(t.keys, t.columns, t.eligible) for t in group]
        known = np.concatenate(shard.known) if shard.known else None
        chosen = self._greedy(inner, m, shard.seed, known)
        taken = [np.flatnonzero(np.isin(t.keys, chosen.keys) & t.eligible) for t in inner]
        pairs = list(zip(inner, taken, strict=True))
        keys = np.concatenate([t.keys[rows] for t, rows in pairs])
        columns = [to_host(t.rows(self.column, rows)) for t, rows in pairs]
        sent = {self.column: np.concatenate(columns)}
        return Proposal(np.zeros((len(keys), 1)), keys, sent)

    def fold(self, proposals: Sequence[Proposal], m: int) -> Proposal:
        """Join what the parts offer, in key order; nothing is left out."""
        keys = np.concatenate([p.keys for p in proposals])
        order = np.argsort(keys)
        rows = np.concatenate([p.columns[self.column] for p in proposals])[order]
        return Proposal(np.zeros((len(keys), 1)), keys[order], {self.column: rows})

    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Run the greedy on the union, then hand out its picks a block at a time."""
        run = progress.state_as(TwoRoundRun)
        if run.plan is None:
            run.plan = self._plan(proposal, progress)
        keys, scores, rows = run.plan
        done = slice(len(progress.keys), len(progress.keys) + self.rows)
        if len(keys[done]) == 0:
            return None
        return self._commit_of(rows[done], keys[done], scores[done])

    def _plan(self, union: Proposal, progress: Progress) -> tuple[Keys, Floats, npt.NDArray[Any]]:
        tiles = cut_tiles(union.keys, {self.column: to_tensor(union.columns[self.column])})
        known = progress.state_as(TwoRoundRun).known
        chosen = self._greedy(tiles, progress.k, progress.seed, known)
        rows = union.columns[self.column][np.searchsorted(union.keys, chosen.keys)]
        return chosen.keys, chosen.scores, rows

    def _greedy(
        self, tiles: Sequence[Tile], k: int, seed: int, known: npt.NDArray[Any] | None
    ) -> Chosen:
        """Run the exact greedy on tiles, from the known rows."""
        inner = _Squared(self.column, self.rows)
        own_tiles = [Tile(t.keys, t.columns, t.eligible.copy()) for t in tiles]
        context = {} if known is None else {self.column: known}
        return choose(
            inner, LocalShards([Shard(inner, own_tiles, seed)]), k, seed=seed, context=context,
            runners_up=0,
        )  # fmt: skip
