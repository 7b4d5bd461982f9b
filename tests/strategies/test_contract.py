"""Every registered strategy fulfils the contract; and the contract notices who does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from torch import Tensor

from rayal.registry import strategies
from rayal.selection.objective import Objective
from rayal.selection.topk import TopK
from rayal.signals import LogProbs, Signal
from rayal.strategies import Ctx, Strategy
from rayal.testing import STRATEGY_CHECKS, make_columns, run
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


def made(name: str) -> Strategy:
    strategy: Strategy = strategies[name](**QUICK.get(name, {}))
    return strategy


def kind(strategy: Strategy) -> type[Objective]:
    return type(strategy.objective(Ctx(round=1, k=12, seed=0, n_candidates=9000)))


def first_of_each_objective() -> set[str]:
    """Return one strategy for each class of objectives: shards see no more of a strategy."""
    return set({kind(made(name)): name for name in reversed(NAMES)}.values())


def reordered(strategy: Strategy) -> None:
    """Rows in another order give the same bits: what a strategy adds to its objective."""
    columns = make_columns(300, np.random.default_rng(7))
    ids = [f"item/{i}" for i in range(300)]
    order = np.random.default_rng(8).permutation(300)
    one = run(strategy, columns, 12, ids=ids, seed=3)
    shuffled = {name: column[order] for name, column in columns.items()}
    other = run(strategy, shuffled, 12, ids=[ids[i] for i in order], seed=3, shards=2)
    assert other.ids == one.ids and other.scores.tobytes() == one.scores.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_contract(name: str, subtests: pytest.Subtests) -> None:
    checks: dict[str, Callable[[Strategy], None]] = {**STRATEGY_CHECKS}
    if name not in first_of_each_objective():
        checks["sharding"] = reordered
    for check, run_check in checks.items():
        with subtests.test(check):
            run_check(made(name))


def test_every_objective_of_a_strategy_is_checked_in_shards() -> None:
    checked = {kind(made(name)) for name in first_of_each_objective()}
    assert checked == {kind(made(name)) for name in NAMES}
    assert len(checked) == len(first_of_each_objective()) >= 5


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
    with pytest.raises(AssertionError):
        reordered(ByOrder())
    with pytest.raises(AssertionError, match="order decided"):
        STRATEGY_CHECKS["equal_rows"](ByOrder())
