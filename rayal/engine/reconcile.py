"""What scanned parts come to: whether every row is there, and the range of the scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rayal.engine.pool import Part
from rayal.engine.scan import ScannedPart
from rayal.errors import StorageError


def reconcile(part: Part, result: ScannedPart) -> None:
    """Raise StorageError unless a result has the rows of its part."""
    if (result.rows, result.key_sum) != (part.rows, part.key_sum):
        raise StorageError(
            f"the work on part {part.part} gave {result.rows} rows, the part has {part.rows}; "
            "items were lost or doubled"
        )


def spread(results: Sequence[ScannedPart]) -> dict[str, Any]:
    """Return the scores' range, with a warning where all are equal."""
    low = min((r.low for r in results if not math.isnan(r.low)), default=None)
    high = max((r.high for r in results if not math.isnan(r.high)), default=None)
    if low is None or high is None:
        return {}
    scores = {"score_low": low, "score_high": high}
    finite: dict[str, Any] = {n: v for n, v in scores.items() if math.isfinite(v)}
    if low == high:
        finite["warning"] = "all scores are equal: the choice among them is by item key alone"
    return finite
