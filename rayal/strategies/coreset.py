"""Core-set: cover the pool with balls around labeled items.

Source: Sener & Savarese, ICLR 2018, "Active learning for convolutional neural networks: a core-set
approach", algorithm 1 (greedy k-center), Euclidean distance of the last hidden layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rayal.registry import strategies
from rayal.selection.kcenter import KCenter
from rayal.selection.kcenter_tworound import TwoRoundKCenter
from rayal.signals import Embedding, Signal
from rayal.strategies.base import Ctx, Joint


@strategies.register("coreset")
@dataclass(frozen=True)
class CoreSet(Joint):
    """Label the items farthest from everything that is labeled, pending or already chosen.

    Args:
        members: trained networks; the embedding is that of the first.
        candidates: None for all items, else about how many, drawn uniformly, may be chosen.
        method: choice of the items: exact, or two_round: greedy in every part of the pool, greedy
            on the union (Malkomes et al., NeurIPS 2015): one round trip, within 4 times the
            smallest radius.
    """

    method: Literal["exact", "two_round"] = "exact"

    carry: ClassVar[tuple[str, ...]] = ("embedding",)
    context: ClassVar[tuple[str, ...]] = ("embedding",)
    taxonomy: ClassVar[str] = "representativeness"
    source: ClassVar[str] = "Sener & Savarese, ICLR 2018, algorithm 1 (greedy k-center)"
    departures: ClassVar[str] = "the robust (mixed-integer) form of algorithm 2 is not included"
    approximations: ClassVar[str] = (
        "method: two_round, candidates. Radius beside the exact greedy's, 60,000 mixture rows of "
        "width 64, 3 seeds: k = 100: two_round 1.03, 10,000 candidates 1.01, 2,000 candidates "
        "1.02; k = 500: two_round 1.10, 10,000 candidates 1.08. A round's own loss is in its record"
        ". selection.precision bf16 rounds the embedding: radius 1.000, 60,000 mixture rows of "
        "width 512, k = 100 (3 seeds) and 1,000"
    )

    def signals(self) -> tuple[Signal, ...]:
        """Return the input of the last linear layer."""
        return (Embedding(),)

    def objective(self, ctx: Ctx) -> KCenter:
        """Return greedy k-center, with labeled and pending items as centres."""
        kind = KCenter if self.method == "exact" else TwoRoundKCenter
        return kind(share=self.share(ctx))
