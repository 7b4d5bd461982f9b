"""Label kinds: what an annotator may answer, and how it is written as JSON with its kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from rayal.errors import LabelError, nearest

Label = Any  # a JSON value whose meaning its kind decides: a class name, a number, …


class LabelKind(Protocol):
    """What the answers of a task look like."""

    kind: ClassVar[str]

    def check(self, value: Label, item: str) -> Label:
        """Return the value in its stored form, or raise LabelError naming the item."""

    def to_json(self) -> dict[str, Any]:
        """Return the kind and its parameters as JSON."""


@dataclass(frozen=True)
class ClassLabel:
    """One class name out of a fixed, ordered list."""

    kind: ClassVar[str] = "class"
    classes: tuple[str, ...]

    def check(self, value: Label, item: str) -> Label:
        """Return the class name; numbers and numpy scalars are taken by their text."""
        name = str(value)
        if name not in self.classes:
            raise LabelError(
                f"label {name!r} of item {item!r} is not among the {len(self.classes)} classes; "
                f"{nearest(name, self.classes)}"
            )
        return name

    def index(self, value: Label) -> int:
        """Return the column of a class in the model's output."""
        return self.classes.index(value)

    def to_json(self) -> dict[str, Any]:
        """Return the kind and its classes."""
        return {"kind": self.kind, "classes": list(self.classes)}


@dataclass(frozen=True)
class NumberLabel:
    """A finite number, within bounds where they are given."""

    kind: ClassVar[str] = "number"
    low: float = -math.inf
    high: float = math.inf

    def check(self, value: Label, item: str) -> Label:
        """Return the number as float."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise LabelError(f"label {value!r} of item {item!r} is not a number") from None
        if not math.isfinite(number) or not self.low <= number <= self.high:
            raise LabelError(
                f"label {number} of item {item!r} is outside [{self.low}, {self.high}]"
            )
        return number

    def to_json(self) -> dict[str, Any]:
        """Return the kind and its bounds; an open bound is null."""
        low, high = (None if math.isinf(b) else b for b in (self.low, self.high))
        return {"kind": self.kind, "low": low, "high": high}


Labels = ClassLabel | NumberLabel  # what a task may predict


def label_kind(spec: dict[str, Any]) -> Labels:
    """Return the label kind that ``to_json`` described."""
    if spec.get("kind") == "class":
        return ClassLabel(tuple(spec["classes"]))
    if spec.get("kind") == "number":
        low, high = spec.get("low"), spec.get("high")
        return NumberLabel(-math.inf if low is None else low, math.inf if high is None else high)
    raise LabelError(f"label kind {spec.get('kind')!r} is unknown; known: class, number")
