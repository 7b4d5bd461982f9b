"""What a round has done so far, in one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RoundSummary:
    """What a round has done so far.

    Attributes:
        round: 0, 1, ….
        labels: labels that its model was trained on.
        metrics: on the test items; empty until they are evaluated, or without test labels.
        seconds: finished stage to wall seconds.
        outputs: finished stage to its output.
    """

    round: int
    labels: int
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    outputs: Mapping[str, Mapping[str, Any]]
