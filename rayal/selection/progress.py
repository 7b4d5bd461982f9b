"""The running state of a selection: on the driver, and what the driver tells the shards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayal.selection.tiles import Floats, Stateful
from rayal.types import Keys


@dataclass(frozen=True)
class Commit:
    """A decision of the driver, broadcast to every shard.

    Attributes:
        keys: uint64 ``[b]``, the picks, in order; they stop being eligible.
        scores: float64 ``[b]``, each pick's value when it was picked.
        columns: what the shards need to update their state.
    """

    keys: Keys
    scores: Floats
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Progress(Stateful):
    """The driver's side of one selection: how far it is, and what the objective remembers."""

    k: int
    seed: int
    step: int = 0
    keys: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    state: object = None
    goal: int = 0  # picks of the greedy before ``finish``, where these are more than k

    @property
    def left(self) -> int:
        """The number of picks that are missing."""
        return max(self.k, self.goal) - len(self.keys)
