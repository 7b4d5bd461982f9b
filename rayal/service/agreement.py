"""How far annotators agree, corrected for chance."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any


def agreement_of(labels: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return how far labels of the same items agree.

    Alpha is Krippendorff's for nominal data and any number of labels per item: one minus the ratio
    of observed to expected disagreement, over items with two labels or more.

    Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, section C.

    Args:
        labels: item and value, once for each annotator of an item.

    Returns:
        ``items`` with two labels or more, ``pairs`` of their labels, the share of pairs that are
        ``observed`` equal, and ``alpha``; None where it is undefined.
    """
    units: dict[str, Counter[str]] = defaultdict(Counter)
    for item, value in labels:
        units[item][json.dumps(value, sort_keys=True)] += 1
    paired = [unit for unit in units.values() if unit.total() > 1]
    totals = sum(paired, Counter[str]())
    n = totals.total()
    pairs = sum(unit.total() * (unit.total() - 1) // 2 for unit in paired)
    equal = sum(count * (count - 1) // 2 for unit in paired for count in unit.values())
    # an item's ordered pairs weigh 1 / (labels - 1), so that each label weighs 1
    disagreeing = sum(
        count * (unit.total() - count) / (unit.total() - 1)
        for unit in paired
        for count in unit.values()
    )
    expected = sum(count * (n - count) for count in totals.values())
    return {
        "items": len(paired),
        "pairs": pairs,
        "observed": equal / pairs if pairs else None,
        "alpha": 1 - (n - 1) * disagreeing / expected if expected else None,
    }
