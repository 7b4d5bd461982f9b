"""Candidates, two-round k-center and k-means||: bounds, laws, and the same picks for any shards."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from rayal.errors import BudgetError, SettingsError
from rayal.selection import (
    JointEntropy,
    KCenter,
    KMeansParallel,
    KMeansPP,
    Objective,
    TwoRoundKCenter,
    joint_entropy,
    k_center,
    kmeans_plus_plus,
    select_rows,
)
from rayal.selection.greedy import LocalShards, Shard, choose
from rayal.selection.kmeans_parallel import weighted_plus_plus
from rayal.selection.quality import DRAWS
from rayal.selection.sampling import candidates_of, share_of
from rayal.selection.tiles import Tile, cut_tiles
from rayal.types import Keys, id_keys

Floats = npt.NDArray[Any]


def radius(x: Floats, centres: Floats) -> float:
    return float(np.linalg.norm(x[:, None] - centres[None], axis=2).min(axis=1).max())


def potential(x: Floats, centres: Floats) -> float:
    return float(((x[:, None] - centres[None]) ** 2).sum(axis=2).min(axis=1).mean())


# -- candidates -----------------------------------------------------------------------------------


def test_candidates_are_a_uniform_share_that_only_grows() -> None:
    keys = id_keys([f"item {i}" for i in range(20_000)])
    some, more = (candidates_of(keys, share, 3) for share in (0.1, 0.3))
    assert stats.binomtest(int(some.sum()), 20_000, 0.1).pvalue > 1e-3
    assert (more | ~some).all() and more.sum() > some.sum()
    assert (candidates_of(keys, 0.1, 4) != some).any()
    assert candidates_of(keys, 1.0, 3).all()


def test_share_of_candidates() -> None:
    assert share_of(None, 100, 10) == 1.0
    assert share_of(100, 100, 10) == 1.0
    assert share_of(25, 100, 10) == 0.25
    assert share_of(5, 5, 10) == 1.0
    with pytest.raises(BudgetError, match="candidates = 9 for k = 10"):
        share_of(9, 100, 10)


def test_a_choice_among_candidates_is_the_exact_choice_from_them() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, 4)).astype(np.float32)
    mask = candidates_of(np.arange(3000, dtype=np.uint64), 200 / 3000, 7)
    there = np.flatnonzero(mask)
    inner = k_center(x[there], 12, labeled=x[:2])
    assert k_center(x, 12, labeled=x[:2], candidates=200, seed=7).tolist() == there[inner].tolist()


@pytest.mark.parametrize("seed", range(40))
def test_there_are_never_fewer_picks_than_asked_for(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(60, 3))
    picks = k_center(x, 10, candidates=10, seed=seed)  # chance alone often gives fewer than 10
    assert len(set(picks.tolist())) == 10
    assert len(set(kmeans_plus_plus(x, x, 10, candidates=10, seed=seed).tolist())) == 10


def test_the_selection_names_what_made_it_approximate() -> None:
    x = np.random.default_rng(1).normal(size=(500, 3))
    objective = TwoRoundKCenter(share=0.2)
    made = select_rows(objective, {"embedding": x}, 5, seed=1).approximation
    assert made is not None
    count = int(candidates_of(np.arange(500, dtype=np.uint64), 0.2, 1).sum())
    assert made == {"method": "two_round", "share": 0.2, "candidates": count, "of": 500}
    assert select_rows(KCenter(), {"embedding": x}, 5).approximation is None
    with pytest.raises(SettingsError, match="two_rounds"):
        k_center(x, 3, method="two_rounds")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="lloyd"):
        kmeans_plus_plus(x, x, 3, method="lloyd")  # type: ignore[arg-type]


OBJECTIVES: dict[str, tuple[Objective, int]] = {
    "two-round": (TwoRoundKCenter(), 50),
    "kmeans||": (KMeansParallel(rounds=3), 50),
    "kcenter-candidates": (KCenter(share=0.05), 50),
    "kmeans-candidates": (KMeansPP(share=0.05), 50),
    "kmeans||-candidates": (KMeansParallel(share=0.3, oversampling=0.5), 50),
    "joint-candidates": (JointEntropy(draws=50, share=0.02), 4),
}


@pytest.mark.parametrize("labeled", [False, True])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_shards_and_order_do_not_change_a_bit(name: str, labeled: bool) -> None:
    objective, k = OBJECTIVES[name]
    n = 36_000
    rng = np.random.default_rng(2)
    columns: dict[str, Floats] = {
        "embedding": rng.normal(size=(n, 5)).astype(np.float32),
        "residual": rng.normal(size=(n, 3)).astype(np.float32),
        "member_log_probs": np.log(rng.dirichlet(np.ones(3), size=(n, 4))).astype(np.float32),
    }
    data = {c: columns[c] for c in objective.needs}
    if labeled and not objective.context:
        pytest.skip("labeled rows are not read")
    context = {c: columns[c][:40] for c in objective.context} if labeled else {}
    ids = np.array([f"item-{i}" for i in range(n)])
    order = rng.permutation(n)
    shuffled = {c: a[order] for c, a in data.items()}
    one = select_rows(objective, data, k, ids=ids.tolist(), seed=5, context=context)
    assert len(set(one.ids)) == k
    for shards in (2, 7):
        other = select_rows(
            objective, shuffled, k, ids=ids[order].tolist(), seed=5, shards=shards, context=context
        )
        assert other.ids == one.ids
        assert other.scores.tobytes() == one.scores.tobytes()


# -- two rounds -----------------------------------------------------------------------------------


def in_groups(x: Floats, groups: list[list[int]]) -> list[Tile]:
    """Return one tile for each group of rows."""
    return [
        tile
        for rows in groups
        for tile in cut_tiles(
            np.array(rows, dtype=np.uint64), {"embedding": torch.from_numpy(x[rows])}
        )
    ]


@pytest.mark.parametrize("labeled", [0, 1])
def test_two_rounds_are_within_four_times_the_optimum(labeled: int) -> None:
    rng = np.random.default_rng(3)
    worst = 0.0
    for trial in range(60):
        x = (rng.normal(size=(12, 2)) * rng.choice([0.2, 3.0], size=(12, 1))).astype(np.float32)
        known = x[:0] if labeled == 0 else rng.normal(size=(1, 2)).astype(np.float32)
        groups = [sorted(part.tolist()) for part in np.array_split(rng.permutation(12), 4)]
        tiles = in_groups(x, groups)
        shards = LocalShards([Shard(TwoRoundKCenter(), tiles[s::2], trial) for s in range(2)])
        context = {"embedding": known} if labeled else {}
        keys = choose(TwoRoundKCenter(), shards, 2, seed=trial, context=context).keys
        made = radius(x, np.concatenate([known, x[keys.astype(np.int64)]]))
        best = min(
            radius(x, np.concatenate([known, x[list(c)]]))
            for c in itertools.combinations(range(12), 2)
        )
        worst = max(worst, made / best)
    assert 1.0 < worst <= 4.0


def test_two_rounds_on_a_line() -> None:
    """Each group offers its two ends; of these the greedy takes the far ones."""
    x = np.array([0.0, 1.0, 2.0, 10.0, 11.0, 12.0], dtype=np.float32)[:, None]
    tiles = in_groups(x, [[0, 1, 2], [3, 4, 5]])
    shards = LocalShards([Shard(TwoRoundKCenter(), tiles, 0)])
    known = {"embedding": np.array([[1.0]], dtype=np.float32)}
    chosen = choose(TwoRoundKCenter(), shards, 2, context=known, runners_up=3)
    assert chosen.keys.tolist() == [5, 3]  # at 12, then 10 beats 0 and 2, both 1 away
    assert chosen.scores.tolist() == [11.0, 2.0]
    assert chosen.runners_up.keys.tolist() == [0, 2, 4]
    assert chosen.runners_up.priority[:, 0].tolist() == [1.0, 1.0, 1.0]


def test_one_group_is_the_exact_greedy() -> None:
    x = np.random.default_rng(4).normal(size=(4000, 4))
    for labeled in (None, x[:30]):
        exact = k_center(x, 90, labeled=labeled, seed=1)
        picks = k_center(x, 90, labeled=labeled, method="two_round", seed=1)
        assert picks.tolist() == exact.tolist()


# -- k-means|| ------------------------------------------------------------------------------------


def test_weighted_plus_plus_draws_by_the_enumerated_law() -> None:
    rng = np.random.default_rng(5)
    x, weight = rng.normal(size=(5, 2)), np.array([1.0, 4.0, 2.0, 0.0, 3.0])
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        grown: dict[tuple[int, ...], float] = {}
        for seen, p in law.items():
            mass = weight.copy()
            if seen:
                mass *= ((x[:, None] - x[list(seen)][None]) ** 2).sum(axis=2).min(axis=1)
            for i in np.flatnonzero(mass > 1e-12):
                grown[(*seen, int(i))] = p * float(mass[i] / mass.sum())
        law = grown
    n, ones = 1500, np.ones((5, 1))
    seen_law = Counter(
        tuple(weighted_plus_plus(ones, x, weight, 3, start=np.ones(5), seed=s, rows=4)[0])
        for s in range(n)
    )
    assert set(seen_law) <= set(law)
    assert min(law.values()) * n >= 5
    observed, expected = [seen_law[s] for s in law], [p * n for p in law.values()]
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_weighted_plus_plus_ends_where_nothing_distinct_is_left() -> None:
    x = np.array([[0.0], [0.0], [2.0]])
    picked, scores = weighted_plus_plus(np.ones((3, 1)), x, np.ones(3), 3, start=np.ones(3), seed=1)
    assert {x[i, 0] for i in picked} == {0.0, 2.0} and len(picked) == 2
    assert scores.tolist() == [1.0, 4.0]


def test_kmeans_parallel_is_about_as_good_as_k_means_plus_plus() -> None:
    rng = np.random.default_rng(6)
    centres = rng.normal(size=(40, 8)) * 5
    x = (centres[rng.integers(0, 40, size=4000)] + rng.normal(size=(4000, 8))).astype(np.float32)
    ones = np.ones((4000, 1))
    made: dict[str, list[float]] = {"exact": [], "kmeans||": [], "uniform": []}
    for seed in range(12):
        for method in ("exact", "kmeans||"):
            picks = kmeans_plus_plus(ones, x, 40, method=method, first="uniform", seed=seed)
            made[method].append(potential(x, x[picks]))
        made["uniform"].append(potential(x, x[rng.choice(4000, 40, replace=False)]))
    exact, parallel, uniform = (float(np.mean(made[m])) for m in made)
    assert parallel < 1.1 * exact < 0.8 * uniform


def test_kmeans_parallel_follows_the_first_centre_and_takes_copies_last() -> None:
    a, h = np.array([[1.0], [1.0], [9.0], [1.0]]), np.ones((4, 1))
    assert kmeans_plus_plus(a, h, 1, method="kmeans||", first="largest").tolist() == [2]
    for seed in range(20):
        picks = kmeans_plus_plus(a, h, 4, method="kmeans||", seed=seed).tolist()
        assert sorted(picks) == [0, 1, 2, 3]
        assert 2 in picks[:2]  # the only row that is no copy


def test_kmeans_parallel_takes_few_round_trips() -> None:
    class Counted(LocalShards):
        asked = 0

        def ask(self, request: bytes) -> list[bytes]:
            self.asked += 1
            return super().ask(request)

        def tell(self, request: bytes) -> None:
            super().ask(request)

    rng = np.random.default_rng(7)
    data = {"residual": rng.normal(size=(5000, 2)), "embedding": rng.normal(size=(5000, 4))}
    tensors = {n: torch.from_numpy(v).float() for n, v in data.items()}
    keys = np.arange(5000, dtype=np.uint64)
    for k in (40, 400):
        objective = KMeansParallel()
        shards = Counted([Shard(objective, cut_tiles(keys, tensors), 1)])
        assert len(choose(objective, shards, k, seed=1).keys) == k
        # sums, first, rounds, counts, runners-up: the number of picks does not matter
        assert shards.asked == 1 + 1 + 2 * 5 + 1 + 1


# -- the measured loss ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A finished choice, measured on all of these tiles."""

    tiles: Sequence[Tile]
    chosen: tuple[Keys, Mapping[str, Floats]]
    context: Mapping[str, Floats]
    seed: int

    @property
    def rows(self) -> int:
        return sum(int(tile.eligible.sum()) for tile in self.tiles)

    @property
    def scores(self) -> Floats:
        return np.zeros(len(self.chosen[0]))

    def picks(self, names: Sequence[str]) -> tuple[Keys, Mapping[str, Floats]]:
        return self.chosen

    def sample(self, objective: Objective) -> Sequence[Tile]:
        return self.tiles

    def best_scores(self) -> Floats | None:
        return None


def test_quality_of_a_cover_is_its_radius_beside_an_exact_one() -> None:
    x = np.random.default_rng(8).normal(size=(900, 3)).astype(np.float32)
    tiles = cut_tiles(np.arange(900, dtype=np.uint64), {"embedding": torch.from_numpy(x)})
    rows, known = np.arange(20, 30), x[:5]
    picks = (rows.astype(np.uint64), {"embedding": x[rows]})
    made = TwoRoundKCenter().measure(Choice(tiles, picks, {"embedding": known}, seed=2))
    assert made is not None and made.measure == "covering radius" and made.rows == 900
    assert made.value == pytest.approx(radius(x, np.concatenate([known, x[rows]])), rel=1e-5)
    best = x[k_center(x, 10, labeled=known, seed=2)]
    assert made.reference == pytest.approx(radius(x, np.concatenate([known, best])), rel=1e-5)
    assert made.to_json()["ratio"] == made.value / made.reference > 1.2


def test_quality_of_a_draw_is_its_potential_beside_an_exact_one() -> None:
    rng = np.random.default_rng(9)
    h = rng.normal(size=(700, 3)).astype(np.float32)
    p = rng.dirichlet(np.ones(4), size=700).astype(np.float32)
    columns = {"log_probs": np.log(p), "embedding": h}
    tensors = {n: torch.from_numpy(c) for n, c in columns.items()}
    tiles = cut_tiles(np.arange(700, dtype=np.uint64), tensors)
    rows = np.arange(8)
    picks = (rows.astype(np.uint64), {n: c[rows] for n, c in columns.items()})
    objective = KMeansParallel(log_probs="log_probs")
    made = objective.measure(Choice(tiles, picks, {}, seed=3))
    assert made is not None and made.measure == "potential"
    residual = p - np.eye(4)[p.argmax(axis=1)]
    g = np.einsum("nc,nd->ncd", residual, h).reshape(700, -1)
    exact = [kmeans_plus_plus(residual, h, 8, seed=3 + draw) for draw in range(DRAWS)]
    assert made.value == pytest.approx(potential(g, g[rows]), rel=1e-4)
    assert made.reference == pytest.approx(
        np.mean([potential(g, g[rows]) for rows in exact]), rel=1e-4
    )


def test_batchbald_among_candidates_stays_below_the_exact_information() -> None:
    probs = np.random.default_rng(10).dirichlet(np.ones(3), size=(400, 5))
    exact, some = (
        select_rows(JointEntropy(share=s), {"member_log_probs": np.log(probs)}, 3, seed=1)
        for s in (1.0, 0.1)
    )
    assert 0.5 * exact.scores.sum() < some.scores.sum() < exact.scores.sum()
    assert (
        joint_entropy(np.log(probs), 3, candidates=40, seed=1).tolist() == some.positions.tolist()
    )
