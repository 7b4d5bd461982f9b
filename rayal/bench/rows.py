"""Rows of the bench: what a measurement takes and gives, and the verdict on it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rayal.bench.bars import Bar, Sizes
from rayal.bench.timing import Floors

Verdict = Literal["ok", "below", "not run"]


@dataclass(frozen=True)
class Quality:
    """The quality of a choice beside that of the baseline.

    Args:
        text: the comparison, with figures.
        equal: whether it is at least as good.
    """

    text: str
    equal: bool = True


@dataclass(frozen=True)
class Measured:
    """The result of measuring one bar.

    Args:
        seconds: seconds of each of rayal's runs.
        peer_seconds: seconds of each of the peer's runs; empty where it did not run.
        floor: seconds below which no such computation can go on this machine.
        quality: quality of the result.
        memory: peak GB beyond the input.
        peer_memory: peak GB of the peer, likewise.
        note: a remark that a reader of the row needs.
        missing: why the row was not run; empty where it was.
        barred: whether the bar holds on this machine.
        figures: further numbers, for the JSON.
    """

    seconds: Sequence[float] = ()
    peer_seconds: Sequence[float] = ()
    floor: float | None = None
    quality: Quality | None = None
    memory: float | None = None
    peer_memory: float | None = None
    note: str = ""
    missing: str = ""
    barred: bool = True
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """The sizes and options of a measurement.

    Args:
        sizes: sizes of the arrays.
        repeats: timed runs of each contender.
        seed: seed of the arrays.
        floors: floors of this machine.
        names: the rows that are wanted.
    """

    sizes: Sizes
    repeats: int
    seed: int
    floors: Floors
    names: frozenset[str]

    def wants(self, *names: str) -> bool:
        """Return whether one of some rows is wanted."""
        return bool(self.names & set(names))


Measurement = Callable[[Context], Iterator[tuple[str, Measured]]]


@dataclass(frozen=True)
class Row:
    """A row of the report.

    Attributes:
        bar: the bar of the row.
        measured: the result of the measurement.
        ratio: as the bar has it; nan where something was not run.
        verdict: ok, below (the bar, a bound on memory or the baseline's quality), or not run.
        why: the reason why it is below the bar or was not run.
    """

    bar: Bar
    measured: Measured
    ratio: float
    verdict: Verdict
    why: str

    @property
    def seconds(self) -> float:
        """The median of rayal's runs; nan without any."""
        return median(self.measured.seconds)

    @property
    def peer_seconds(self) -> float:
        """The median of the peer's runs; nan without any."""
        return median(self.measured.peer_seconds)

    @property
    def of_floor(self) -> float:
        """Rayal's seconds as a multiple of the floor; nan without one."""
        return self.seconds / self.measured.floor if self.measured.floor else math.nan

    def to_json(self) -> dict[str, Any]:
        """Return everything, nan as null."""
        derived = {
            "seconds": self.seconds,
            "peer_seconds": self.peer_seconds,
            "ratio": self.ratio,
            "of_floor": self.of_floor,
        }
        numbers = {k: None if math.isnan(v) else v for k, v in derived.items()}
        runs = {f"runs_{k}": v for k, v in asdict(self.measured).items() if "seconds" in k}
        rest = {k: v for k, v in asdict(self.measured).items() if "seconds" not in k}
        return {
            **asdict(self.bar),
            **numbers,
            **{k: list(v) for k, v in runs.items()},
            **rest,
            "verdict": self.verdict,
            "why": self.why,
        }


def judge(bar: Bar, measured: Measured) -> Row:
    """Return the row of a measurement: its ratio, and whether that, memory and quality suffice."""
    if measured.missing:
        return Row(bar, measured, math.nan, "not run", measured.missing)
    mine, theirs = median(measured.seconds), median(measured.peer_seconds)
    ratio = mine / theirs if bar.lower else theirs / mine
    faults = []
    if bar.at_least is not None and measured.barred and not reaches(bar, ratio):
        bound = "at most" if bar.lower else "at least"
        faults.append(f"ratio {ratio:.2f}, {bound} {bar.at_least:g} asked for")
    if measured.quality is not None and not measured.quality.equal:
        faults.append("quality")
    if bar.memory is not None and measured.memory is not None and measured.memory > bar.memory:
        faults.append(f"{measured.memory:.2f} GB, at most {bar.memory:g} asked for")
    return Row(bar, measured, ratio, "below" if faults else "ok", "; ".join(faults))


def reaches(bar: Bar, ratio: float) -> bool:
    """Return whether a ratio reaches the bar; nan does not."""
    assert bar.at_least is not None
    return ratio <= bar.at_least if bar.lower else ratio >= bar.at_least


def median(values: Sequence[float]) -> float:
    """Return the median, nan of nothing."""
    return statistics.median(values) if values else math.nan


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error; the error of one value is 0."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return statistics.fmean(values), error
