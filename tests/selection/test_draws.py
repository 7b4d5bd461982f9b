"""Keyed uniforms: uniform, and functions of their key alone."""

from __future__ import annotations

import numpy as np
from scipy import stats

from rayal.selection.draws import keyed_uniform, uniform


def test_uniform_over_consecutive_keys_and_seeds() -> None:
    keys = np.arange(20_000, dtype=np.uint64)
    assert stats.kstest(keyed_uniform(keys, 1), "uniform").pvalue > 1e-3
    assert stats.kstest([uniform(s, 3) for s in range(5_000)], "uniform").pvalue > 1e-3
    assert (
        stats.kstest([keyed_uniform(keys[:1], s)[0] for s in range(5_000)], "uniform").pvalue > 1e-3
    )


def test_streams_are_uncorrelated() -> None:
    keys = np.arange(20_000, dtype=np.uint64)
    a, b = keyed_uniform(keys, 1, 2), keyed_uniform(keys, 2, 1)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.03
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.03


def test_a_draw_does_not_depend_on_its_neighbours() -> None:
    keys = np.arange(100, dtype=np.uint64)
    assert keyed_uniform(keys, 7)[40] == keyed_uniform(keys[40:41], 7)[0]
    assert 0.0 <= keyed_uniform(keys, 7).min() <= keyed_uniform(keys, 7).max() < 1.0
