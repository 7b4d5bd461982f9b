"""Ratios, verdicts, and the table of bars."""

from __future__ import annotations

import math
from fnmatch import fnmatch
from typing import Any

import pytest

from rayal.bench import pools
from rayal.bench.bars import BARS, Bar
from rayal.bench.rows import Measured, Quality, judge, mean_and_error
from rayal.bench.suite import MEASUREMENTS, wanted
from rayal.bench.timing import alternate
from rayal.errors import SettingsError

FASTER = Bar("a", "10", "peer", at_least=6, aim=10)
WITHIN = Bar("b", "10", "floor", at_least=4, aim=2, lower=True, memory=0.5)


def test_a_speedup_is_the_ratio_of_medians() -> None:
    row = judge(FASTER, Measured(seconds=[1.0, 9.0, 2.0], peer_seconds=[14.0, 1.0, 12.0]))
    assert (row.seconds, row.peer_seconds, row.ratio) == (2.0, 12.0, 6.0)
    assert (row.verdict, row.why) == ("ok", "")


def test_a_ratio_under_the_bar_is_below_and_says_so() -> None:
    row = judge(FASTER, Measured(seconds=[2.0], peer_seconds=[11.9]))
    assert row.verdict == "below"
    assert row.why == "ratio 5.95, at least 6 asked for"


def test_a_multiple_of_the_floor_is_to_stay_below() -> None:
    assert judge(WITHIN, Measured(seconds=[4.0], peer_seconds=[1.0])).verdict == "ok"
    row = judge(WITHIN, Measured(seconds=[4.1], peer_seconds=[1.0], floor=0.5))
    assert (row.verdict, row.of_floor) == ("below", 8.2)
    assert row.why == "ratio 4.10, at most 4 asked for"


def test_quality_and_memory_decide_too() -> None:
    fast: dict[str, Any] = {"seconds": [1.0], "peer_seconds": [1.0]}
    assert judge(WITHIN, Measured(**fast, memory=0.49)).verdict == "ok"
    assert judge(WITHIN, Measured(**fast, memory=0.51)).why == "0.51 GB, at most 0.5 asked for"
    assert judge(WITHIN, Measured(**fast, quality=Quality("worse", False))).why == "quality"
    assert judge(WITHIN, Measured(**fast, quality=Quality("same"))).verdict == "ok"


def test_a_bar_that_does_not_hold_on_this_machine_is_no_fault() -> None:
    assert judge(FASTER, Measured(seconds=[1.0], peer_seconds=[2.0], barred=False)).verdict == "ok"


def test_a_row_without_a_peer_is_not_run_and_says_why() -> None:
    row = judge(FASTER, Measured(missing="peer is not installed: pip install peer"))
    assert row.verdict == "not run"
    assert math.isnan(row.ratio)
    stored = row.to_json()
    assert (stored["ratio"], stored["seconds"], stored["why"]) == (None, None, row.why)


def test_no_time_is_never_ok() -> None:
    assert judge(FASTER, Measured(seconds=[1.0])).verdict == "below"


def test_every_bar_is_measured_once() -> None:
    names = [bar.name for bar in BARS]
    assert len(set(names)) == len(names)
    for name in names:
        assert sum(any(fnmatch(name, p) for p in patterns) for _, patterns in MEASUREMENTS) == 1


def test_an_aim_lies_beyond_what_is_enough() -> None:
    for bar in BARS:
        if bar.at_least is not None and bar.aim is not None:
            assert (bar.aim < bar.at_least) == bar.lower


def test_rows_are_chosen_by_name_start_and_pattern() -> None:
    assert [b.name for b in wanted(["bait-5k"])] == ["bait-5k"]
    assert {b.name for b in wanted(["mc"])} == {
        "mc-cnn",
        "mc-cnn-pass",
        "mc-resnet",
        "mc-resnet-pass",
    }
    assert {b.name for b in wanted(["*-1m-*"])} == {"kcenter-1m-100", "badge-1m-100"}
    assert not any(b.name.startswith("gpu") for b in wanted([]))
    assert sum(b.name.startswith("gpu") for b in wanted([], gpu=True)) == 2
    with pytest.raises(SettingsError, match="bait-5k"):
        wanted(["bait-6k"])


def test_contenders_take_turns() -> None:
    order: list[str] = []
    runs = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4  # one of them untimed
    assert len(runs["a"].cpu) == len(runs["b"].wall) == 3


def test_seconds_are_those_between_begin_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 102.5])
    monkeypatch.setattr("rayal.bench.pools.time.perf_counter", lambda: next(clock))
    assert pools._seconds(lambda: None, 1) == 2.5


def test_mean_and_standard_error_by_hand() -> None:
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)
    assert mean_and_error([4.0]) == (4.0, 0.0)
