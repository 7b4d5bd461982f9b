"""What public implementations of these methods get wrong, each as a case that rayal gets right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rayal.selection import (
    KCenter,
    bait,
    bait_regression,
    joint_entropy,
    k_center,
    kmeans_plus_plus,
    select_rows,
    top_k,
)

Choose = Callable[[npt.NDArray[Any], int], npt.NDArray[np.int64]]
PROBS = np.array([0.6, 0.3, 0.1])


def by_residual(x: npt.NDArray[Any], k: int) -> npt.NDArray[np.int64]:
    return kmeans_plus_plus(np.tile(PROBS - [1, 0, 0], (len(x), 1)), x, k)


def by_information(x: npt.NDArray[Any], k: int) -> npt.NDArray[np.int64]:
    return bait(np.log(np.tile(PROBS, (len(x), 1))), x, k)


def by_members(x: npt.NDArray[Any], k: int) -> npt.NDArray[np.int64]:
    logits = torch.from_numpy(np.stack([x[:, :3], -x[:, :3]], axis=1))
    return joint_entropy(logits.log_softmax(dim=2), k, draws=200)


KERNELS: dict[str, Choose] = {
    "top_k": lambda x, k: top_k(x[:, 0], k),
    "k_center": k_center,
    "kmeans_plus_plus": by_residual,
    "joint_entropy": by_members,
    "bait": by_information,
    "bait_regression": bait_regression,
}


@pytest.mark.parametrize("choose", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("rows", [1, 5, 300])
def test_a_pool_of_identical_vectors(choose: Choose, rows: int) -> None:
    x = np.full((rows, 4), 0.7)
    assert sorted(choose(x, rows)) == list(range(rows))
    assert sorted(choose(np.zeros((rows, 4)), rows)) == list(range(rows))


@pytest.mark.parametrize("choose", KERNELS.values(), ids=KERNELS)
def test_a_batch_larger_than_the_number_of_distinct_vectors(choose: Choose) -> None:
    distinct = np.random.default_rng(0).normal(size=(6, 4))
    x = np.tile(distinct, (20, 1))
    picks = choose(x, 40)
    assert len(set(picks.tolist())) == 40


@pytest.mark.parametrize("choose", [k_center, by_residual], ids=["k_center", "kmeans_plus_plus"])
def test_copies_come_last(choose: Choose) -> None:
    distinct = np.random.default_rng(1).normal(size=(50, 64)).astype(np.float32) + 5.0
    x = np.tile(distinct, (8, 1))
    picks = choose(x, 60)
    assert len({p % 50 for p in picks[:50]}) == 50


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e-3])
@pytest.mark.parametrize("choose", [k_center, by_residual], ids=["k_center", "kmeans_plus_plus"])
def test_near_duplicates_in_float32_are_told_apart(choose: Choose, scale: float) -> None:
    rng = np.random.default_rng(2)
    far = rng.normal(size=(4, 256))
    near = far + 1e-4 * rng.normal(size=(4, 256))  # products in float32 have no digit of that
    x = (scale * np.concatenate([far, near, far])).astype(np.float32)
    picks = choose(x, 8)
    assert sorted(p % 8 if p < 8 else p - 8 for p in picks) == list(range(8))


def test_the_distance_of_near_duplicates_has_its_digits() -> None:
    rng = np.random.default_rng(3)
    row = rng.normal(size=512)
    x = np.stack([row, row + 1e-3 * rng.normal(size=512)]).astype(np.float32)
    exact = np.linalg.norm(x[0].astype(np.float64) - x[1].astype(np.float64))
    chosen = select_rows(KCenter(), {"embedding": x[1:]}, 1, context={"embedding": x[:1]})
    assert chosen.scores[0] == pytest.approx(exact, rel=1e-6)


def test_zero_probabilities_are_no_nan() -> None:
    logs = np.full((40, 5, 3), -np.inf)
    logs[np.arange(40), :, np.arange(40) % 3] = 0.0  # every member is sure, and they agree
    logs[7, 2:] = logs[8, 2:]  # but about row 7
    picks = joint_entropy(logs, 5)
    assert picks[0] == 7 and len(set(picks.tolist())) == 5  # the row whose members disagree


def test_a_sure_row_is_never_the_first_centre() -> None:
    residuals = np.zeros((30, 3))
    residuals[3] = [-0.5, 0.5, 0.0]
    residuals[9] = [0.2, -0.4, 0.2]
    x = np.random.default_rng(4).normal(size=(30, 5))
    first = {int(kmeans_plus_plus(residuals, x, 1, seed=seed)[0]) for seed in range(50)}
    assert first == {3, 9}
    assert len(set(kmeans_plus_plus(residuals, x, 30).tolist())) == 30


def test_nothing_is_drawn_twice() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(500, 8)).astype(np.float32)
    for seed in range(20):
        picks = kmeans_plus_plus(rng.normal(size=(500, 3)), x, 400, seed=seed)
        assert len(set(picks.tolist())) == 400
