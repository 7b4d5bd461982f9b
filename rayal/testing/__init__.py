"""The contracts that every strategy and every learner fulfil, as checks for any test suite.

```python
import pytest
from rayal.testing import LEARNER_CHECKS, STRATEGY_CHECKS

@pytest.mark.parametrize("check", STRATEGY_CHECKS)
def test_strategy(check):
    STRATEGY_CHECKS[check](MyStrategy())

@pytest.mark.parametrize("check", LEARNER_CHECKS)
def test_learner(check):
    LEARNER_CHECKS[check](MyLearner())
```
A check raises AssertionError with a sentence. Strategies that read columns of their own give them
by ``columns``: a function (rows, generator) -> name to array. Learners that want a network of their
own, or read columns, say so by ``trial``.
"""

from __future__ import annotations

from rayal.testing.learners import LEARNER_CHECKS
from rayal.testing.strategies import (
    CLASSES,
    MEMBERS,
    STRATEGY_CHECKS,
    WIDTH,
    MakeColumns,
    make_columns,
    run,
)
from rayal.testing.trials import Trial

__all__ = [
    "STRATEGY_CHECKS",
    "MakeColumns",
    "make_columns",
    "run",
    "CLASSES",
    "WIDTH",
    "MEMBERS",
    "LEARNER_CHECKS",
    "Trial",
]
