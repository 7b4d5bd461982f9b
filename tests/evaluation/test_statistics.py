from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from rayal.errors import ScoreError, SettingsError
from rayal.evaluation.statistics import area, curve_mean, paired_bootstrap

stats: Any = scipy.stats  # SciPy carries no types
integrate: Any = scipy.integrate
A = [0.81, 0.79, 0.84, 0.80, 0.86]
B = [0.78, 0.80, 0.80, 0.77, 0.81]


def test_interval_is_that_of_scipy() -> None:
    differences = np.subtract(A, B)
    expected = stats.bootstrap(
        (differences,),
        np.mean,
        confidence_level=0.9,
        n_resamples=10_000,
        rng=np.random.default_rng(3),
    ).confidence_interval
    got = paired_bootstrap(A, B, seed=3)
    assert got.mean == pytest.approx(0.028)
    assert (got.low, got.high, got.n) == (expected.low, expected.high, 5)
    assert got.low < got.mean < got.high


def test_interval_is_keyed_by_its_seed() -> None:
    first, again, other = (paired_bootstrap(A, B, resamples=99, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_interval_approaches_the_normal_one_for_many_pairs() -> None:
    d = np.random.default_rng(0).normal(0.5, 1.0, size=400)
    got = paired_bootstrap(d, np.zeros(400), resamples=4000)  # type: ignore[arg-type]
    half = 1.6449 * d.std() / math.sqrt(400)
    assert got.low == pytest.approx(d.mean() - half, abs=0.01)
    assert got.high == pytest.approx(d.mean() + half, abs=0.01)


def test_interval_is_of_pairs_not_of_groups() -> None:
    seeds = np.linspace(0.0, 10.0, 8)  # differs between seeds far more than between strategies
    shifted = (seeds + 0.1 + 0.001 * np.arange(8)).tolist()
    got = paired_bootstrap(shifted, seeds.tolist())
    assert 0.1 < got.low < got.high < 0.108


def test_one_pair_has_a_mean_and_no_interval() -> None:
    got = paired_bootstrap([0.8], [0.7])
    assert got.mean == pytest.approx(0.1) and got.n == 1
    assert math.isnan(got.low) and math.isnan(got.high)


@pytest.mark.parametrize("a", [[0.8, 0.8], [0.1 + 0.2, 0.3]])
def test_equal_differences_have_an_interval_of_zero_width(a: list[float]) -> None:
    got = paired_bootstrap(a, [a[0] - 0.1] * 2)
    assert got.low == got.high == got.mean and got.n == 2


@pytest.mark.parametrize("n", [2, 3, 4])
def test_few_pairs_give_a_finite_interval_that_holds_the_mean(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(20):
        d = rng.choice([0.0, 0.01, 0.5], size=n) + rng.normal(0, 1e-3, n)
        got = paired_bootstrap(d.tolist(), [0.0] * n, resamples=500)
        assert got.low <= got.mean <= got.high


def test_coverage_of_ninety_percent_intervals() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for run in range(1000):
        a = rng.normal(0.3, 1.0, size=10).tolist()
        got = paired_bootstrap(a, [0.0] * 10, resamples=500, seed=run)
        hits += got.low <= 0.3 <= got.high
    assert 0.80 <= hits / 1000 <= 0.97


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(SettingsError, match="2 values of 'a' and 1 of 'b'"):
        paired_bootstrap([1.0, 2.0], [1.0])
    with pytest.raises(SettingsError, match="one number or more"):
        paired_bootstrap([], [])
    with pytest.raises(ScoreError, match=r"b\[1\] is nan"):
        paired_bootstrap([1.0, 2.0], [1.0, math.nan])
    with pytest.raises(SettingsError, match="confidence=90"):
        paired_bootstrap(A, B, confidence=90)


def test_area_weighs_steps_by_their_width() -> None:
    assert area((100, 200, 400), (0.5, 0.7, 0.9)) == pytest.approx(0.73333333)
    assert area((0, 10), (0.2, 0.4)) == pytest.approx(0.3)
    assert area((50,), (0.42,)) == 0.42
    assert area((1, 5, 7, 30), (0.6,) * 4) == pytest.approx(0.6)


def test_area_is_the_integral_of_the_straight_lines() -> None:
    x, y = [10, 20, 50, 100], [0.3, 0.6, 0.55, 0.9]
    integral = integrate.quad(lambda t: np.interp(t, x, y), 10, 100, points=[20, 50])[0]
    assert area(x, y) == pytest.approx(integral / 90)


@pytest.mark.parametrize("labels", [(100, 100, 200), (200, 100, 300)])
def test_area_refuses_counts_that_do_not_increase(labels: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match="strictly increasing"):
        area(labels, (0.1, 0.2, 0.3))


def test_curve_mean_weighs_rounds_equally() -> None:
    assert curve_mean((0.5, 0.7, 0.9)) == pytest.approx(0.7)
    with pytest.raises(ScoreError, match=r"metric\[0\] is inf"):
        curve_mean((math.inf, 0.1))
