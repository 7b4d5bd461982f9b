"""Numbers that compare learning curves: areas, means, and intervals of paired differences.

References:
    Efron, JASA 1987 (BCa interval); Zhan et al., IJCAI 2021 (area under the budget curve).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from rayal.errors import ScoreError, SettingsError


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval.

    Attributes:
        mean: the mean of n values.
        low: the lower end; nan where one value gives no interval.
        high: the upper end, likewise.
        n: the number of values, such as pairs of seeds.
    """

    mean: float
    low: float
    high: float
    n: int


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    *,
    confidence: float = 0.9,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Return the mean of a - b over pairs, with its BCa bootstrap interval.

    One pair has no interval (nan); differences that are all equal have one of zero width. With
    few pairs a bootstrap interval is too narrow: on normal data one of 90 % held in 84 % of 4,000
    runs at n = 10, in 79 % at n = 5 and in 68 % at n = 3.

    Args:
        a: n values, such as one mean accuracy per seed.
        b: the values of the baseline, paired with ``a`` by position.
        confidence: probability that the interval is to hold, between 0 and 1.
        resamples: draws of n pairs with replacement.
        seed: keys the draws: equal arguments give an equal interval.

    Raises:
        SettingsError: if the lengths differ, nothing is given, or ``confidence`` is no probability.
        ScoreError: if a value is not finite.
    """
    if not 0 < confidence < 1:
        raise SettingsError(f"{confidence=} given, allowed: between 0 and 1, such as 0.9")
    left, right = _same_length(a, b, "a", "b")
    differences = left - right
    mean, n = float(differences.mean()), len(differences)
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    scale = max(np.abs(left).max(), np.abs(right).max())
    if np.ptp(differences) <= 4 * np.finfo(float).eps * scale:  # equal but for rounding
        return Interval(mean, mean, mean, n)
    import scipy.stats  # 1.5 s, which commands that compare nothing need not wait

    stats: Any = scipy.stats  # SciPy carries no types
    result = stats.bootstrap(
        (differences,),
        np.mean,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    ends = result.confidence_interval
    return Interval(mean, float(ends.low), float(ends.high), n)


def area(labels: Sequence[float], metric: Sequence[float]) -> float:
    """Return the area under a curve by trapezoids over its range of labels, divided by that range.

    Steps of unequal width weigh by their width; a curve of one point has its value.

    Args:
        labels: label counts, strictly increasing.
        metric: the metric at each of them.

    Raises:
        SettingsError: if the lengths differ, nothing is given, or the counts do not increase.
        ScoreError: if a value is not finite.
    """
    x, y = _same_length(labels, metric, "labels", "metric")
    if any(right <= left for left, right in pairwise(x)):
        raise SettingsError(f"label counts {x.tolist()} given, allowed: strictly increasing ones")
    if len(x) == 1:
        return float(y[0])
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2 / (x[-1] - x[0]))


def curve_mean(metric: Sequence[float]) -> float:
    """Return the mean of a metric over the rounds of one curve, each round of equal weight."""
    return float(_finite(metric, "metric").mean())


def _same_length(
    a: Sequence[float], b: Sequence[float], first: str, second: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    if len(a) != len(b):
        raise SettingsError(
            f"{len(a)} values of {first!r} and {len(b)} of {second!r} given; they must pair up"
        )
    return _finite(a, first), _finite(b, second)


def _finite(values: Sequence[float], name: str) -> npt.NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)  # [n]
    if array.ndim != 1 or not len(array):
        raise SettingsError(
            f"{name!r} of shape {array.shape} given, allowed: a list of one number or more"
        )
    if not np.isfinite(array).all():
        at = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ScoreError(f"{name}[{at}] is {array[at]}; every value must be a finite number")
    return array
