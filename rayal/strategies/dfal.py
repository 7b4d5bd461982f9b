"""DFAL: label what is nearest to a class boundary, and train on its adversarial twin as well.

Source: Ducoffe & Precioso, arXiv 1802.09841, 2018, "Adversarial active learning for deep networks:
a margin based approach", section 4: the margin of an item is the length of its smallest
adversarial perturbation, estimated by DeepFool, and the perturbed item is added under the same
label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt
from torch import Tensor

from rayal.models.committee import Committee
from rayal.registry import strategies
from rayal.signals import AdversarialDistance, Signal
from rayal.signals.adversarial import perturbed_rows
from rayal.strategies.base import Strategy
from rayal.types import Columns


@strategies.register("dfal")
@dataclass(frozen=True)
class DFAL(Strategy):
    """Label the items with the smallest adversarial perturbation, and train on their twins too.

    A row is done when its class changes, and earlier when a step is lost in the row's rounding.

    Args:
        members: trained networks; the perturbation is that of the first.
        classes: number of an item's most probable classes whose boundaries count.
        steps: most linearisations of an item.
        overshoot: share by which a perturbation is lengthened, so that it changes the class.
        twins: whether each pick's perturbed copy is trained on under the pick's label, from the
            next round on; it costs no label.
    """

    classes: Annotated[int, Ge(2)] = 10
    steps: Annotated[int, Ge(1)] = 50
    overshoot: Annotated[float, Gt(0)] = 0.02
    twins: bool = True

    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Ducoffe & Precioso, arXiv 1802.09841, 2018, section 4"
    departures: ClassVar[str] = (
        "the whole pool is scored, the paper scores a random part of it; perturbed rows are not "
        "clipped to the range of pixels; DeepFool's constants (50 steps, overshoot 0.02, the 10 "
        "most probable classes) are its authors', those of the paper were not at hand. Distances "
        "are Euclidean in the decoded rows: pixels in [0, 1]; of a table its columns in their own "
        "units, so that those of a small spread move most; with a frozen backbone "
        "embeddings, and twins are embeddings as well. Rows around which the network is flat have "
        "score -inf, rows that keep their class for all steps the distance they came to. So have "
        "rows that end early because a step is no longer than the rounding of the coordinates that "
        "it moves: DeepFool would go on there without moving. Neither are "
        "counted, and of a pick the attached column flipped says whether its twin changed class"
    )

    def signals(self) -> tuple[Signal, ...]:
        """Return the distance to the nearest boundary."""
        return (AdversarialDistance(self.classes, self.steps, self.overshoot),)

    def score(self, s: Columns) -> Tensor:
        """Return the negative distance; -inf where the network is flat."""
        return -s["adversarial_distance"].double()

    def attach(self, committee: Committee, x: Tensor, ids: Sequence[str]) -> Columns:
        """Return the twins x + (1 + overshoot) r as ``x``, the distance, and whether it flipped."""
        if not self.twins:
            return Columns({}, ids)
        options = {"classes": self.classes, "steps": self.steps}
        perturbed = perturbed_rows(committee, x, 0, overshoot=self.overshoot, **options)
        twin = x + ((1.0 + self.overshoot) * perturbed.r).to(x.dtype)
        flipped = perturbed.flipped.to(x.dtype)
        return Columns({"x": twin, "distance": perturbed.distance, "flipped": flipped}, ids)
