"""Acquisition functions on hand-computed cases and by their properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rayal import acquisition as acq

TRIPLE = torch.tensor([[0.44, 0.42, 0.14], [0.46, 0.27, 0.27], [0.495, 0.495, 0.01]])


def logs(rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


def test_the_three_measures_part_on_three_rows() -> None:
    lp = TRIPLE.log()
    assert acq.least_confidence(lp).tolist() == pytest.approx([0.56, 0.54, 0.505], abs=1e-6)
    assert acq.margin(lp).tolist() == pytest.approx([-0.02, -0.19, 0.0], abs=1e-6)
    assert acq.entropy(lp).tolist() == pytest.approx([1.001, 1.064, 0.742], abs=1e-3)
    assert [int(f(lp).argmax()) for f in (acq.least_confidence, acq.margin, acq.entropy)] == [
        0,
        2,
        1,
    ]


def test_uniform_and_one_hot() -> None:
    lp = logs([[0.25] * 4, [1.0, 0.0, 0.0, 0.0]])
    assert acq.least_confidence(lp).tolist() == pytest.approx([0.75, 0.0])
    assert acq.margin(lp).tolist() == pytest.approx([0.0, -1.0])
    assert acq.entropy(lp).tolist() == pytest.approx([math.log(4), 0.0])


def test_least_confidence_keeps_its_digits_near_one() -> None:
    lp = torch.tensor([[-1e-12, -27.6], [-2e-12, -27.0]], dtype=torch.float64)
    assert acq.least_confidence(lp).tolist() == pytest.approx([1e-12, 2e-12], rel=1e-9)


def test_least_confidence_of_float32_is_the_sum_of_the_others() -> None:
    """The float32 logarithm of the largest is 0 here, and 1 - its exponential says nothing."""
    logits = torch.tensor([[18.0, 0.0], [20.0, 0.0], [25.0, 0.0], [30.0, 0.0], [800.0, 0.0]])
    made = acq.least_confidence(logits.log_softmax(dim=1)).tolist()
    assert made[:4] == pytest.approx([1 / (1 + math.exp(x)) for x in (18, 20, 25, 30)], rel=1e-5)
    assert made[4] == 0.0 and math.copysign(1.0, made[4]) == 1.0


def test_margin_and_entropy_keep_the_digits_of_a_confident_row() -> None:
    logits = torch.tensor([[15.0, 1.0, 0.0], [0.0, 16.0, -1.0], [2.0, 2.0, 30.0]])
    lp, wide = logits.log_softmax(dim=1), logits.double().log_softmax(dim=1)
    second = wide.exp().topk(2, dim=1).values[:, 1]
    others = wide.exp().topk(2, dim=1, largest=False).values.sum(dim=1)
    torch.testing.assert_close(1 + acq.margin(lp), second + others, rtol=1e-5, atol=1e-15)
    terms = (wide * wide.exp()).topk(2, dim=1, largest=False).values.sum(dim=1)  # of the others
    expected = -(1 - others) * torch.log1p(-others) - terms
    torch.testing.assert_close(acq.entropy(lp), expected, rtol=1e-5, atol=0)


def test_equal_largest_classes_have_a_margin_of_exactly_0() -> None:
    lp = torch.tensor([[1.0, 1.0, -3.0], [0.3, -9.0, 0.3]]).log_softmax(dim=1)
    assert acq.margin(lp).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("classes", [2, 5, 80])
def test_the_softmax_gradient_keeps_the_digits_of_a_confident_row(classes: int) -> None:
    logits = torch.randn((40, classes), generator=torch.Generator().manual_seed(0))
    logits[torch.arange(40), torch.arange(40) % classes] += torch.linspace(12.0, 40.0, 40)
    h = torch.randn((40, 3), generator=torch.Generator().manual_seed(1))
    exact = logits.double().numpy().astype(np.longdouble)
    p = np.exp(exact - exact.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    lengths = np.zeros(40, dtype=np.longdouble)
    for k in range(classes):
        others = np.delete(p, k, axis=1)  # 1 - p_k is their sum
        lengths += p[:, k] * np.sqrt(others.sum(axis=1) ** 2 + (others**2).sum(axis=1))
    expected = np.sqrt((h.double().numpy() ** 2).sum(axis=1) + 1.0) * lengths
    made = acq.softmax_gradient_length(logits.log_softmax(dim=1), h)
    np.testing.assert_allclose(made.numpy(), expected.astype(float), rtol=1e-5)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.floats(0.02, 0.98), min_size=3, max_size=20, unique=True))
def test_two_classes_rank_alike(p: list[float]) -> None:
    lp = logs([[x, 1 - x] for x in p])
    gaps = np.abs(np.array(p) - 0.5)
    if np.min(np.diff(np.sort(gaps))) < 1e-6:
        return
    orders = {
        tuple(f(lp).argsort().tolist()) for f in (acq.least_confidence, acq.margin, acq.entropy)
    }
    assert len(orders) == 1


def members(*rows: list[list[float]]) -> torch.Tensor:
    return torch.stack([logs(r) for r in rows])


def statistics(lp: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    probs = lp.exp()
    return probs.mean(dim=1), acq.probability_entropy(probs).mean(dim=1)


def test_bald_by_hand() -> None:
    lp = members([[1.0, 0.0], [0.0, 1.0]], [[0.9, 0.1], [0.1, 0.9]], [[0.5, 0.5], [0.5, 0.5]])
    assert acq.bald_of_members(lp).tolist() == pytest.approx([math.log(2), 0.368064, 0.0], abs=1e-6)
    mean, noise = statistics(lp)
    assert acq.probability_entropy(mean).tolist() == pytest.approx([math.log(2)] * 3)
    assert torch.equal(acq.bald(mean, noise), acq.bald_of_members(lp))
    deviation = acq.mean_standard_deviation(lp.exp().var(dim=1, correction=0))
    assert deviation.tolist() == pytest.approx([0.5, 0.4, 0.0])


def test_equal_members_do_not_disagree() -> None:
    row = np.random.default_rng(0).dirichlet(np.ones(7), size=50)
    lp = torch.from_numpy(np.log(row))[:, None].expand(-1, 8, -1)
    assert acq.bald_of_members(lp).max().item() == 0.0
    assert acq.mean_standard_deviation(lp.exp().var(dim=1, correction=0)).max().item() < 1e-15


def test_bald_is_the_mean_divergence_from_the_mean_and_is_bounded() -> None:
    p = np.random.default_rng(1).dirichlet(np.ones(5) * 0.4, size=(40, 3))
    bald = acq.bald_of_members(torch.from_numpy(np.log(p))).numpy()
    mean = p.mean(axis=1, keepdims=True)
    assert bald == pytest.approx(stats.entropy(p, mean, axis=2).mean(axis=1), abs=1e-12)
    assert (bald <= np.minimum(np.log(3), stats.entropy(mean[:, 0], axis=1)) + 1e-12).all()


def test_both_forms_of_the_variation_ratio_rank_oppositely() -> None:
    p = torch.tensor(
        [[[0.51, 0.49]] * 3, [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]], dtype=torch.float64
    )
    votes = torch.nn.functional.one_hot(p.argmax(dim=2), 2).double().mean(dim=1)
    assert acq.variation_ratio_vote(votes).tolist() == pytest.approx([0.0, 1 / 3])
    assert acq.variation_ratio_mean(p.mean(dim=1)).tolist() == pytest.approx(
        [0.49, 0.3667], abs=1e-4
    )


def test_the_mean_variation_ratio_keeps_its_digits_near_one() -> None:
    mean = torch.tensor([[1.0, 1e-12], [1.0, 2e-12]])
    assert acq.variation_ratio_mean(mean).tolist() == pytest.approx([1e-12, 2e-12], rel=1e-6)


def test_votes_of_five_members() -> None:
    votes = torch.tensor([[0.6, 0.2, 0.2], [1.0, 0.0, 0.0]])
    assert acq.variation_ratio_vote(votes).tolist() == pytest.approx([0.4, 0.0])
