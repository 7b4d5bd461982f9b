"""What every measurement is given, and how they are listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rayal.bench.bars import Sizes
from rayal.bench.floors import Floors
from rayal.bench.rows import Measured

Measurement = Callable[["Context"], Iterator[tuple[str, Measured]]]


@dataclass(frozen=True)
class Context:
    """What a measurement is given.

    Args:
        sizes: how large the arrays are.
        repeats: timed runs of each contender.
        seed: of the arrays.
        floors: of this machine.
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


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error; the error of one value is 0."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, (variance / len(values)) ** 0.5
