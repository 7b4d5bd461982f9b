"""How many annotators an item wants, and what their labels make of it.

All of it is a pure function of an item's standing labels, so that it does not matter in which
order relabels, retractions and re-queues led to them:

- ``first``: the value is that of the earliest label that fills a slot; nothing ever conflicts.
- ``majority``: the value that more than half of the labels say, ``all``: the one that every label
  says. Both wait until ``labels_per_item`` slots are filled (an item that was never offered waits
  for nobody, so one label of it will do). Surplus labels are counted, but do not fill slots and
  are not trained on: the value must also be that of a label which fills a slot.
- Where there is no such value, the item is in conflict, and one more annotator is wanted than have
  labeled it, up to ``max_labels``. Once its labels agree, it wants nobody any more.

A surplus label is never moved into a slot that becomes free; its annotator's next, different label
takes the slot.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from rayal.errors import SettingsError, nearest
from rayal.project.columns import to_json
from rayal.project.store import Row

RULES = ("first", "majority", "all")


@dataclass(frozen=True)
class Labeling:
    """How a project's items are labeled; the mapping ``labeling`` among its settings.

    Args:
        labels_per_item: annotators that an item wants at first.
        agreement: first, majority or all: what makes a value of their labels.
        max_labels: most slots that an item in conflict may come to; in the settings, two more
            than ``labels_per_item`` by default.
        max_skips: annotators whose skips take an item out of the offers.
        lease_ttl: seconds that a lease lasts.
    """

    labels_per_item: int = 1
    agreement: str = "first"
    max_labels: int = 3
    max_skips: int = 3
    lease_ttl: float = 900.0

    def __post_init__(self) -> None:
        """Check the values against each other."""
        _whole("labels_per_item", self.labels_per_item, 1)
        _whole("max_skips", self.max_skips, 1)
        if self.agreement not in RULES:
            raise SettingsError(f"agreement {self.agreement!r}: {nearest(self.agreement, RULES)}")
        _whole("max_labels", self.max_labels, self.labels_per_item)
        check_seconds("lease_ttl", self.lease_ttl)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Labeling:
        """Return what a project's settings say; SettingsError names what does not fit."""
        given = settings.get("labeling", {})
        if not isinstance(given, Mapping):
            raise SettingsError(f"labeling is {given!r}; it must be a mapping")
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                raise SettingsError(f"labeling.{name} does not exist; {nearest(name, known)}")
        if not isinstance(given.get("agreement", "first"), str):
            raise SettingsError(f"agreement is {given['agreement']!r}; it must be a name")
        count = _whole("labels_per_item", given.get("labels_per_item", 1), 1)
        return cls(**{"max_labels": count + 2, **given})

    def judge(self, standing: Sequence[Row], *, offered: bool) -> Verdict:
        """Return what an item's standing labels make of it.

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
        votes = Counter(value_text(row["value"]) for row in standing)
        value, count = votes.most_common(1)[0]
        enough = len(standing) if self.agreement == "all" else len(standing) // 2 + 1
        if count < enough:
            return None
        return next((r["seq"] for r in filling if value_text(r["value"]) == value), None)


@dataclass(frozen=True)
class Verdict:
    """What an item's labels make of it: slots, the row that holds its value, disagreement."""

    need: int
    resolution: int | None
    conflict: bool


def value_text(value: Any) -> str:
    """Return a label as text to compare by: in Python 1, 1.0 and True would be equal."""
    return to_json(value, sort_keys=True)


def check_seconds(name: str, seconds: Any) -> None:
    """Raise SettingsError unless it is a finite number above 0."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not (number and math.isfinite(seconds) and seconds > 0):
        raise SettingsError(f"{name} is {seconds!r}; it must be a finite number of seconds above 0")


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingsError(f"{name} is {value!r}; it must be a whole number from {least} on")
    return value
