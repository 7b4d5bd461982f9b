"""The protocol of a joint choice: what the author of an objective writes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy.typing as npt

from rayal.selection.progress import Commit, Progress
from rayal.selection.sharded import Sharded
from rayal.selection.tiles import Floats, Proposal, Tile
from rayal.types import Keys

__all__ = ["Commit", "Finished", "Objective", "Progress", "Quality"]


@dataclass(frozen=True)
class Quality:
    """The worth of a choice beside a reference.

    Attributes:
        measure: covering radius (largest distance to the nearest centre, labeled ones included),
            or potential (mean squared distance to the nearest pick), both on a uniform sample of
            the pool, where smaller is better; or joint information, where larger is better.
        value: of the choice that was made.
        reference: of an exact choice of as many rows from the sample alone (a potential: the mean
            of several choices, since they are drawn). It sees the rows it is measured on, so it is
            a strict standard: an exact choice from the whole pool is usually somewhat above it too.
            For the joint information a bound of what any batch could have.
        rows: rows of the sample, or of the pool for the joint information.
    """

    measure: str
    value: float
    reference: float
    rows: int

    def to_json(self) -> dict[str, Any]:
        """Return the figures with their ratio, None where the reference is 0."""
        ratio = self.value / self.reference if self.reference > 0.0 else None
        return {**vars(self), "ratio": ratio}


class Finished(Protocol):
    """A finished choice, and what a measure of its quality may read of the pool."""

    @property
    def rows(self) -> int:
        """Rows that could be chosen."""

    @property
    def seed(self) -> int:
        """The query seed."""

    @property
    def context(self) -> Mapping[str, npt.NDArray[Any]]:
        """Columns of labeled and pending rows."""

    @property
    def scores(self) -> Floats:
        """Return the picks' values ``[k]``, in pick order."""

    def picks(self, names: Sequence[str]) -> tuple[Keys, Mapping[str, npt.NDArray[Any]]]:
        """Return the picks' keys ``[k]``, ascending, and columns ``[k, …]`` in this order."""

    def sample(self, objective: Objective) -> Sequence[Tile]:
        """Return tiles with a uniform sample of the rows, and the columns of an objective."""

    def best_scores(self) -> Floats | None:
        """Return the k largest values of the pool's score column; None where it has none."""


@dataclass(frozen=True)
class Objective(Sharded):
    """A rule by which k items are chosen together; ``gain`` and ``merge`` must be written.

    It is frozen. What it remembers while it runs is one object of its own kind in ``tile.state``
    for a tile, ``tile.shared.state`` for a shard and ``progress.state`` for the driver, read by
    ``state_as(kind)``. What serves speed and planning is inherited from ``Sharded``.
    """

    #: what messages call it
    title: ClassVar[str] = "the joint choice"

    # -- columns -------------------------------------------------------------------------------

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns of the pool's rows that the objective reads."""
        return ()

    @property
    def context(self) -> tuple[str, ...]:
        """Columns of labeled and pending rows that the objective reads."""
        return ()

    @property
    def sends(self) -> tuple[str, ...]:
        """Columns that travel with proposed rows to the driver."""
        return ()

    # -- the loop ------------------------------------------------------------------------------

    def begin(self, tile: Tile, seed: int) -> None:
        """Set up ``tile.state``; called once per tile."""

    def driver_state(self) -> object:
        """Return what ``progress.state`` is at the start; by default nothing."""
        return None

    @abstractmethod
    def gain(self, tile: Tile) -> Floats:
        """Return each row's present value, ``[T]`` or ``[T, P]`` with tie-breakers behind."""

    @abstractmethod
    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Decide on the folded proposals; None ends the selection."""

    def commit(self, tile: Tile, commit: Commit) -> None:
        """Update the tile's running state."""

    # -- a global quantity, before the first step ----------------------------------------------

    def summarize(self, tile: Tile, message: Any) -> Any | None:
        """Return the tile's part of a global quantity; None when nothing is asked."""
        return None

    def combine(self, first: Any, second: Any) -> Any:
        """Fold two parts; must be exactly associative and commutative (max, min, integers)."""
        raise TypeError(f"{type(self).__name__} summarizes but defines no fold")

    def reduce(self, total: Any, progress: Progress) -> Any | None:
        """Turn the folded parts into the next message; None ends the phase."""
        return None

    # -- before and after ----------------------------------------------------------------------

    def target(self, k: int) -> int:
        """Return how many picks the greedy makes for k items; ``finish`` keeps k of them."""
        return k

    def open(self, context: Mapping[str, npt.NDArray[Any]], progress: Progress) -> list[Commit]:
        """Return commits (without picks) that tell the shards about labeled and pending rows."""
        return []

    def finish(self, progress: Progress) -> list[int]:
        """Return the positions of the picks that stay, at most k of them, in order."""
        return list(range(len(progress.keys)))

    def reported(self, values: Floats) -> Floats:
        """Return gains as they are recorded; by default as they are compared."""
        return values

    def drawn(self) -> dict[str, Any]:
        """Return what was drawn for this choice, by name: it goes into the round's record."""
        return {}

    def notes(self, progress: Progress) -> dict[str, npt.NDArray[Any]]:
        """Return what a strategy's memory wants of a finished choice, by name."""
        return {}

    # -- the worth of an approximation ---------------------------------------------------------

    def exact(self) -> Objective | None:
        """Return the exact objective that it is measured against on a sample; None for none."""
        return None

    def measure(self, finished: Finished) -> Quality | None:
        """Return how good a finished choice is; None where no measure is defined."""
        return None
