"""The k best scores, and several orders that take turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from rayal.selection.devices import to_host
from rayal.selection.draws import keyed_uniform
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.objective import Objective
from rayal.selection.progress import Commit, Progress
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


@dataclass(slots=True)
class UniformTile:
    """The draws ``[T]`` of a tile's rows."""

    uniform: Floats


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
        tile.state = UniformTile(keyed_uniform(tile.keys, seed))

    def gain(self, tile: Tile) -> Floats:
        """Return the drawn uniforms."""
        return tile.state_as(UniformTile).uniform


@dataclass(slots=True)
class Ranges:
    """The largest of (x, -x) of both scores over all candidates, ``[4]``."""

    largest: Floats


@dataclass(frozen=True)
class MinMaxMixture(TopK):
    """The k largest weight · n(first) + (1 - weight) · n(second), n from min and max to 0 and 1.

    One pass finds the ranges over all candidates, the next one scores. A column whose values are
    all equal counts 0.

    Args:
        column: both scores, ``[N, 2]``.
        weight: of the first, in [0, 1].
        provenance: what the weight was drawn from, for the record.
    """

    title: ClassVar[str] = "the mixture of two scores"

    weight: float = 0.5
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def drawn(self) -> dict[str, Any]:
        """Return the weight and what it was drawn from."""
        return {"weight": self.weight, **self.provenance}

    def summarize(self, tile: Tile, message: Any) -> Any | None:
        """Return the largest of (x, -x) of both scores, ``[4]``; then keep the ranges."""
        if message is not None:
            tile.state = Ranges(message)
            return None
        values = self._values(tile)[tile.eligible]
        if len(values) == 0:
            return None
        return np.concatenate([values.max(axis=0), (-values).max(axis=0)])

    def combine(self, first: Any, second: Any) -> Any:
        """Return the larger of each."""
        return np.maximum(first, second)

    def reduce(self, total: Any, progress: Progress) -> Any | None:
        """Return the ranges, once."""
        if progress.state is not None:
            return None
        progress.state = Ranges(total)
        return total

    def gain(self, tile: Tile) -> Floats:
        """Return the mixture; before there are ranges, 0."""
        if tile.state is None:
            return np.zeros(len(tile.keys))
        ranges = tile.state_as(Ranges).largest
        low, width = -ranges[2:], ranges[:2] + ranges[2:]
        width = np.where(width > 0.0, width, np.inf)
        first, second = ((self._values(tile) - low) / width).T
        mixed: Floats = self.weight * first + (1.0 - self.weight) * second
        return mixed

    def _values(self, tile: Tile) -> Floats:
        return to_host(tile.columns[self.column].double())
