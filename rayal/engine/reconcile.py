"""What scanned parts come to: whether every row is there, and the range of the scores."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rayal.engine.scan import ScannedPart
from rayal.engine.shards import column_tensor
from rayal.errors import StorageError
from rayal.pool.reader import Part
from rayal.pool.storage import read_mapped


def reconcile(part: Part, result: ScannedPart) -> None:
    """Raise StorageError unless a result has the rows of its part."""
    if (result.rows, result.key_sum) != (part.rows, part.key_sum):
        raise StorageError(
            f"the work on part {part.part} gave {result.rows} rows, the part has {part.rows}; "
            "items were lost or doubled"
        )


def written_range(file: Path) -> tuple[float, float]:
    """Return the smallest and the largest score of a written column part; nan without scores."""
    table = read_mapped(file)
    if "score" not in table.column_names or not table.num_rows:
        return math.nan, math.nan
    lows, highs = [], []
    for chunk in table.column("score").chunks:
        lead = column_tensor(chunk).reshape(len(chunk), -1)[:, 0]
        lows.append(lead.min().item())
        highs.append(lead.max().item())
    return min(lows), max(highs)


def spread(ranges: Iterable[tuple[float, float]]) -> dict[str, Any]:
    """Return the scores' range over all parts, with a warning where all are equal."""
    known = [(low, high) for low, high in ranges if not math.isnan(low)]
    low = min((low for low, _ in known), default=None)
    high = max((high for _, high in known), default=None)
    if low is None or high is None:
        return {}
    scores = {"score_low": low, "score_high": high}
    finite: dict[str, Any] = {n: v for n, v in scores.items() if math.isfinite(v)}
    if low == high:
        finite["warning"] = "all scores are equal: the choice among them is by item key alone"
    return finite
