"""What a task predicts, and whether strategy and learner do the same: classes or numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rayal.errors import NeedsError, SettingsError
from rayal.labels import NumberLabel
from rayal.learners.base import Learner
from rayal.registry import learners, strategies
from rayal.strategies.base import Strategy


def number_of(settings: Mapping[str, Any], known: str | None) -> NumberLabel | None:
    """Return the number that is predicted, with its bounds; None where classes are.

    Args:
        settings: of the task.
        known: what the known labels of the pool are: class | number; None without labels.

    Raises:
        SettingsError: bounds of a number are given, and classes are predicted.
    """
    target = settings.get("target")
    low, high = settings.get("low"), settings.get("high")
    if target is None:
        target = "number" if known == "number" and not settings.get("classes") else "class"
    if target == "number":
        return NumberLabel(-math.inf if low is None else low, math.inf if high is None else high)
    if low is not None or high is not None:
        raise SettingsError(
            "task.low and task.high bound a number, and classes are predicted; leave them out, or "
            "set task.target to number"
        )
    return None


def check_targets(strategy: Strategy, learner: Learner, target: str) -> None:
    """Raise NeedsError, naming what would work, unless strategy and learner predict the target.

    Args:
        strategy: whose signals are asked for.
        learner: that trains the committee.
        target: what the task predicts: class | number.
    """
    noun = {"class": "a class", "number": "a number"}[target]
    if not _suits(strategy, target):
        wrong = [n for s in strategy.signals() if target not in s.targets for n in s.names()]
        asked = f"asks for {', '.join(wrong)}" if wrong else "has a learner of its own"
        fitting = [name for name in strategies if _suits(strategies[name](), target)]
        raise NeedsError(
            f"strategy {_name(strategies, strategy)} {asked}, and the task predicts {noun} "
            f"(task.target); strategies for it: {', '.join(fitting)}"
        )
    if target not in learner.targets:
        fitting = [name for name in learners if target in learners[name].targets]
        raise NeedsError(
            f"learner {_name(learners, learner)} does not learn to predict {noun}, which the task "
            f"wants (task.target); learners for it: {', '.join(fitting)}"
        )


def _suits(strategy: Strategy, target: str) -> bool:
    own = strategy.learner
    asked = all(target in signal.targets for signal in strategy.signals())
    return asked and (own is None or target in own.targets)


def _name(table: Any, value: object) -> str:
    names = [name for name in table if table[name] is type(value)]
    return repr(names[0]) if names else type(value).__name__
