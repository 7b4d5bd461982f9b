"""The pure kernels against brute force, closed forms and naive references."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from rayal.errors import BudgetError, NeedsError, ScoreError
from rayal.selection import (
    JointEntropy,
    KCenter,
    joint_entropy,
    k_center,
    kmeans_plus_plus,
    select_rows,
    top_k,
)
from rayal.selection.greedy import LocalShards, Shard, choose
from rayal.selection.tiles import cut_tiles

Floats = npt.NDArray[np.float64]


def naive_k_center(x: Floats, k: int, centres: list[Floats]) -> list[int]:
    chosen: list[int] = []
    for _ in range(k):
        gaps = np.array([min(np.linalg.norm(row - c) for c in centres) for row in x])
        gaps[chosen] = -1
        chosen.append(int(gaps.argmax()))
        centres = [*centres, x[chosen[-1]]]
    return chosen


def radius(x: Floats, centres: Floats) -> float:
    return float(np.linalg.norm(x[:, None] - centres[None], axis=2).min(axis=1).max())


def test_top_k_orders_by_score_then_by_position() -> None:
    assert top_k([1.0, 3.0, 2.0, 3.0, -np.inf], 5).tolist() == [1, 3, 2, 0, 4]


def test_top_k_breaks_ties_by_the_key_of_the_id_wherever_the_row_stands() -> None:
    ids = [f"item {i}" for i in range(500)]
    order = np.random.default_rng(0).permutation(500)
    first = [ids[p] for p in top_k(np.zeros(500), 20, ids=ids)]
    shuffled = [ids[i] for i in order]
    assert [shuffled[p] for p in top_k(np.zeros(500), 20, ids=shuffled)] == first


@pytest.mark.parametrize("labeled", [False, True])
def test_k_center_in_blocks_is_the_sequence_of_the_naive_greedy(labeled: bool) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 5)) + 50.0
    known = rng.normal(size=(3, 5)) + 50.0
    picks = k_center(x, 40, labeled=known if labeled else None, seed=4).tolist()
    centres = list(known.astype(np.float32)) if labeled else [x[picks[0]]]
    expected = naive_k_center(x.astype(np.float32), 40 - (not labeled), centres)
    assert picks[0 if labeled else 1 :] == expected


def test_k_center_line_example() -> None:
    x = np.array([*range(11), 100.0])[:, None]
    picks = k_center(x, 2, labeled=[[0.0]])
    assert x[picks, 0].tolist() == [100.0, 10.0]
    assert radius(x, np.array([[0.0], [100.0], [10.0]])) == 5.0


def test_k_center_is_within_twice_the_optimum() -> None:
    rng = np.random.default_rng(2)
    worst = 0.0
    for trial in range(60):
        x = rng.normal(size=(9, 2))
        greedy = radius(x, x[k_center(x, 3, seed=trial)])
        best = min(radius(x, x[list(c)]) for c in itertools.combinations(range(9), 3))
        worst = max(worst, greedy / best)
    assert 1.0 < worst <= 2.0


def test_k_center_ignores_translation_and_float32_noise_of_duplicates() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 4)).round(2)
    a = k_center(x, 40, labeled=x[:1])
    assert a.tolist() == k_center(x + 1024.0, 40, labeled=x[:1] + 1024.0).tolist()
    doubled = np.concatenate([x, x]) + 1000.0
    picks = k_center(doubled, 300, labeled=doubled[:1])
    gaps = select_gaps(doubled, doubled[:1], picks)
    assert (gaps[:299] > 0).all()  # a copy is taken only when nothing else is left


def select_gaps(x: Floats, labeled: Floats, picks: npt.NDArray[np.int64]) -> Floats:
    centres, gaps = list(labeled), []
    for p in picks:
        gaps.append(min(np.linalg.norm(x[p] - c) for c in centres))
        centres.append(x[p])
    return np.array(gaps)


def explicit(a: Floats, h: Floats) -> Floats:
    return np.asarray(np.einsum("nc,nd->ncd", a, h).reshape(len(a), -1))


def sequence_law(g: Floats, k: int) -> dict[tuple[int, ...], float]:
    """Enumerate the probability of every pick sequence of D² sampling, first by squared norm."""
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(k):
        grown: dict[tuple[int, ...], float] = {}
        for seen, p in law.items():
            mass = (g * g).sum(axis=1)
            if seen:
                mass = ((g[:, None] - g[list(seen)][None]) ** 2).sum(axis=2).min(axis=1)
            for i in np.flatnonzero(mass > 1e-15):
                grown[(*seen, int(i))] = p * float(mass[i] / mass.sum())
        law = grown
    return law


def test_kmeans_plus_plus_draws_by_the_enumerated_law() -> None:
    rng = np.random.default_rng(4)
    a, h = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    law = sequence_law(explicit(a, h), 3)
    assert len(law) == 24
    n = 400
    seen = Counter(tuple(kmeans_plus_plus(a, h, 3, seed=s).tolist()) for s in range(n))
    assert set(seen) <= set(law)
    keep = [s for s, p in law.items() if p * n >= 5]
    observed = [seen[s] for s in keep]
    expected = [law[s] * n for s in keep]
    observed.append(n - sum(observed))
    expected.append(n - sum(expected))
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_kmeans_plus_plus_over_many_tiles_follows_the_masses() -> None:
    n, k = 9000, 1
    mass = np.ones((n, 1))
    mass[:4500] = 2.0  # squared norms 4 : 1
    low = [int(kmeans_plus_plus(mass, np.ones((n, 1)), k, seed=s)[0] < 4500) for s in range(200)]
    assert stats.binomtest(sum(low), 200, 0.8).pvalue > 1e-3


def test_kmeans_plus_plus_never_draws_copies_while_others_are_left() -> None:
    rng = np.random.default_rng(5)
    a, h = rng.normal(size=(40, 3)), rng.normal(size=(40, 6)) + 100.0
    a, h = np.concatenate([a] * 3), np.concatenate([h] * 3)
    for seed in range(20):
        picks = kmeans_plus_plus(a, h, 40, seed=seed)
        assert len(set(picks % 40)) == 40
    assert sorted(kmeans_plus_plus(a, h, 120, seed=1)) == list(range(120))


def test_kmeans_plus_plus_without_any_gradient_is_a_uniform_draw() -> None:
    picks = [
        int(kmeans_plus_plus(np.zeros((4, 3)), np.ones((4, 2)), 1, seed=s)[0]) for s in range(800)
    ]
    assert stats.chisquare([picks.count(i) for i in range(4)]).pvalue > 1e-3
    one_hot = np.zeros((6, 2))
    one_hot[2] = 1.0
    assert kmeans_plus_plus(one_hot, np.ones((6, 3)), 1, seed=3).tolist() == [2]


@pytest.mark.parametrize("seed", range(5))
def test_first_centre_options(seed: int) -> None:
    rng = np.random.default_rng(6)
    a, h = rng.normal(size=(30, 3)), rng.normal(size=(30, 4))
    norms = (a * a).sum(axis=1) * (h * h).sum(axis=1)
    assert kmeans_plus_plus(a, h, 1, first="largest", seed=seed)[0] == norms.argmax()


def test_first_centre_uniform_ignores_norms() -> None:
    a = np.array([[100.0], [1.0], [1.0], [1.0]])
    first = [
        int(kmeans_plus_plus(a, np.ones((4, 1)), 1, first="uniform", seed=s)[0]) for s in range(800)
    ]
    assert stats.chisquare([first.count(i) for i in range(4)]).pvalue > 1e-3


def mutual_information(probs: Floats, rows: tuple[int, ...]) -> float:
    """Return I(y_rows; w) by enumerating every label configuration; probs [N, S, C]."""
    joint = np.ones((1, probs.shape[1]))
    for row in rows:
        joint = (joint[:, None, :] * probs[row].T[None]).reshape(-1, probs.shape[1])
    mean = joint.mean(axis=1)
    noise = sum(float(stats.entropy(probs[r].T).mean()) for r in rows)
    return float(stats.entropy(mean)) - noise


def random_members(seed: int, n: int, s: int, c: int) -> Floats:
    return np.random.default_rng(seed).dirichlet(np.ones(c) * 0.5, size=(n, s))


@pytest.mark.parametrize("seed", range(4))
def test_joint_entropy_is_the_greedy_on_enumerated_information(seed: int) -> None:
    probs = random_members(seed, 12, 6, 3)
    result = select_rows(JointEntropy(), {"member_log_probs": np.log(probs)}, 4)
    chosen: list[int] = []
    for score in result.scores:
        gains = {r: mutual_information(probs, (*chosen, r)) for r in range(12) if r not in chosen}
        best = max(gains, key=lambda r: gains[r])
        before = mutual_information(probs, tuple(chosen)) if chosen else 0.0
        assert score == pytest.approx(gains[best] - before, abs=1e-6)
        chosen.append(best)
    assert result.positions.tolist() == chosen


def test_joint_entropy_avoids_the_copies_that_bald_takes() -> None:
    bits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    one = np.where(bits[:, :1] == 1, [0.0, 1.0], [1.0, 0.0])
    two = np.where(bits[:, 1:] == 1, [0.05, 0.95], [0.95, 0.05])
    with np.errstate(divide="ignore"):
        logs = np.log(np.stack([one, one, two]))
    result = select_rows(JointEntropy(), {"member_log_probs": logs}, 2)
    assert result.positions.tolist() == [0, 2]
    assert result.scores.sum() == pytest.approx(1.187779, abs=1e-6)
    assert result.scores[0] == pytest.approx(np.log(2))


def test_joint_entropy_takes_copies_where_they_say_more() -> None:
    probs = np.array([[0.5 + d, 0.5 - d] for d in (0.0656, -0.0656)])
    other = np.array([[0.5 + d, 0.5 - d] for d in (0.0373, -0.0373)])
    x = np.stack([probs, probs, other])
    result = joint_entropy(np.log(x), 2).tolist()
    assert mutual_information(x, (0, 1)) > mutual_information(x, (0, 2))
    assert sorted(result) == [0, 1]


def test_joint_entropy_of_one_is_bald_and_of_one_member_is_zero() -> None:
    probs = random_members(7, 50, 5, 4)
    bald = [mutual_information(probs, (i,)) for i in range(50)]
    assert joint_entropy(np.log(probs), 1)[0] == int(np.argmax(bald))
    single = select_rows(JointEntropy(), {"member_log_probs": np.log(probs[:, :1])}, 3)
    assert np.allclose(single.scores, 0.0, atol=1e-7)


def test_joint_entropy_sampled_estimates_the_enumerated_information() -> None:
    probs = random_members(8, 10, 8, 4)
    logs = {"member_log_probs": np.log(probs)}
    exact = select_rows(JointEntropy(draws=10**6), logs, 5)
    sampled = select_rows(JointEntropy(draws=4000), logs, 5, seed=3)  # 4^5 > 4000 is not: 1024
    tight = select_rows(JointEntropy(draws=200), logs, 5, seed=3)
    truth = mutual_information(probs, tuple(exact.positions.tolist()))
    assert exact.scores.sum() == pytest.approx(truth, abs=1e-6)
    assert sampled.positions.tolist() == exact.positions.tolist()
    assert tight.scores.sum() == pytest.approx(truth, rel=0.1)


def test_lazy_evaluation_picks_what_full_evaluation_picks() -> None:
    probs = random_members(9, 400, 6, 3)
    picks = joint_entropy(np.log(probs), 5).tolist()
    greedy: list[int] = []
    for _ in range(5):
        gains = {r: mutual_information(probs, (*greedy, r)) for r in range(400) if r not in greedy}
        greedy.append(max(gains, key=lambda r: gains[r]))
    assert picks == greedy


def test_numpy_and_torch_give_the_same() -> None:
    x = np.random.default_rng(10).normal(size=(100, 3))
    assert k_center(x, 9).tolist() == k_center(torch.from_numpy(x), 9).tolist()


def test_bad_numbers_and_budgets_are_named() -> None:
    with pytest.raises(ScoreError, match="column 'score' of item 'b' holds nan"):
        top_k([0.0, np.nan], 1, ids=["a", "b"])
    with pytest.raises(ScoreError, match=r"'embedding' of item 1 holds inf"):
        k_center([[0.0, 1.0], [np.inf, 1.0]], 1)
    with pytest.raises(BudgetError, match="k = 3 of 2 rows"):
        top_k([0.0, 1.0], 3)
    with pytest.raises(ValueError, match="2 distinct ids"):
        top_k([0.0, 1.0], 1, ids=["a", "a"])


def test_a_far_outlier_among_the_labeled_rows_costs_no_digits() -> None:
    rng = np.random.default_rng(11)
    x = rng.normal(size=(300, 8))
    known = np.concatenate([np.full((1, 8), 1e7), np.zeros((1, 8))])
    expected = naive_k_center(x.astype(np.float32).astype(float), 30, list(known))
    assert k_center(x, 30, labeled=known).tolist() == expected


def test_the_order_of_labeled_rows_does_not_change_a_bit() -> None:
    rng = np.random.default_rng(12)
    x, known = rng.normal(size=(500, 6)), rng.normal(size=(70, 6))
    results = [
        select_rows(KCenter(), {"embedding": x}, 20, context={"embedding": rows})
        for rows in (known, known[::-1])
    ]
    assert results[0].scores.tobytes() == results[1].scores.tobytes()
    assert results[0].ids == results[1].ids


def test_k_center_records_distances_of_picks_and_of_the_best_not_picked() -> None:
    x = torch.tensor([[1.0], [4.0], [10.0], [30.0]])
    tiles = cut_tiles(np.arange(4, dtype=np.uint64), {"embedding": x})
    shards = LocalShards([Shard(KCenter(), tiles, 0)])
    chosen = choose(KCenter(), shards, 2, context={"embedding": np.zeros((1, 1), np.float32)})
    assert chosen.scores.tolist() == [30.0, 10.0]
    assert chosen.runners_up.priority[:, 0].tolist() == [4.0, 1.0]


def test_bad_labeled_rows_are_named() -> None:
    x = np.ones((4, 3))
    with pytest.raises(ScoreError, match="'embedding' of item 1 holds nan"):
        k_center(x, 1, labeled=[[0.0, 0, 0], [0, np.nan, 0]])
    with pytest.raises(NeedsError, match=r"shape \[2\]"):
        k_center(x, 1, labeled=[[0.0, 0.0]])
    with pytest.raises(ScoreError, match="holds -inf"):
        k_center([[0.0], [-np.inf]], 1)
