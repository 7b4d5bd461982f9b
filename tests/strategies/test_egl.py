from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import beta
from torch.nn import functional as F

from rayal import acquisition
from rayal.registry import strategies
from rayal.selection.functions import select_rows
from rayal.selection.topk import MinMaxMixture
from rayal.strategies import Ctx
from rayal.testing import make_columns, run
from rayal.types import Columns

IDS = [f"item/{i}" for i in range(300)]


def test_the_closed_form_is_what_autograd_says() -> None:
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(5, 4).double()
    h = torch.randn((7, 5), generator=generator, dtype=torch.float64)
    expected = []
    for row in h:
        log_probs = F.log_softmax(head(row), dim=0)
        total = torch.zeros((), dtype=torch.float64)
        for lp in log_probs:
            made = torch.autograd.grad(-lp, list(head.parameters()), retain_graph=True)
            total += lp.exp().detach() * torch.cat([g.flatten() for g in made]).norm()
        expected.append(total)
    log_probs = F.log_softmax(head(h), dim=1).detach()
    lengths = acquisition.softmax_gradient_length(log_probs, h)
    torch.testing.assert_close(lengths, torch.stack(expected), rtol=1e-10, atol=0)


def test_of_two_classes_it_is_a_known_function() -> None:
    p = torch.tensor([0.0, 1e-9, 0.1, 0.5, 0.9], dtype=torch.float64)
    h = torch.ones((5, 3), dtype=torch.float64)
    made = acquisition.softmax_gradient_length(torch.stack([p, 1 - p], dim=1).log(), h)
    torch.testing.assert_close(made, 2.0 * 2.0 * 2.0**0.5 * p * (1 - p), rtol=1e-7, atol=0)


def test_a_certain_item_scores_zero() -> None:
    log_probs = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert acquisition.softmax_gradient_length(log_probs, torch.ones(1, 2)).item() == 0.0


def test_without_its_layer_the_closed_form_is_the_residual_alone() -> None:
    """With no embedding what is left is the expected length of p - e_k."""
    probs = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)
    lengths = [(probs[0] - torch.eye(3)[k]).norm() for k in range(3)]
    by_hand = sum(p * n for p, n in zip(probs[0], lengths, strict=True))
    made = acquisition.softmax_gradient_length(probs.log(), torch.zeros(1, 4))
    assert made.item() == pytest.approx(float(by_hand), rel=1e-12)


def test_a_weight_of_one_or_zero_is_the_base_itself() -> None:
    columns = make_columns(300, np.random.default_rng(1))
    columns["log_probs"] = columns["log_probs.0"]  # the entropy of the same member
    mixed = {
        w: run(strategies["egl_entropy_beta"](weight=w), columns, 40, ids=IDS) for w in (0.0, 1.0)
    }
    assert mixed[1.0].ids == run(strategies["egl_word"](), columns, 40, ids=IDS).ids
    assert mixed[0.0].ids == run(strategies["entropy"](), columns, 40, ids=IDS).ids
    half = run(strategies["egl_entropy_beta"](weight=0.5), columns, 40, ids=IDS)
    assert set(half.ids) not in (set(mixed[1.0].ids), set(mixed[0.0].ids))


def test_the_mixture_by_hand() -> None:
    columns = {"score": torch.tensor([[2.0, 0.0], [4.0, 1.0], [3.0, 5.0], [0.0, 4.0]])}
    picks = select_rows(MinMaxMixture(weight=0.25), columns, 4, ids=list("abcd"))
    by_hand = [0.25 * 0.75 + 0.75 * 1.0, 0.75 * 0.8, 0.25 * 1.0 + 0.75 * 0.2, 0.25 * 0.5]
    assert picks.ids == ("c", "d", "b", "a")
    np.testing.assert_allclose(picks.scores, by_hand, rtol=1e-14)


def test_ranges_are_those_of_the_candidates_of_all_shards() -> None:
    """An item that may not be chosen, however large, does not move the ranges."""
    from rayal.selection.greedy import LocalShards, Shard, choose
    from rayal.selection.tiles import cut_tiles

    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.gamma(2.0, size=(9000, 2)))
    scores[4] = torch.tensor([1e6, 1e6])
    eligible = np.arange(9000) != 4
    objective = MinMaxMixture(weight=0.3)
    kept = scores[torch.from_numpy(eligible)]
    low, high = kept.amin(dim=0), kept.amax(dim=0)
    expected = ((scores - low) / (high - low)) @ torch.tensor([0.3, 0.7], dtype=torch.float64)
    expected[4] = -1.0
    best = torch.topk(expected, 20).indices.numpy().astype(np.uint64)
    for shards in (1, 3):
        tiles = cut_tiles(np.arange(9000, dtype=np.uint64), {"score": scores}, eligible)
        held = [Shard(objective, tiles[s::shards], 0) for s in range(shards)]
        assert (choose(objective, LocalShards(held), 20).keys == best).all()


def test_a_column_of_equal_values_counts_nothing() -> None:
    scores = torch.tensor([[1.0, 0.1], [1.0, 0.9], [1.0, 0.5]])
    picks = select_rows(MinMaxMixture(weight=0.9), {"score": scores}, 3, ids=list("abc"))
    assert picks.ids == ("b", "c", "a")
    assert np.isfinite(picks.scores).all()


def test_the_weight_is_drawn_once_a_round_from_a_beta_that_moves() -> None:
    strategy = strategies["egl_entropy_beta"](rounds=10)
    assert strategy.beta(0) == pytest.approx((2.1, 0.1))
    assert strategy.beta(10) == strategy.beta(99) == pytest.approx((0.1, 2.1))
    assert strategy.beta(-1) == strategy.beta(0)

    def weights(round: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        contexts = (Ctx(round=round, k=1, seed=seed, n_candidates=9) for seed in range(400))
        return np.array([strategy.objective(ctx).weight for ctx in contexts])

    for round in (0, 3, 10):
        drawn, (a, b) = weights(round), strategy.beta(round)
        assert drawn.mean() == pytest.approx(a / (a + b), abs=0.06)
        spread = np.quantile(drawn, [0.1, 0.5, 0.9])
        np.testing.assert_allclose(beta.cdf(spread, a, b), [0.1, 0.5, 0.9], atol=0.08)
    again = Ctx(round=3, k=1, seed=7, n_candidates=9)
    objective = strategy.objective(again)
    assert strategy.objective(again) == objective
    assert objective.drawn() == {"weight": objective.weight, "beta": list(strategy.beta(3))}


def test_scores_are_the_signals() -> None:
    columns = make_columns(5, np.random.default_rng(0))
    tensors = {n: torch.from_numpy(a).float() for n, a in columns.items()}
    given = Columns(tensors, [str(i) for i in range(5)])
    assert torch.equal(strategies["egl"]().score(given), tensors["gradient_length"])
    assert torch.equal(strategies["egl_word"]().score(given), tensors["word_gradient_length"])
    both = strategies["egl_entropy_beta"]().score(given)
    assert torch.equal(both[:, 0], tensors["word_gradient_length"].double())
    assert torch.equal(both[:, 1], acquisition.entropy(tensors["log_probs.0"]))
