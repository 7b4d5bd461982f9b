"""Label kinds: what an annotator may answer, and how it is written as JSON with its kind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Protocol

from rayal.errors import LabelError, nearest

Label = Any  # a JSON value whose meaning its kind decides: a class name, a number, …


class LabelKind(Protocol):
    """The form of a task's answers: their kind, and the check of a value."""

    kind: ClassVar[str]

    def check(self, value: Label, item: str) -> Label:
        """Return the value in its stored form, or raise LabelError naming the item."""

    def read(self, text: str, item: str) -> Label:
        """Return the value that a text writes (of a CSV file, of a command line), checked."""

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

    def read(self, text: str, item: str) -> Label:
        """Return the class of that name."""
        return self.check(text, item)

    def index(self, value: Label) -> int:
        """Return the column of a class in the model's output."""
        return self.classes.index(value)

    def to_json(self) -> dict[str, Any]:
        """Return the kind and its classes."""
        return {"kind": self.kind, "classes": list(self.classes)}


@dataclass(frozen=True)
class NumberLabel:
    """A finite number, within bounds where they are given; the bounds are among the numbers."""

    kind: ClassVar[str] = "number"
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        """Check the bounds against each other."""
        if not self.low < self.high:  # nan is below nothing
            raise LabelError(
                f"the bounds of a number are {self.low} and {self.high}; low must be below high"
            )

    def check(self, value: Label, item: str) -> Label:
        """Return the number as float; text, true and false are none, and -0.0 becomes 0.0."""
        if not isinstance(value, Real) or isinstance(value, bool):
            raise LabelError(
                f"label {str(value)[:100]!r} of item {item!r} is no number; give a number"
                f"{self._within()}"
            )
        try:
            number = float(value) + 0.0
        except OverflowError:
            number = math.inf  # of either sign
        if not math.isfinite(number) or not self.low <= number <= self.high:
            raise LabelError(
                f"label {number} of item {item!r} is out of bounds; give a finite number"
                f"{self._within()}"
            )
        return number

    def read(self, text: str, item: str) -> Label:
        """Return the number that a text writes, such as ``-1.5e3``."""
        try:
            number = float(text.replace("_", "?"))  # Python's 1_000 is no number in a file
        except ValueError:
            raise LabelError(
                f"label {text[:100]!r} of item {item!r} is no number; write it as -1.5 or 2e3"
            ) from None
        return self.check(number, item)

    def _within(self) -> str:
        """Return how a message tells the bounds."""
        least = "" if math.isinf(self.low) else f" from {self.low:g}"
        most = "" if math.isinf(self.high) else f" to {self.high:g}"
        return f"{least}{most}"

    def to_json(self) -> dict[str, Any]:
        """Return the kind and its bounds; an open bound is null."""
        low, high = (None if math.isinf(b) else b for b in (self.low, self.high))
        return {"kind": self.kind, "low": low, "high": high}


Labels = ClassLabel | NumberLabel  # the labels that a task may predict


def label_kind(spec: dict[str, Any]) -> Labels:
    """Return the label kind that ``to_json`` described."""
    if spec.get("kind") == "class":
        return ClassLabel(tuple(spec["classes"]))
    if spec.get("kind") == "number":
        return number_label(spec.get("low"), spec.get("high"))
    raise LabelError(f"label kind {spec.get('kind')!r} is unknown; known: class, number")


def number_label(low: float | None, high: float | None) -> NumberLabel:
    """Return the kind of numbers between bounds; None is an open one."""
    return NumberLabel(-math.inf if low is None else low, math.inf if high is None else high)
