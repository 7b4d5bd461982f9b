"""BAIT against a naive reference with explicit factors and inverses, closed forms and edges."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rayal.errors import NeedsError, ScoreError, SettingsError
from rayal.selection import Fisher, bait, bait_regression, select_rows
from rayal.selection.arrays import as_tensor
from rayal.selection.fisher import REFRESH
from rayal.selection.fisher_algebra import (
    Information,
    class_basis,
    class_factors,
    fisher_blocks,
    forms,
    from_blocks,
    trace_decrease,
    trace_increase,
)
from rayal.selection.greedy import LocalShards, Shard, choose
from rayal.selection.tiles import cut_tiles

Floats = npt.NDArray[np.float64]


def made(n: int, d: int, c: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Return log-probabilities and embeddings that float32 holds exactly."""
    rng = np.random.default_rng(seed)
    log_probs = np.log(rng.dirichlet(np.full(c, 0.7), size=n)).astype(np.float32)
    return log_probs.astype(np.float64), rng.normal(size=(n, d)).astype(np.float32).astype(float)


def naive_factors(log_probs: Floats, h: Floats, labels: int | None = None) -> Floats:
    """Return V ``[N, C·D, C]``: column y is √p_y (p - e_y) ⊗ h."""
    rows = []
    for lp, x in zip(log_probs, h, strict=True):
        p = np.exp(lp) / np.exp(lp).sum()
        order = np.argsort(-p, kind="stable")[:labels]
        rows.append(
            np.stack([np.sqrt(p[y]) * np.kron(p - np.eye(len(p))[y], x) for y in order], axis=1)
        )
    return np.array(rows)


def trace(m: Floats, fisher: Floats) -> float:
    return float(np.trace(np.linalg.inv(m) @ fisher))


def naive_bait(
    v: Floats, m: Floats, fisher: Floats, forward: int, k: int
) -> tuple[list[int], list[int], list[float]]:
    """Return forward order, what is left after removals, and the traces of the forward pass."""
    chosen: list[int] = []
    traces = [trace(m, fisher)]
    for _ in range(forward):
        left = [i for i in range(len(v)) if i not in chosen]
        costs = [trace(m + v[i] @ v[i].T, fisher) for i in left]
        chosen.append(left[int(np.argmin(costs))])
        m = m + v[chosen[-1]] @ v[chosen[-1]].T
        traces.append(min(costs))
    kept = list(chosen)
    while len(kept) > k:
        costs = [trace(m - v[i] @ v[i].T, fisher) for i in kept]
        gone = kept.pop(int(np.argmin(costs)))
        m = m - v[gone] @ v[gone].T
    return chosen, kept, traces


def problem(
    v: Floats, labeled: Floats, weight: str, k: int, ridge: float
) -> tuple[Floats, Floats, Floats]:
    """Return scaled candidates, M and F by the three conventions of labeled weight."""
    known = np.einsum("nab,ncb->ac", labeled, labeled) if len(labeled) else np.zeros((1, 1))
    fisher = (np.einsum("nab,ncb->ac", v, v) + known) / (len(v) + len(labeled))
    count = max(len(labeled), 1)
    if weight == "mean":
        known = known / count
    elif weight == "release" and len(labeled):
        known, v = known / (count + k), v * np.sqrt(k / (count + k))
    return v, ridge * np.eye(v.shape[1]) + known, fisher


@pytest.mark.parametrize("labeled", [0, 6])
@pytest.mark.parametrize("weight", ["sum", "mean", "release"])
def test_picks_and_traces_are_those_of_explicit_inverses(weight: Any, labeled: int) -> None:
    (lp, h), (llp, lh) = made(60, 4, 3), made(6, 4, 3, seed=1)
    llp, lh = llp[:labeled], lh[:labeled]
    k = 8
    v, m, fisher = problem(naive_factors(lp, h), naive_factors(llp, lh), weight, k, 1.0)
    forward, kept, traces = naive_bait(v, m, fisher, 2 * k, k)
    context = {"log_probs": llp, "embedding": lh} if labeled else {}
    columns = {"log_probs": lp, "embedding": h}
    chosen = select_rows(Fisher(labeled_weight=weight), columns, k, context=context)
    assert chosen.positions.tolist() == kept
    expected = [traces[i] - traces[i + 1] for i in map(forward.index, kept)]
    np.testing.assert_allclose(chosen.scores, expected, rtol=1e-9)
    assert bait(
        lp,
        h,
        k,
        labeled_log_probs=llp if labeled else None,
        labeled_embeddings=lh if labeled else None,
        labeled_weight=weight,
    ).tolist() == kept  # fmt: skip


def test_the_forward_order_holds_over_refreshes_and_gains_sum_to_the_trace() -> None:
    lp, h = made(90, 2, 3)
    v, m, fisher = problem(naive_factors(lp, h), np.zeros((0, 6, 3)), "sum", 70, 1.0)
    forward, _, traces = naive_bait(v, m, fisher, 70, 70)
    chosen = select_rows(Fisher(oversample=1), {"log_probs": lp, "embedding": h}, 70)
    assert chosen.positions.tolist() == forward
    assert chosen.scores.sum() == pytest.approx(traces[0] - traces[-1], rel=1e-11)
    assert (np.diff(traces) < 0).all() and (chosen.scores > 0).all()


def test_class_factors_are_the_kronecker_form_without_the_null_direction() -> None:
    lp, h = made(20, 3, 5)
    basis = class_basis(5)
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-15)
    np.testing.assert_allclose(basis.sum(dim=0), 0.0, atol=1e-15)
    factor = class_factors(torch.from_numpy(lp))
    assert factor.shape == (20, 1, 4, 4)
    back = (basis @ factor)[:, 0]
    p = np.exp(lp) / np.exp(lp).sum(axis=1, keepdims=True)
    covariance = np.einsum("ni,ij->nij", p, np.eye(5)) - p[:, :, None] * p[:, None, :]
    np.testing.assert_allclose(back @ back.transpose(1, 2), covariance, atol=1e-15)
    v = naive_factors(lp, h)
    kron = np.array([np.kron(c, np.outer(x, x)) for c, x in zip(covariance, h, strict=True)])
    np.testing.assert_allclose(v @ v.transpose(0, 2, 1), kron, atol=1e-13)
    full = from_blocks(fisher_blocks(back[:, None].contiguous(), torch.from_numpy(h)))
    np.testing.assert_allclose(full[0], kron.sum(axis=0), atol=1e-12)


def test_two_classes_and_one_weight_by_hand() -> None:
    log_probs = torch.log(torch.tensor([[0.3, 0.7]], dtype=torch.float64))
    factor = class_factors(log_probs)
    information = float((factor**2).sum()) * 2.0**2
    assert factor.shape == (1, 1, 1, 1)
    assert information == pytest.approx(1.68)  # 2 p (1 - p) h²
    # ridge 1 and F = I(x): the trace falls from 1.68 to 1.68 / 2.68
    chosen = select_rows(
        Fisher(oversample=1), {"log_probs": log_probs.numpy(), "embedding": [[2.0]]}, 1
    )
    assert chosen.scores[0] == pytest.approx(1.68 - 1.68 / 2.68, rel=1e-6)


def test_the_low_rank_columns_are_those_of_the_most_probable_labels() -> None:
    lp, h = made(40, 3, 5)
    v, m, fisher = problem(naive_factors(lp, h, 2), np.zeros((0, 1, 1)), "sum", 5, 1.0)
    _, kept, _ = naive_bait(v, m, fisher, 10, 5)
    columns = {"log_probs": lp, "embedding": h}
    assert select_rows(Fisher(rank=2), columns, 5).positions.tolist() == kept
    full = select_rows(Fisher(), columns, 5)
    v = naive_factors(lp, h, 4)  # all but one: not yet exact
    v, m, fisher = problem(v, np.zeros((0, 1, 1)), "sum", 5, 1.0)
    four = select_rows(Fisher(rank=4), columns, 5)
    assert four.positions.tolist() == naive_bait(v, m, fisher, 10, 5)[1]
    assert not np.allclose(four.scores, full.scores, rtol=1e-6)


def naive_of_many(v: Floats, forward: int, k: int) -> list[int]:
    """Return what ``naive_bait`` keeps, all candidates' inverses at once; ridge 1, no labels."""
    information = v @ v.transpose(0, 2, 1)  # [N, Q, Q]
    fisher, m = information.mean(axis=0), np.eye(v.shape[1])
    chosen: list[int] = []
    for _ in range(forward):
        costs = np.einsum("nab,ba->n", np.linalg.inv(m + information), fisher)
        costs[chosen] = np.inf
        chosen.append(int(costs.argmin()))
        m = m + information[chosen[-1]]
    while len(chosen) > k:
        costs = np.array([trace(m - information[i], fisher) for i in chosen])
        m = m - information[chosen.pop(int(costs.argmin()))]
    return chosen


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_picks_are_those_of_explicit_inverses_for_1_2_and_7_shards(rank: int) -> None:
    lp, h = made(7 * 4096 + 5, 1, 3)  # eight tiles
    kept = naive_of_many(naive_factors(lp, h, rank or None), 4, 2)
    for shards in (1, 2, 7):
        assert bait(lp, h, 2, rank=rank, shards=shards).tolist() == kept


def test_a_rank_of_all_classes_is_the_exact_form_bit_for_bit_and_a_lower_one_loses() -> None:
    lp, h = made(200, 3, 5)
    columns = {"log_probs": lp, "embedding": h}
    exact = select_rows(Fisher(), columns, 12)
    for rank in (5, 9):
        whole = select_rows(Fisher(rank=rank), columns, 12)
        assert whole.ids == exact.ids and whole.scores.tobytes() == exact.scores.tobytes()
    v, m, fisher = problem(naive_factors(lp, h), np.zeros((0, 1, 1)), "sum", 12, 1.0)

    def left(rows: Any) -> float:
        return trace(m + sum(v[i] @ v[i].T for i in rows), fisher)

    lost = [left(bait(lp, h, 12, rank=r)) / left(exact.positions) for r in (1, 2, 4)]
    lost.append(left(bait(lp, h, 12, block_diagonal=True)) / left(exact.positions))
    assert all(1.0 < ratio < 1.3 for ratio in lost)
    assert left(range(12)) / left(exact.positions) > max(lost)  # of rows in no order


def test_traces_never_rise_forward_and_never_fall_backward() -> None:
    lp, h = (torch.from_numpy(a) for a in made(40, 3, 4))
    factor = class_factors(lp)
    fisher = from_blocks(fisher_blocks(factor, h)) / 40
    information = Information(torch.eye(9, dtype=torch.float64)[None], fisher)
    traces = [information.trace]
    for row in range(12):
        information.step(factor[row], h[row], 1.0)
        traces.append(information.trace)
    assert (np.diff(traces) < 0).all()
    assert information.refactor() < 1e-12
    assert traces[-1] == pytest.approx(trace(information.matrix[0].numpy(), fisher[0].numpy()))
    for row in range(12):
        information.step(factor[row], h[row], -1.0)
        traces.append(information.trace)
    assert (np.diff(traces[12:]) > 0).all()


def test_the_block_diagonal_form_is_one_problem_per_class() -> None:
    lp, h = made(40, 3, 4)
    p = np.exp(lp) / np.exp(lp).sum(axis=1, keepdims=True)
    weight = p * (1 - p)  # [N, C]
    fisher = np.einsum("nc,nd,ne->cde", weight, h, h) / 40
    m = np.stack([np.eye(3)] * 4)
    forward: list[int] = []
    for _ in range(6):
        grown = m + np.einsum("nc,nd,ne->ncde", weight, h, h)
        cost = np.einsum("ncde,ced->n", np.linalg.inv(grown), fisher)
        cost[forward] = np.inf
        forward.append(int(cost.argmin()))
        m = grown[forward[-1]]
    objective = Fisher(oversample=1, block_diagonal=True)
    chosen = select_rows(objective, {"log_probs": lp, "embedding": h}, 6)
    assert chosen.positions.tolist() == forward


def diagonal_factors(log_probs: Floats, h: Floats) -> Floats:
    """Return V ``[N, C·D, C]``: column y is √(p_y (1 - p_y)) e_y ⊗ h."""
    p = np.exp(log_probs) / np.exp(log_probs).sum(axis=1, keepdims=True)
    weight = np.sqrt(p * (1 - p))
    v: Floats = np.einsum("nc,cb,nd->ncdb", weight, np.eye(p.shape[1]), h)
    return v.reshape(len(h), p.shape[1] * h.shape[1], p.shape[1])


@pytest.mark.parametrize("labeled", [0, 6])
@pytest.mark.parametrize("weight", ["sum", "release"])
@pytest.mark.parametrize("classes", [2, 5])
def test_block_diagonal_picks_are_those_of_the_explicit_block_diagonal_inverse(
    weight: Any, labeled: int, classes: int
) -> None:
    (lp, h), (llp, lh) = made(50, 3, classes, seed=2), made(labeled, 3, classes, seed=1)
    k = 7
    v, known = diagonal_factors(lp, h), diagonal_factors(llp, lh)
    v, m, fisher = problem(v, known, weight, k, 1.0)
    forward, kept, traces = naive_bait(v, m, fisher, 2 * k, k)
    context = {"log_probs": llp, "embedding": lh} if labeled else {}
    objective = Fisher(labeled_weight=weight, block_diagonal=True)
    chosen = select_rows(objective, {"log_probs": lp, "embedding": h}, k, context=context)
    assert chosen.positions.tolist() == kept
    expected = [traces[i] - traces[i + 1] for i in map(forward.index, kept)]
    np.testing.assert_allclose(chosen.scores, expected, rtol=1e-9)


def test_block_diagonal_holds_one_matrix_of_the_embedding_per_class() -> None:
    lp, h = (torch.from_numpy(a) for a in made(20, 3, 4))
    factor = class_factors(lp, block_diagonal=True)
    assert factor.shape == (20, 4, 1, 1)
    fisher = from_blocks(fisher_blocks(factor, h))
    assert fisher.shape == (4, 3, 3)
    information = Information(torch.eye(3, dtype=torch.float64).repeat(4, 1, 1), fisher)
    directions = information.step(factor[0], h[0], 1.0)
    assert directions.shape == (4, 3, 2) and information.inverse.shape == (4, 3, 3)
    v = diagonal_factors(lp.numpy(), h.numpy())
    dense = np.eye(12) + v[0] @ v[0].T
    blocks = np.linalg.inv(dense).reshape(4, 3, 4, 3)[range(4), :, range(4)]
    np.testing.assert_allclose(information.inverse, blocks)
    whole = np.einsum("nab,ncb->ac", v, v)
    assert information.trace == pytest.approx(trace(dense, whole), rel=1e-13)


@pytest.mark.parametrize("diagonal", [False, True])
def test_shards_do_not_change_a_bit_of_either_form(diagonal: bool) -> None:
    lp, h = made(7 * 4096 + 5, 5, 3)  # eight tiles
    columns, objective = {"log_probs": lp, "embedding": h}, Fisher(block_diagonal=diagonal)
    context = {"log_probs": lp[:50], "embedding": h[:50]}
    one = select_rows(objective, columns, 5, context=context)
    for shards in (2, 7):
        other = select_rows(objective, columns, 5, context=context, shards=shards)
        assert other.ids == one.ids and other.scores.tobytes() == one.scores.tobytes()


def test_removals_are_those_of_explicit_inverses_over_a_refresh() -> None:
    lp, h = made(110, 2, 3)
    v, m, fisher = problem(naive_factors(lp, h), np.zeros((0, 1, 1)), "sum", 20, 1.0)
    _, kept, _ = naive_bait(v, m, fisher, 100, 20)  # 80 removals, more than REFRESH
    assert bait(lp, h, 20, oversample=5).tolist() == kept
    assert REFRESH < 80


def exact_greedy(v: Floats, forward: int) -> list[int]:
    """Return the forward order with ridge 1 and no labels, of inverses in extended precision."""
    wide = v.astype(np.longdouble)
    information = np.einsum("naw,nbw->nab", wide, wide)
    fisher, m = information.mean(axis=0), np.eye(v.shape[1], dtype=np.longdouble)
    chosen: list[int] = []
    for _ in range(forward):
        left, right = m + information, np.broadcast_to(fisher, information.shape).copy()
        for i in range(len(m)):  # Gauss-Jordan: right becomes M⁻¹ F
            right[:, i] /= left[:, i, i, None]
            left[:, i] /= left[:, i, i, None].copy()
            for j in (j for j in range(len(m)) if j != i):
                right[:, j] -= left[:, j, i, None] * right[:, i]
                left[:, j] -= left[:, j, i, None].copy() * left[:, i]
        costs = np.trace(right, axis1=1, axis2=2)
        costs[chosen] = np.inf
        chosen.append(int(costs.argmin()))
        m = m + information[chosen[-1]]
    return chosen


@pytest.mark.skipif(
    bool(np.finfo(np.longdouble).eps > 1e-18), reason="no wider type than float64 here"
)
@pytest.mark.parametrize("diagonal", [False, True])
def test_embeddings_of_a_large_scale_are_chosen_as_exactly(diagonal: bool) -> None:
    lp, h = made(200, 4, 3)
    h = (1e5 * h).astype(np.float32).astype(float)  # the trace falls from 2e10 to 5 in four picks
    v = diagonal_factors(lp, h) if diagonal else rotated_factors(lp, h)
    objective = Fisher(oversample=1, block_diagonal=diagonal)
    chosen = select_rows(objective, {"log_probs": lp, "embedding": h}, 140)
    assert chosen.positions[:90].tolist() == exact_greedy(v, 90)


def rotated_factors(log_probs: Floats, h: Floats) -> Floats:
    """Return V ``[N, (C - 1)·D, C]`` of classes without their null direction."""
    basis = class_basis(log_probs.shape[1]).numpy()
    v = naive_factors(log_probs, h).reshape(len(h), log_probs.shape[1], h.shape[1], -1)
    rotated: Floats = np.einsum("cq,ncdw->nqdw", basis, v)
    return rotated.reshape(len(h), -1, log_probs.shape[1])


def information_of(
    n: int = 30, scale: float = 1.0
) -> tuple[Information, torch.Tensor, torch.Tensor]:
    lp, h = (torch.from_numpy(a) for a in made(n, 4, 3))
    factor, h = class_factors(lp), scale * h
    fisher = from_blocks(fisher_blocks(factor, h)) / n
    return Information(torch.eye(8, dtype=torch.float64)[None], fisher), factor, h


def test_gains_and_costs_are_differences_of_traces_and_removal_undoes_addition() -> None:
    information, factor, h = information_of()
    for row in (3, 5, 8):
        information.step(factor[row], h[row], 1.0)
    g = forms(factor, h, information.inverse)
    half = forms(factor, h, information.middle())
    gains, costs = trace_decrease(g, half), trace_increase(g, half)
    inverse, before = information.inverse.clone(), information.trace
    for row in (3, 5, 8):
        information.step(factor[row], h[row], 1.0)
        assert before - information.trace == pytest.approx(float(gains[row]), rel=1e-10)
        information.step(factor[row], h[row], -1.0)
        np.testing.assert_allclose(information.inverse, inverse, atol=1e-13)
        assert information.trace == pytest.approx(before, rel=1e-12)
        information.step(factor[row], h[row], -1.0)
        assert information.trace - before == pytest.approx(float(costs[row]), rel=1e-10)
        assert information.trace > before  # a removal never lowers the trace
        information.step(factor[row], h[row], 1.0)
    assert information.refactor() < 1e-12


def test_a_trace_that_drifted_is_refused() -> None:
    for wrong in (1.001, 0.999, float("nan")):
        information, factor, h = information_of()
        information.step(factor[0], h[0], 1.0)
        information.trace *= wrong
        with pytest.raises(ScoreError, match="drifted"):
            information.refreshed()


@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_an_inverse_that_is_wrong_is_refused(scale: float) -> None:
    information, factor, h = information_of(scale=scale)
    for row in range(3):
        information.step(factor[row], h[row], 1.0)
    sound, _, _ = information_of(scale=scale)
    information.inverse *= 1.01
    for row in range(3):
        sound.step(factor[row], h[row], 1.0)
    for row in range(3, 20):
        information.step(factor[row], h[row], 1.0)
        sound.step(factor[row], h[row], 1.0)
    sound.refreshed()
    with pytest.raises(ScoreError, match="drifted"):
        information.refreshed()


def test_a_far_fall_or_rise_of_the_trace_asks_for_a_factorisation() -> None:
    information, factor, h = information_of()
    assert not information.stale(2)
    information.step(factor[0], h[0], 1.0)
    assert not information.stale(2)  # it fell, but not far
    information.step(factor[1], h[1], 1.0)
    assert information.stale(2)
    information.refreshed()
    assert not information.stale(2)
    information, factor, h = information_of(scale=1e5)
    for row in range(5):
        information.step(factor[row], h[row], 1.0)
    assert information.stale(64)
    information.refactor()
    assert not information.stale(64)
    for row in range(4, -1, -1):
        information.step(factor[row], h[row], -1.0)
    assert information.trace > 1e4 and information.stale(64)


def test_one_pick_is_the_exhaustive_minimum_and_batches_are_no_better_than_it() -> None:
    equal = 0
    for seed in range(12):
        lp, h = made(8, 2, 3, seed)
        v, m, fisher = problem(naive_factors(lp, h), np.zeros((0, 1, 1)), "sum", 3, 1.0)
        costs = [trace(m + x @ x.T, fisher) for x in v]
        one = {"log_probs": lp, "embedding": h}
        assert select_rows(Fisher(oversample=1), one, 1).positions[0] == np.argmin(costs)

        def after(rows: Any, v: Floats = v, m: Floats = m, fisher: Floats = fisher) -> float:
            return trace(m + sum(v[i] @ v[i].T for i in rows), fisher)

        best = min(after(rows) for rows in itertools.combinations(range(8), 3))
        found = after(bait(lp, h, 3))
        assert best - 1e-12 <= found <= best * 1.15
        equal += found <= best + 1e-12
    assert equal >= 6


def test_certain_rows_say_nothing_and_come_last() -> None:
    lp, h = made(30, 3, 4)
    lp[:20] = np.where(np.arange(4) == 1, 0.0, -np.inf)
    h[:20] *= 100.0
    chosen = select_rows(Fisher(oversample=1), {"log_probs": lp, "embedding": h}, 14)
    assert set(chosen.positions[:10].tolist()) == set(range(20, 30))
    assert chosen.positions[10:].tolist() == [0, 1, 2, 3]  # ties go to the smaller key
    assert (chosen.scores[10:] == 0.0).all() and (chosen.scores[:10] > 0.0).all()
    assert set(bait(lp, h, 10).tolist()) == set(range(20, 30))


def test_near_certain_rows_in_float32_stay_finite() -> None:
    lp, h = made(40, 3, 4)
    lp[:10] = [0.0, -80.0, -100.0, -np.inf]
    lp[10:20] = [-1e-7, -17.0, -np.inf, -40.0]
    chosen = select_rows(Fisher(), {"log_probs": lp, "embedding": h}, 20)
    assert np.isfinite(chosen.scores).all()
    factor = class_factors(torch.from_numpy(lp))
    p = torch.softmax(torch.from_numpy(lp), dim=1)
    covariance = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    back = (class_basis(4) @ factor)[:, 0]
    np.testing.assert_allclose(back @ back.transpose(1, 2), covariance, atol=1e-15)


def test_copies_and_near_copies_are_spread() -> None:
    lp = np.log(np.full((12, 3), 1 / 3))
    directions = np.repeat(np.eye(4), 3, axis=0)
    for h in (directions, directions * (1 + 1e-7 * np.arange(12))[:, None]):
        for oversample in (1, 2):
            picks = bait(lp, h, 4, oversample=oversample)
            assert sorted((picks // 3).tolist()) == [0, 1, 2, 3]
            picks = bait_regression(h, 4, oversample=oversample)
            assert sorted((picks // 3).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("labeled", [0, 5])
def test_regression_is_the_naive_rank_one_greedy(labeled: int) -> None:
    h, known, noise, k = made(60, 5, 2)[1], made(labeled, 5, 2, seed=3)[1], 0.5, 7
    v, m, fisher = problem(h[:, :, None] / noise, known[:, :, None] / noise, "sum", k, 1.0)
    _, kept, _ = naive_bait(v, m, fisher, 2 * k, k)
    picks = bait_regression(h, k, noise=noise, labeled_embeddings=known if labeled else None)
    assert picks.tolist() == kept


def test_all_rows_identical_rows_and_more_picks_than_distinct_rows() -> None:
    lp, h = made(9, 3, 3)
    assert sorted(bait(lp, h, 9).tolist()) == list(range(9))
    same = bait(np.repeat(lp[:1], 200, axis=0), np.repeat(h[:1], 200, axis=0), 40)
    assert sorted(same.tolist()) == list(range(40))  # of equals the larger keys go
    two = bait(np.repeat(lp[:2], 20, axis=0), np.repeat(h[:2], 20, axis=0), 15)
    assert len(set(two.tolist())) == 15
    assert bait(lp, h, 0).tolist() == []
    for diagonal in (False, True):  # one class: no information at all
        assert len(bait(np.zeros((5, 1)), h[:5], 3, block_diagonal=diagonal)) == 3


def test_a_tiny_ridge_does_not_break_removals() -> None:
    lp, h = made(60, 4, 3)
    chosen = select_rows(Fisher(ridge=1e-8, oversample=3), {"log_probs": lp, "embedding": h}, 2)
    v, m, fisher = problem(naive_factors(lp, h), np.zeros((0, 1, 1)), "sum", 2, 1e-8)
    left = trace(m + sum(v[i] @ v[i].T for i in chosen.positions), fisher)
    assert len(set(chosen.ids)) == 2 and left < trace(m, fisher)


def test_shards_do_not_change_a_bit_when_sums_differ_in_order() -> None:
    lp, h = made(9000, 4, 3)
    h[:5000] *= 1e3  # sums of tiles of very different size
    h = np.asarray(as_tensor("embedding", h))
    columns = {"log_probs": lp, "embedding": h}
    context = {"log_probs": lp[:50], "embedding": h[:50]}
    one = select_rows(Fisher(), columns, 6, context=context)
    for shards in (2, 3):
        other = select_rows(Fisher(), columns, 6, context=context, shards=shards)
        assert other.ids == one.ids and other.scores.tobytes() == one.scores.tobytes()


def test_the_order_of_labeled_rows_does_not_change_a_bit() -> None:
    lp, h = made(200, 4, 3)
    known = np.repeat(lp[:1], 100, axis=0)  # labeled rows that differ in the embedding alone
    scores = []
    for order in (np.arange(100), np.arange(100)[::-1]):
        context = {"log_probs": known[order], "embedding": h[:100][order]}
        chosen = select_rows(Fisher(), {"log_probs": lp, "embedding": h}, 5, context=context)
        scores.append(chosen.scores.tobytes())
    assert scores[0] == scores[1]


def test_the_sum_over_tiles_is_the_mean_information() -> None:
    lp, h = made(9000, 4, 3)
    objective = Fisher()
    tensors = {"log_probs": torch.from_numpy(lp).float(), "embedding": torch.from_numpy(h).float()}
    tiles = cut_tiles(np.arange(9000, dtype=np.uint64), tensors)
    shard = Shard(objective, tiles, 0)
    chosen = choose(objective, LocalShards([shard]), 1)
    factor = class_factors(tensors["log_probs"])
    exact = from_blocks(fisher_blocks(factor, tensors["embedding"].double())) / 9000
    information = Information(torch.eye(8, dtype=torch.float64)[None], exact)
    g = forms(factor, tensors["embedding"].double(), information.inverse)
    half = forms(factor, tensors["embedding"].double(), information.middle())
    gains = trace_decrease(g, half).numpy()
    assert gains.max() == pytest.approx(max(chosen.scores), rel=1e-12)
    assert chosen.runners_up.priority.size == 10


def test_what_cannot_be_is_refused() -> None:
    lp, h = made(6, 2, 3)
    with pytest.raises(NeedsError, match="belong together"):
        bait(lp, h, 1, labeled_embeddings=h)
    with pytest.raises(NeedsError, match="same labeled rows"):
        bait(lp, h, 1, labeled_log_probs=lp, labeled_embeddings=h[:2])
    with pytest.raises(ValueError, match="oversample must be at least 1"):
        bait(lp, h, 1, oversample=0)
    with pytest.raises(ValueError, match="rank at least 0"):
        bait(lp, h, 1, rank=-1)
    for rank in (1, 3):
        with pytest.raises(ValueError, match=r"block_diagonal=True leaves that out.*give one"):
            bait(lp, h, 1, rank=rank, block_diagonal=True)
    with pytest.raises(SettingsError, match="give one of them"):
        Fisher(rank=1, block_diagonal=True)
    with pytest.raises(ValueError, match="ridge"):
        bait_regression(h, 1, ridge=0.0)
    with pytest.raises(ScoreError, match="-inf for every class"):
        bait(np.full((6, 3), -np.inf), h, 1)
