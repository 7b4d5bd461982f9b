"""Items chosen one by one: the k largest scores, or a uniform draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rayal.selection.devices import to_host
from rayal.selection.draws import keyed_uniform
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.objective import Commit, Objective, Progress
from rayal.selection.tiles import Floats, Proposal, Tile
from rayal.types import TILE_ROWS


@dataclass(frozen=True)
class TopK(Objective):
    """The k largest scores; ties go to the tie-breakers behind the score, then to the id key.

    Args:
        column: the score ``[N]``, or ``[N, 1 + T]`` with T tie-breakers.
    """

    title: ClassVar[str] = "top-k"

    column: str = "score"

    @property
    def needs(self) -> tuple[str, ...]:
        """The score."""
        return (self.column,)

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return k located proposals a tile, and one pass over the float64 scores."""
        wide = max(1, width(shapes, *self.needs))
        sent = min(k, TILE_ROWS) * 8 * (3 + wide)  # key, tile, row; priority
        return Footprint(tile=sent, transient=TILE_ROWS * 48, read=8.0 * rows * wide)

    def gain(self, tile: Tile) -> Floats:
        """Return the scores."""
        return to_host(tile.columns[self.column].double())

    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Take every proposed row."""
        if len(proposal) == 0:
            return None
        return Commit(proposal.keys, proposal.priority[:, 0])


@dataclass(frozen=True)
class UniformDraw(TopK):
    """k items uniformly without replacement: the k largest keyed uniforms."""

    title: ClassVar[str] = "the uniform draw"

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return one float64 draw a row besides; drawing costs about ten operations a row."""
        sent = 32 * min(k, TILE_ROWS)
        return Footprint(row=8, tile=sent, transient=TILE_ROWS * 48, read=8.0 * rows, logs=rows)

    def begin(self, tile: Tile, seed: int) -> None:
        """Draw one uniform per row, a function of the seed and the row's key."""
        tile.state["uniform"] = keyed_uniform(tile.keys, seed)

    def gain(self, tile: Tile) -> Floats:
        """Return the drawn uniforms."""
        return np.asarray(tile.state["uniform"])
