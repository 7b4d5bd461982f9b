"""Core-set: cover the pool with balls around labeled items.

Source: Sener & Savarese, ICLR 2018, "Active learning for convolutional neural networks: a core-set
approach", algorithm 1 (greedy k-center), Euclidean distance of the last hidden layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rayal.registry import strategies
from rayal.selection.kcenter import KCenter
from rayal.signals import Embedding, Signal
from rayal.strategies.base import Ctx, Strategy


@strategies.register("coreset")
@dataclass(frozen=True)
class CoreSet(Strategy):
    """Label the items farthest from everything that is labeled, pending or already chosen."""

    carry: ClassVar[tuple[str, ...]] = ("embedding",)
    context: ClassVar[tuple[str, ...]] = ("embedding",)
    taxonomy: ClassVar[str] = "representativeness"
    source: ClassVar[str] = "Sener & Savarese, ICLR 2018, algorithm 1 (greedy k-center)"
    departures: ClassVar[str] = "the robust (mixed-integer) form of algorithm 2 is not included"

    def signals(self) -> tuple[Signal, ...]:
        """Return the input of the last linear layer."""
        return (Embedding(),)

    def objective(self, ctx: Ctx) -> KCenter:
        """Return greedy k-center, with labeled and pending items as centres."""
        return KCenter()
