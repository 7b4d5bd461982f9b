"""The protocol of a joint choice: commits, progress, and the objective that decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy.typing as npt

from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.threads import Team
from rayal.selection.tiles import (
    Floats,
    Proposal,
    Tile,
    best_rows,
    gather,
    located,
    merge_rows,
)
from rayal.types import TILE_ROWS, Keys

FOLD_ROWS = 1 << 16  # proposed rows above which a shard merges before it asks further tiles


@dataclass(frozen=True)
class Commit:
    """What the driver decided, broadcast to every shard.

    Attributes:
        keys: uint64 ``[b]``, the picks, in order; they stop being eligible.
        scores: float64 ``[b]``, each pick's value when it was picked.
        columns: what the shards need to update their state.
    """

    keys: Keys
    scores: Floats
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Progress:
    """The driver's side of one selection: how far it is, and what the objective remembers."""

    k: int
    seed: int
    step: int = 0
    keys: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    goal: int = 0  # picks of the greedy before ``finish``, where these are more than k

    @property
    def left(self) -> int:
        """How many picks are missing."""
        return max(self.k, self.goal) - len(self.keys)


@dataclass(frozen=True)
class Objective(ABC):
    """How k items are chosen together; frozen, its running arrays live in ``tile.state``.

    Args:
        share: chance of each row to be a candidate, by its key and the seed; rows that are none
            are not opened. 1 is exact.
    """

    share: float = field(default=1.0, kw_only=True)

    #: whether the tiles of a group must lie on one shard
    grouped: ClassVar[bool] = False

    def approximation(self) -> dict[str, Any] | None:
        """Return what makes the choice approximate, by parameter; None when it is exact."""
        return None if self.share >= 1.0 else {"share": self.share}

    def drawn(self) -> dict[str, Any]:
        """Return what was drawn for this choice, by name: it goes into the round's record."""
        return {}

    #: what messages call it
    title: ClassVar[str] = "the joint choice"

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns of the pool's rows that the objective reads."""
        return ()

    @property
    def narrow(self) -> tuple[str, ...]:
        """Columns among ``needs`` that may be held in bf16: compared by distances or forms."""
        return ()

    @property
    def context(self) -> tuple[str, ...]:
        """Columns of labeled and pending rows that the objective reads."""
        return ()

    def target(self, k: int) -> int:
        """Return how many picks the greedy makes for k items; ``finish`` keeps k of them."""
        return k

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return what a selection takes besides the mapped columns; ``rayal plan`` counts by it.

        By default one pass that keeps nothing, with k proposals a tile.

        Args:
            shapes: shapes of one row of each column in ``needs``.
            rows: rows of all shards.
            k: number of picks.
        """
        wide = width(shapes, *self.needs)
        sent = min(k, TILE_ROWS) * 32  # priority, key, tile and row
        return Footprint(tile=sent, transient=TILE_ROWS * 16 * wide, read=4.0 * rows * wide)

    def block(self, progress: Progress) -> int:
        """Return how many proposals the next step wants."""
        return progress.left

    def begin(self, tile: Tile, seed: int) -> None:
        """Set up ``tile.state``; called once per tile."""

    def prepare(self, tiles: Sequence[Tile], seed: int, team: Team) -> None:
        """Set up a shard's tiles, at least one; by default each by itself."""
        team.map(lambda tile: self.begin(tile, seed), tiles)

    def summarize(self, tile: Tile, message: Any) -> Any | None:
        """Return the tile's part of a global quantity; None when nothing is asked."""
        return None

    def combine(self, first: Any, second: Any) -> Any:
        """Fold two parts; must be exactly associative and commutative (max, min, integers)."""
        raise TypeError(f"{type(self).__name__} summarizes but defines no fold")

    def reduce(self, total: Any, progress: Progress) -> Any | None:
        """Turn the folded parts into the next message; None ends the phase."""
        return None

    @abstractmethod
    def gain(self, tile: Tile) -> Floats:
        """Return each row's present value, ``[T]`` or ``[T, P]`` with tie-breakers behind."""

    @property
    def sends(self) -> tuple[str, ...]:
        """Columns that travel with proposed rows to the driver."""
        return ()

    def propose(self, tile: Tile, m: int, step: int) -> Proposal:
        """Return the tile's best m eligible rows."""
        return best_rows(tile, self.gain(tile), m)

    def offer(self, tiles: Sequence[Tile], m: int, step: int, team: Team) -> Proposal:
        """Return a shard's best m rows with the columns that travel."""
        held: list[Proposal] = []
        made = team.map(lambda tile: self.propose(tile, m, step), tiles)
        for number, proposal in enumerate(made):
            held.append(located(number, proposal))
            if sum(map(len, held)) > max(
                4 * m, FOLD_ROWS
            ):  # so that m tiles of m rows never pile up
                held = [self.fold(held, m)]
        folded = self.fold(held, m)
        return replace(folded, columns=gather(tiles, folded, self.sends))

    def fold(self, proposals: Sequence[Proposal], m: int) -> Proposal:
        """Merge proposals into one of at most m rows."""
        return merge_rows(proposals, m)

    def open(self, context: Mapping[str, npt.NDArray[Any]], progress: Progress) -> list[Commit]:
        """Return commits (without picks) that tell the shards about labeled and pending rows."""
        return []

    @abstractmethod
    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Decide on the folded proposals; None ends the selection."""

    def finish(self, progress: Progress) -> list[int]:
        """Return the positions of the picks that stay, at most k of them, in order."""
        return list(range(len(progress.keys)))

    def reported(self, values: Floats) -> Floats:
        """Return gains as they are recorded; by default as they are compared."""
        return values

    def notes(self, progress: Progress) -> dict[str, npt.NDArray[Any]]:
        """Return what a strategy's memory wants of a finished choice, by name."""
        return {}

    def receive(self, shared: dict[Any, Any], commit: Commit) -> None:
        """Keep, once per shard, what a commit brings."""

    def settle(self, tiles: Sequence[Tile], m: int, team: Team) -> None:
        """Bring the gains of a shard's m best rows up to date, where they are not."""

    def commit(self, tile: Tile, commit: Commit) -> None:
        """Update the tile's running state."""
