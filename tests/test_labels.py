"""Label kinds: what counts as an answer, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from rayal.errors import LabelError
from rayal.labels import ClassLabel, NumberLabel, label_kind


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (3, 3.0),
        (-0.0, 0.0),
        (2.5, 2.5),
        (np.float64(0.1), 0.1),
        (np.int32(7), 7.0),
        (10, 10.0),
        (-5, -5.0),
    ],
)
def test_a_number_is_stored_as_a_float(given: Any, stored: float) -> None:
    made = NumberLabel(-5, 10).check(given, "a")
    assert type(made) is float
    assert repr(made) == repr(stored)


@pytest.mark.parametrize("given", ["3", "cat", "", None, True, False, np.True_, [1], {"a": 1}, 1j])
def test_what_is_no_number_is_refused(given: Any) -> None:
    with pytest.raises(LabelError, match=r"item 'a' is no number; give a number from -5 to 10"):
        NumberLabel(-5, 10).check(given, "a")


@pytest.mark.parametrize("given", [math.nan, math.inf, -math.inf, 10.0001, -6, 10**400, -(10**400)])
def test_a_number_out_of_bounds_is_refused(given: Any) -> None:
    with pytest.raises(LabelError, match="out of bounds; give a finite number from -5 to 10"):
        NumberLabel(-5, 10).check(given, "a")
    if not -(10**300) < given < 10**300:
        with pytest.raises(LabelError, match=r"out of bounds; give a finite number$"):
            NumberLabel().check(given, "a")


@pytest.mark.parametrize(("text", "number"), [("3", 3.0), (" -1.5e1 ", -15.0), ("+.5", 0.5)])
def test_a_text_is_read_as_the_number_that_it_writes(text: str, number: float) -> None:
    assert NumberLabel().read(text, "a") == number


@pytest.mark.parametrize("text", ["", "cat", "1_000", "1,5", "0x10", "nan", "inf", "true"])
def test_a_text_that_writes_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(LabelError, match="item 'a'"):
        NumberLabel().read(text, "a")


def test_a_class_is_read_as_it_is_checked() -> None:
    kind = ClassLabel(("0", "1"))
    assert (kind.read("1", "a"), kind.check(1, "a")) == ("1", "1")
    with pytest.raises(LabelError):
        kind.read("1.0", "a")


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (math.nan, 1), (0, math.nan)])
def test_bounds_hold_something(low: float, high: float) -> None:
    with pytest.raises(LabelError, match="low must be below high"):
        NumberLabel(low, high)


@pytest.mark.parametrize("kind", [NumberLabel(), NumberLabel(0), NumberLabel(-1.5, 2.5)])
def test_a_kind_is_what_its_json_says(kind: NumberLabel) -> None:
    assert label_kind(kind.to_json()) == kind
