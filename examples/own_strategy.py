"""A strategy of your own: ten lines, checked by the contract that rayal's own strategies fulfil.

Run: python examples/own_strategy.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

import rayal
from rayal import acquisition
from rayal.registry import strategies
from rayal.signals import LogProbs, Signal
from rayal.strategies import Strategy
from rayal.testing import STRATEGY_CHECKS
from rayal.types import Columns


@strategies.register("entropy_and_margin")
@dataclass(frozen=True)
class EntropyAndMargin(Strategy):
    """Label items that are uncertain by entropy and by margin alike."""

    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "this example: the sum of entropy and negated margin"

    def signals(self) -> tuple[Signal, ...]:
        return (LogProbs(),)

    def score(self, s: Columns) -> Tensor:
        return acquisition.entropy(s["log_probs"]) + acquisition.margin(s["log_probs"])


def main() -> None:
    for name, check in STRATEGY_CHECKS.items():
        check(EntropyAndMargin())
        print("contract:", name)
    probs = np.random.default_rng(0).dirichlet(np.ones(10), size=1_000)
    print(rayal.select("entropy_and_margin", {"log_probs": np.log(probs)}, k=5).ids)


if __name__ == "__main__":
    main()
