"""The plain forms against hand-computed cases and against references written in another way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from rayal.bench import baselines, data
from rayal.bench.baselines import exhaustive_bait, factors, naive_bait
from rayal.selection import k_center, kmeans_plus_plus


def test_farthest_first_by_hand() -> None:
    x = torch.tensor([[0.0], [1.0], [10.0], [6.0]])
    picks = baselines.one_pass_k_center(x, 0, 3)
    assert picks.tolist() == [0, 2, 3]  # 10 is farthest from 0; then 6 is 4 from 10, 1 is 1 from 0
    assert baselines.radius(x, picks) == pytest.approx(1.0)


def test_one_pass_k_center_has_the_radius_of_the_kernel() -> None:
    x = data.mixture(900, 8, 3)
    first = int((x * x).sum(dim=1).argmax())
    plain = baselines.one_pass_k_center(x, first, 20)
    kernel = np.append(first, k_center(x, 19, labeled=x[first : first + 1]))
    assert set(plain.tolist()) == set(kernel.tolist())
    reference = cdist(x.double().numpy(), x[plain].double().numpy()).min(axis=1).max()
    assert baselines.radius(x, plain) == pytest.approx(reference, rel=1e-9)
    assert baselines.radius(x, kernel) == pytest.approx(reference, rel=1e-9)


def test_potential_is_the_sum_over_formed_products() -> None:
    a, h = data.residuals(60, 4, 0), data.mixture(60, 5, 0)
    picks = np.array([3, 40, 7])
    rows = np.einsum("nc,nd->ncd", a.double().numpy(), h.double().numpy()).reshape(60, -1)
    reference = cdist(rows, rows[picks], "sqeuclidean").min(axis=1).sum()
    assert baselines.potential(a, h, picks) == pytest.approx(reference, rel=1e-9)


def test_one_pass_badge_draws_in_proportion_to_squared_distance() -> None:
    a, h = torch.ones((4, 1)), torch.tensor([[1.0], [2.0], [3.0], [5.0]])
    counts = np.zeros((4, 4))
    for seed in range(4000):
        first, second = baselines.one_pass_badge(a, h, 2, seed)
        counts[first, second] += 1
    norm = np.array([1.0, 4.0, 9.0, 25.0]) / 39.0
    squared = cdist(h.numpy(), h.numpy(), "sqeuclidean")
    law = norm[:, None] * squared / squared.sum(axis=1, keepdims=True)
    spread = np.sqrt(law * (1 - law) / 4000)
    assert (np.abs(counts / 4000 - law) <= 4.5 * spread + 1e-12).all()


def test_kernel_and_one_pass_badge_have_one_mean_potential() -> None:
    a, h = data.residuals(500, 4, 0), data.mixture(500, 6, 0)
    seeds = range(60)
    plain = [baselines.one_pass_badge(a, h, 12, seed) for seed in seeds]
    kernel = [kmeans_plus_plus(a, h, 12, seed=seed) for seed in seeds]
    values = np.array([[baselines.potential(a, h, p) for p in picks] for picks in (plain, kernel)])
    error = math.sqrt((values.var(axis=1, ddof=1) / 60).sum())
    assert abs(values[0].mean() - values[1].mean()) < 4 * error


def test_joint_information_is_that_of_all_configurations() -> None:
    log_probs = data.member_log_probabilities(3, 4, 3, 1)
    probs = log_probs.double().exp().numpy()
    joint = 0.0
    for labels in itertools.product(range(3), repeat=3):
        each = np.prod([probs[i, :, y] for i, y in enumerate(labels)], axis=0)  # [S]
        joint -= each.mean() * math.log(each.mean())
    noise = -(probs * np.log(probs)).sum(axis=2).mean(axis=1).sum()
    found, error = baselines.joint_information(log_probs, 100_000, 0)
    assert 0 < error < 0.01
    assert abs(found - (joint - noise)) < 4 * error


def test_equal_members_have_no_joint_information() -> None:
    log_probs = data.member_log_probabilities(2, 1, 3, 1).expand(2, 5, 3)
    found, error = baselines.joint_information(log_probs, 1000, 0)
    assert found == pytest.approx(0.0, abs=1e-12)
    assert error == pytest.approx(0.0, abs=1e-12)


def test_factors_give_the_fisher_information() -> None:
    log_probs = data.log_probabilities(5, 3, 0).double().log_softmax(dim=1)
    h = data.mixture(5, 4, 0).double()
    v = factors(log_probs, h).numpy()
    for row in range(5):
        p, x = log_probs[row].exp().numpy(), h[row].numpy()
        reference = np.kron(np.diag(p) - np.outer(p, p), np.outer(x, x))
        np.testing.assert_allclose(v[row] @ v[row].T, reference, atol=1e-12)


def test_fisher_information_of_two_classes_by_hand() -> None:
    v = factors(torch.tensor([[0.3, 0.7]]).log(), torch.tensor([[2.0]]))[0]
    eigenvalues = torch.linalg.eigvalsh(v @ v.T)
    assert eigenvalues.tolist() == pytest.approx([0.0, 2 * 0.3 * 0.7 * 4], abs=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_inversion_lemma_picks_what_explicit_inverses_pick(seed: int) -> None:
    log_probs, h = data.log_probabilities(24, 3, seed), data.mixture(24, 4, seed)
    picks, seconds = naive_bait(log_probs, h, 5)
    assert set(picks.tolist()) == set(exhaustive_bait(log_probs, h, 5).tolist())
    assert seconds > 0


def test_one_bait_pick_without_oversampling_has_the_least_trace() -> None:
    log_probs, h = data.log_probabilities(12, 3, 5), data.mixture(12, 2, 5)
    v = factors(log_probs.double(), h.double()).numpy()
    fisher = np.mean([w @ w.T for w in v], axis=0)
    traces = [np.trace(np.linalg.solve(np.eye(6) + w @ w.T, fisher)) for w in v]
    assert exhaustive_bait(log_probs, h, 1, oversample=1).tolist() == [int(np.argmin(traces))]


def test_a_sure_row_is_chosen_last_by_bait() -> None:
    log_probs = torch.tensor([[0.5, 0.5], [1.0, 1e-30], [0.6, 0.4]]).log()
    picks = exhaustive_bait(log_probs, torch.ones((3, 2)), 2, oversample=1)
    assert set(picks.tolist()) == {0, 2}


def test_rank_correlation_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert baselines.spearman(x, x.exp()) == pytest.approx(1.0)
    assert baselines.spearman(x, torch.tensor([2.0, 1.0, 3.0, 4.0])) == pytest.approx(0.8)
