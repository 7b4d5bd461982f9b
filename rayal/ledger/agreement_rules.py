"""Agreement rules: the annotators that an item needs, and the value that their labels give.

All of it is a pure function of an item's standing labels, so that it does not matter in which
order relabels, retractions and re-queues led to them:

- ``first``: the value is that of the earliest label that fills a slot; nothing ever conflicts.
- ``majority``: the value that more than half of the labels say, ``all``: the one that every label
  says. Both wait until ``labels_per_item`` slots are filled (an item that was never offered waits
  for nobody, so one label of it will do). Surplus labels are counted, but do not fill slots and
  are not trained on: the value must also be that of a label which fills a slot.
- Numbers agree where they lie within ``tolerance`` of each other, the largest from the smallest.
  By default it is 0: how close two measurements must be to say the same is known to whoever asks
  for them alone, and any other default would hide disagreement. The agreed value is then the
  median of the agreeing labels which fill slots, the lower one of two: a number that somebody
  said, which the history names, and no mean that nobody stands for. A label within the tolerance
  of the annotator's own standing one is still another label, and replaces it.
- Where there is no such value, the item is in conflict, and one more annotator is wanted than have
  labeled it, up to ``max_labels``. Once its labels agree, it wants nobody any more.

A surplus label is never moved into a slot that becomes free; its annotator's next, different label
takes the slot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from rayal.errors import SettingsError, nearest
from rayal.ledger.columns import to_json
from rayal.ledger.store import Row

RULES = ("first", "majority", "all")


@dataclass(frozen=True)
class Labeling:
    """Rules for labeling a project's items; the mapping ``labeling`` among its settings.

    Args:
        labels_per_item: annotators that an item needs at first.
        agreement: rule that gives a value from their labels: first, majority or all.
        max_labels: most slots that an item in conflict may come to; in the settings, two more
            than ``labels_per_item`` by default.
        max_skips: annotators whose skips take an item out of the offers.
        lease_ttl: seconds that a lease lasts.
        tolerance: largest difference of two numbers that agree, in units of the label; ignored
            for labels that are not numbers.
    """

    labels_per_item: int = 1
    agreement: str = "first"
    max_labels: int = 3
    max_skips: int = 3
    lease_ttl: float = 900.0
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        """Check the values against each other."""
        _whole("labels_per_item", self.labels_per_item, 1)
        _whole("max_skips", self.max_skips, 1)
        if self.agreement not in RULES:
            raise SettingsError(f"agreement {self.agreement!r}: {nearest(self.agreement, RULES)}")
        _whole("max_labels", self.max_labels, self.labels_per_item)
        check_seconds("lease_ttl", self.lease_ttl)
        if not is_number(self.tolerance) or not 0 <= self.tolerance < math.inf:
            raise SettingsError(
                f"tolerance is {self.tolerance!r}; it must be a finite number from 0 on"
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Labeling:
        """Return the rules in project settings; SettingsError names a part that does not fit."""
        options = settings.get("labeling", {})
        if not isinstance(options, Mapping):
            raise SettingsError(f"labeling is {options!r}; it must be a mapping")
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise SettingsError(f"labeling.{name} does not exist; {nearest(name, known)}")
        if not isinstance(options.get("agreement", "first"), str):
            raise SettingsError(f"agreement is {options['agreement']!r}; it must be a name")
        count = _whole("labels_per_item", options.get("labels_per_item", 1), 1)
        return cls(**{"max_labels": count + 2, **options})

    def judge(self, standing: Sequence[Row], *, offered: bool) -> Verdict:
        """Return the verdict on an item's standing labels.

        Args:
            standing: the current label of each annotator, with value, slot and seq.
            offered: whether the item was ever offered.
        """
        filling = sorted((r for r in standing if r["slot"] is not None), key=lambda r: r["slot"])
        filled, base = len(filling), self.labels_per_item
        wanted = base if offered else 1
        if self.agreement == "first":
            resolution = filling[0]["seq"] if filling else None
            return Verdict(max(base, filled), resolution, conflict=False)
        if filled < wanted:
            return Verdict(max(base, filled), None, conflict=False)
        resolution = self._agreed(standing, filling)
        if resolution is not None:
            return Verdict(max(base, filled), resolution, conflict=False)
        return Verdict(min(max(filled + 1, base), self.max_labels), None, conflict=True)

    def _agreed(self, standing: Sequence[Row], filling: Sequence[Row]) -> int | None:
        """Return the first slot's row that holds the agreed value, None if there is none."""
        enough = len(standing) if self.agreement == "all" else len(standing) // 2 + 1
        for group in self._groups(standing):
            among = {id(row) for row in group}
            here = [row for row in filling if id(row) in among]
            if len(group) >= enough and here:
                return _median(here)
        return None

    def _groups(self, standing: Sequence[Row]) -> list[list[Row]]:
        """Return labels that agree with each other, the best group first.

        Of numbers, which may be in several groups, the largest group is the best, then the
        narrowest, then that of the lowest numbers.
        """
        if not self.tolerance or not all(is_number(row["value"]) for row in standing):
            equal: dict[str, list[Row]] = {}
            for row in standing:
                equal.setdefault(value_text(row["value"]), []).append(row)
            return list(equal.values())
        rows = sorted(standing, key=lambda row: row["value"])
        exact = [_written(row["value"]) for row in rows]
        reach = _written(self.tolerance)
        spans = []
        for first, low in enumerate(exact):
            last = max(n for n, high in enumerate(exact) if high - low <= reach)
            spans.append((first - last - 1, exact[last] - low, first, last + 1))
        return [rows[first:end] for *_, first, end in sorted(spans)]


@dataclass(frozen=True)
class Verdict:
    """The verdict on an item's labels: slots, the row that holds its value, disagreement."""

    need: int
    resolution: int | None
    conflict: bool


def value_text(value: Any) -> str:
    """Return a label as text to compare by: in Python 1, 1.0 and True would be equal."""
    return to_json(value, sort_keys=True)


def is_number(value: Any) -> bool:
    """Return whether a label is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def near(one: float, other: float, tolerance: float) -> bool:
    """Return whether two numbers, as they are written, differ by at most the tolerance."""
    return abs(_written(one) - _written(other)) <= _written(tolerance)


def _median(rows: Iterable[Row]) -> int:
    """Return the row of the median value, the lower one of two; of equal values the first row.

    Values that are no numbers are all equal here.
    """
    rows = list(rows)
    if not all(is_number(row["value"]) for row in rows):
        return int(rows[0]["seq"])
    middle = sorted(row["value"] for row in rows)[(len(rows) - 1) // 2]
    return next(int(row["seq"]) for row in rows if row["value"] == middle)


def _written(number: float) -> Fraction:
    """Return a number as its shortest decimal says it: 0.8 and 0.6 are 0.2 apart, not more."""
    return Fraction(repr(number))


def check_seconds(name: str, seconds: Any) -> None:
    """Raise SettingsError unless it is a finite number above 0."""
    if not (is_number(seconds) and math.isfinite(seconds) and seconds > 0):
        raise SettingsError(f"{name} is {seconds!r}; it must be a finite number of seconds above 0")


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingsError(f"{name} is {value!r}; it must be a whole number from {least} on")
    return value
