"""Every registered strategy fulfils the contract; and the contract notices who does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from torch import Tensor

from rayal.registry import strategies
from rayal.selection.topk import TopK
from rayal.signals import LogProbs, Signal
from rayal.strategies import Ctx, Strategy
from rayal.testing import STRATEGY_CHECKS
from rayal.types import Columns

NAMES = [
    "random",
    "least_confidence",
    "margin",
    "entropy",
    "bald",
    "mc_entropy",
    "variation_ratio",
    "mean_std",
    "coreset",
    "badge",
    "bait",
    "bait_regression",
    "batchbald",
    "egl",
    "egl_sm",
    "egl_word",
    "egl_entropy_beta",
    "deal",
    "dfal",
    "learning_loss",
    "multicriteria",
    "adaptive",
    "pbp",
    "multiview",
    "ensemble_variation_ratio",
    "ensemble_entropy",
    "ensemble_bald",
]
QUICK = {"batchbald": {"draws": 200}}


def test_all_strategies_are_registered() -> None:
    assert set(NAMES) <= set(strategies)


@pytest.mark.parametrize("check", STRATEGY_CHECKS)
@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, check: str) -> None:
    STRATEGY_CHECKS[check](strategies[name](**QUICK.get(name, {})))


@dataclass(frozen=True)
class ByOrder(Strategy):
    """A strategy that wrongly lets the order of rows decide."""

    taxonomy: ClassVar[str] = "baseline"
    source: ClassVar[str] = "a made-up mistake"

    def signals(self) -> tuple[Signal, ...]:
        return (LogProbs(),)

    def score(self, s: Columns) -> Tensor:
        return s["log_probs"].new_tensor(range(len(s.ids)))

    def objective(self, ctx: Ctx) -> TopK:
        return TopK()


def test_the_contract_notices_a_strategy_that_depends_on_row_order() -> None:
    with pytest.raises(AssertionError, match="shards picked other items"):
        STRATEGY_CHECKS["sharding"](ByOrder())
    with pytest.raises(AssertionError, match="order decided"):
        STRATEGY_CHECKS["equal_rows"](ByOrder())
