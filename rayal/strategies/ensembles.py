"""Deep ensembles: the same scores over independently trained members.

Source: Beluch, Genewein, Nürnberger & Köhler, CVPR 2018, "The power of ensembles for active
learning in image classification", section 3: five members, the same architecture, independent
initialisation, each trained on all labeled items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from rayal.registry import strategies
from rayal.strategies.bayesian import BALD, MCEntropy, VariationRatio

_TIES = "ties of the vote share, of which there are many, go by BALD and then by entropy"


@strategies.register("ensemble_variation_ratio")
@dataclass(frozen=True)
class EnsembleVariationRatio(VariationRatio):
    """Label the items on which the members' votes are most divided.

    Args:
        members: trained networks.
        passes: dropout masks per network; 0 uses the networks as they are.
        form: quantity compared: "vote" is the paper's; "mean" is 1 - max_c of the mean
            probabilities.
    """

    members: Annotated[int, Ge(1)] = 5
    passes: Annotated[int, Ge(0)] = 0
    form: Literal["mean", "vote"] = "vote"

    source: ClassVar[str] = "Beluch et al., CVPR 2018, section 3 (variation ratio)"
    departures: ClassVar[str] = _TIES


@strategies.register("ensemble_entropy")
@dataclass(frozen=True)
class EnsembleEntropy(MCEntropy):
    """Label the items whose mean prediction over the ensemble has the largest entropy."""

    members: Annotated[int, Ge(1)] = 5
    passes: Annotated[int, Ge(0)] = 0

    source: ClassVar[str] = "Beluch et al., CVPR 2018, section 3 (entropy)"
    departures: ClassVar[str] = "none"


@strategies.register("ensemble_bald")
@dataclass(frozen=True)
class EnsembleBALD(BALD):
    """Label the items on which the ensemble's members disagree most, each being sure."""

    members: Annotated[int, Ge(1)] = 5
    passes: Annotated[int, Ge(0)] = 0

    source: ClassVar[str] = "Beluch et al., CVPR 2018, section 3 (mutual information)"
    departures: ClassVar[str] = "none"
