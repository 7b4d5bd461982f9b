"""The run of a joint choice on shards, and what it takes; all with defaults."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.progress import Commit, Progress
from rayal.selection.threads import Team
from rayal.selection.tiles import (
    Floats,
    Proposal,
    Shared,
    Tile,
    best_rows,
    gather,
    located,
    merge_rows,
)
from rayal.types import TILE_ROWS

FOLD_ROWS = 1 << 16  # proposed rows above which a shard merges before it asks further tiles


@dataclass(frozen=True)
class Sharded(ABC):
    """The half of an objective that serves speed and planning; every method has a default.

    A shard sets up its tiles (``prepare``), offers its best rows (``offer``, of each tile
    ``propose``, merged by ``fold``), keeps what a commit brings (``receive``) and brings gains up
    to date (``settle``). The planner counts by ``footprint``.

    Args:
        share: chance of each row to be a candidate, by its key and the seed; rows that are none
            are not opened. 1 is exact.
    """

    share: float = field(default=1.0, kw_only=True)

    #: whether the tiles of a group must lie on one shard
    grouped: ClassVar[bool] = False

    # -- what the defaults call of the objective ------------------------------------------------

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Columns of the pool's rows that the objective reads."""

    @property
    @abstractmethod
    def sends(self) -> tuple[str, ...]:
        """Columns that travel with proposed rows to the driver."""

    @abstractmethod
    def begin(self, tile: Tile, seed: int) -> None:
        """Set up ``tile.state``; called once per tile."""

    @abstractmethod
    def gain(self, tile: Tile) -> Floats:
        """Return each row's present value, ``[T]`` or ``[T, P]`` with tie-breakers behind."""

    # -- on a shard -----------------------------------------------------------------------------

    @property
    def narrow(self) -> tuple[str, ...]:
        """Columns among ``needs`` that may be held in bf16: compared by distances or forms."""
        return ()

    def prepare(self, tiles: Sequence[Tile], seed: int, team: Team) -> None:
        """Set up a shard's tiles, at least one; by default each by itself."""
        team.map(lambda tile: self.begin(tile, seed), tiles)

    def propose(self, tile: Tile, m: int, step: int) -> Proposal:
        """Return the tile's best m eligible rows."""
        return best_rows(tile, self.gain(tile), m)

    def offer(self, tiles: Sequence[Tile], m: int, step: int, team: Team) -> Proposal:
        """Return a shard's best m rows with the columns that travel."""
        merged: list[Proposal] = []
        proposals = team.map(lambda tile: self.propose(tile, m, step), tiles)
        for number, proposal in enumerate(proposals):
            merged.append(located(number, proposal))
            if sum(map(len, merged)) > max(4 * m, FOLD_ROWS):  # m tiles of m rows never pile up
                merged = [self.fold(merged, m)]
        folded = self.fold(merged, m)
        return replace(folded, columns=gather(tiles, folded, self.sends))

    def fold(self, proposals: Sequence[Proposal], m: int) -> Proposal:
        """Merge proposals into one of at most m rows."""
        return merge_rows(proposals, m)

    def receive(self, shared: Shared, commit: Commit) -> None:
        """Keep, once per shard, what a commit brings."""

    def settle(self, tiles: Sequence[Tile], m: int, team: Team) -> None:
        """Bring the gains of a shard's m best rows up to date, where they are not."""

    # -- on the driver --------------------------------------------------------------------------

    def block(self, progress: Progress) -> int:
        """Return how many proposals the next step wants."""
        return progress.left

    # -- what it costs, and what makes it approximate -----------------------------------------

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

    def approximation(self) -> dict[str, Any] | None:
        """Return what makes the choice approximate, by parameter; None when it is exact."""
        return None if self.share >= 1.0 else {"share": self.share}
