"""How far annotators agree, corrected for chance."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import combinations
from math import fsum
from typing import Any

from rayal.ledger.agreement_rules import near


def agreement_of(
    labels: Iterable[tuple[str, Any]], *, numbers: bool = False, tolerance: float = 0.0
) -> dict[str, Any]:
    """Return how far labels of the same items agree.

    Alpha is Krippendorff's for any number of labels per item: one minus the ratio of observed to
    expected disagreement, over items with two labels or more. It is that for nominal data, where
    values are equal or not; of numbers that for interval data, where they disagree by their
    squared difference.

    Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, sections C and D.

    Args:
        labels: item and value, once for each annotator of an item.
        numbers: whether the values are numbers.
        tolerance: how far numbers of a pair that agrees may lie apart; alpha knows none.

    Returns:
        ``items`` with two labels or more, ``pairs`` of their labels, the share of pairs that are
        ``observed`` to agree, and ``alpha``; None where it is undefined.
    """
    if numbers:
        return _of_numbers(labels, tolerance)
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


def _of_numbers(labels: Iterable[tuple[str, float]], tolerance: float) -> dict[str, Any]:
    units: dict[str, list[float]] = defaultdict(list)
    for item, value in labels:
        units[item].append(float(value))
    paired = [unit for unit in units.values() if len(unit) > 1]
    pooled = [value for unit in paired for value in unit]
    n = len(pooled)
    pairs = [pair for unit in paired for pair in combinations(unit, 2)]
    scale = max(map(abs, pooled), default=0.0) or 1.0  # alpha is the same in any unit
    observed = sum(_differences(unit, scale) / (len(unit) - 1) for unit in paired)
    expected = _differences(pooled, scale) / (n - 1) if n else 0.0
    return {
        "items": len(paired),
        "pairs": len(pairs),
        "observed": sum(near(*pair, tolerance) for pair in pairs) / len(pairs) if pairs else None,
        "alpha": 1 - observed / expected if expected else None,
    }


def _differences(values: list[float], scale: float) -> float:
    """Return the sum of the squared differences of all ordered pairs, in units of ``scale``."""
    scaled = [value / scale for value in values]
    mean = fsum(scaled) / len(scaled) if scaled else 0.0
    # equal to 2 n times the sum of squares about the mean
    return 2 * len(scaled) * fsum((value - mean) ** 2 for value in scaled)
