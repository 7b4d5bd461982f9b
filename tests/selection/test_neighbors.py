"""Nearest neighbours by blocks against hand-computed rows and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from rayal.errors import BudgetError, ScoreError
from rayal.selection import nearest_neighbors
from rayal.selection import neighbors as module


def test_neighbors_on_a_line() -> None:
    positions, distances = nearest_neighbors([[0.0], [1.0], [3.0], [7.0]], 2)
    assert positions.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert distances.tolist() == [[1.0, 3.0], [1.0, 2.0], [2.0, 3.0], [4.0, 6.0]]


@pytest.mark.parametrize(("n", "width", "k"), [(5500, 3, 12), (2100, 48, 7)])
def test_neighbors_are_those_of_scikit_learn(n: int, width: int, k: int) -> None:
    x = (np.random.default_rng(n).normal(size=(n, width)) + 40.0).astype(np.float32)
    positions, distances = nearest_neighbors(x, k)
    reference = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(x.astype(np.float64))
    gaps, rows = reference.kneighbors()
    assert positions.tolist() == rows.tolist()
    assert distances.dtype == np.float32
    np.testing.assert_allclose(distances, gaps, rtol=1e-6)


def test_equal_rows_are_at_distance_zero_and_ties_go_to_the_smaller_key() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3000, 16)).astype(np.float32) + 1000.0
    same = np.sort(rng.choice(3000, size=60, replace=False))
    x[same] = x[same[0]]
    positions, distances = nearest_neighbors(x, 5)
    assert (distances[same] == 0.0).all() and (np.delete(distances, same, axis=0) > 0).all()
    for row in same:
        assert positions[row].tolist() == [s for s in same if s != row][:5]


def test_ties_of_a_lattice_are_all_settled_by_key() -> None:
    x = np.stack(np.meshgrid(np.arange(40.0), np.arange(40.0)), axis=-1).reshape(-1, 2)
    positions, distances = nearest_neighbors(x, 6)
    squared = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    expected = np.argsort(squared, axis=1, kind="stable")[:, :6]
    assert positions.tolist() == expected.tolist()
    assert (distances**2 == np.take_along_axis(squared, expected, axis=1)).mean() > 0.6


def test_order_of_rows_does_not_change_a_bit() -> None:
    n = 4500
    x = np.random.default_rng(2).normal(size=(n, 8))
    ids = np.array([f"item {i}" for i in range(n)])
    order = np.random.default_rng(3).permutation(n)
    one, gaps = nearest_neighbors(x, 4, ids=ids.tolist())
    other, moved = nearest_neighbors(x[order], 4, ids=ids[order].tolist())
    assert (ids[order][other] == ids[one][order]).all()
    assert moved.tobytes() == gaps[order].tobytes()


def test_the_bound_of_the_sieve_never_loses_a_neighbour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows so close together that float32 products say nothing are still ordered right."""
    x = np.random.default_rng(4).normal(size=(600, 32)) * 1e-5
    x[0] = 100.0  # the origin of products is far from all others
    monkeypatch.setattr(module, "OTHERS", 128)
    positions, _ = nearest_neighbors(x, 5)
    exact = x.astype(np.float32).astype(np.float64)
    squared = ((exact[:, None] - exact[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    assert positions.tolist() == np.argsort(squared, axis=1, kind="stable")[:, :5].tolist()


def test_too_few_rows_and_bad_numbers_are_refused() -> None:
    with pytest.raises(BudgetError, match="between 1 and 3"):
        nearest_neighbors(np.zeros((4, 2)), 4)
    with pytest.raises(ScoreError, match="item 'b'"):
        nearest_neighbors([[0.0], [np.nan], [1.0]], 1, ids=["a", "b", "c"])
