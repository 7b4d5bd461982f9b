"""BatchBALD: joint mutual information of a batch with the network's weights.

Source: Kirsch, van Amersfoort & Gal, NeurIPS 2019, "BatchBALD: efficient and diverse batch
acquisition for deep Bayesian active learning", algorithm 1 and section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from torch import Tensor

from rayal import acquisition
from rayal.registry import strategies
from rayal.selection.joint_entropy import JointEntropy
from rayal.signals import MemberLogProbs, Signal
from rayal.strategies.base import Ctx, Joint
from rayal.strategies.bayesian import MASKS
from rayal.types import Columns


@strategies.register("batchbald")
@dataclass(frozen=True)
class BatchBALD(Joint):
    """Label the batch whose labels together say most about the network's weights.

    Args:
        members: trained networks.
        candidates: None for all items, else about how many, drawn uniformly, may be chosen.
        passes: dropout masks per network; 0 uses the networks as they are.
        draws: most label configurations held; up to that many the joint entropy is exact.
    """

    passes: Annotated[int, Ge(0)] = 20
    draws: Annotated[int, Ge(1)] = 10_000

    carry: ClassVar[tuple[str, ...]] = ("member_log_probs",)
    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Kirsch, van Amersfoort & Gal, NeurIPS 2019, algorithm 1"
    departures: ClassVar[str] = (
        MASKS + "; sampled configurations are extended by each pick instead of drawn afresh; rows "
        "are evaluated lazily by their last gain, plus three standard errors once sampled"
    )
    approximations: ClassVar[str] = (
        "candidates. Each round's record holds the batch's joint information beside the sum of the "
        "k largest BALD scores of all items, which no batch exceeds"
    )

    def signals(self) -> tuple[Signal, ...]:
        """Return every member's log-probabilities, the same masks for all items."""
        return (MemberLogProbs(passes=self.passes),)

    def score(self, s: Columns) -> Tensor:
        """Return BALD, the gain of a batch of one and an upper bound later."""
        return acquisition.bald_of_members(s["member_log_probs"])

    def objective(self, ctx: Ctx) -> JointEntropy:
        """Return the greedy on joint mutual information."""
        return JointEntropy(draws=self.draws, share=self.share(ctx))
