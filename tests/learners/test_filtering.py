"""Assumed-density filtering: closed forms, exact Bayes, gradients, and what a weight is spared."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from rayal.learners.filtering import (
    LEAST,
    MOST,
    Array,
    Posterior,
    PriorFactors,
    absorb,
    gradients,
    log_normalisers,
    matched_gamma,
    propagate,
    rectify,
    take_gamma,
    usable,
)
from rayal.models.moments import rectified
from rayal.models.probabilistic import ProbabilisticNet


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


def fresh(sizes: tuple[int, ...] = (3, 5, 1), seed: int = 0) -> tuple[ProbabilisticNet, Posterior]:
    """Return a network with unequal variances, and its posterior in arrays of their own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ProbabilisticNet(sizes)
        for v in net.variances:
            v.data.mul_(torch.rand_like(v) + 0.1)

    def copies(held: Iterable[torch.Tensor]) -> list[Array]:
        return [t.detach().numpy().copy() for t in held]

    return net, Posterior(copies(net.means), copies(net.variances), *copies([net.noise, net.prior]))


# ---- moments -------------------------------------------------------------------------------------


def test_the_moments_of_a_rectified_standard_normal() -> None:
    made = rectify(np.zeros(1), np.ones(1))
    assert made.mean[0] == pytest.approx(1 / math.sqrt(2 * math.pi), abs=1e-15)
    assert made.variance[0] == pytest.approx(0.5 - 0.5 / math.pi, abs=1e-15)  # 0.34085


@pytest.mark.parametrize(
    ("mean", "variance"), [(0.7, 2.3), (-1.1, 0.4), (3.0, 0.1), (-4.0, 1.0), (-6.0, 1.7)]
)
def test_rectified_moments_equal_integrals(mean: float, variance: float) -> None:
    deviation = math.sqrt(variance)

    def integral(power: int) -> float:
        def of(x: float) -> float:
            return float(x**power * norm.pdf(x, mean, deviation))

        return float(quad(of, 0.0, mean + 40 * deviation if mean > 0 else 30.0, epsabs=0)[0])

    made = rectify(np.array([mean]), np.array([variance]))
    first, second = integral(1), integral(2)
    assert made.mean[0] == pytest.approx(first, rel=1e-8)
    assert made.variance[0] == pytest.approx(second - first**2, rel=1e-6)


def test_far_tails_and_no_variance_are_finite_and_the_relu() -> None:
    mean = np.array([-29.999, -30.001, -50.0, -1e4, 1e4, 2.0, -2.0, 0.0])
    variance = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    made = rectify(mean, variance)
    assert all(np.isfinite(part).all() for part in made)
    assert made.mean[5:].tolist() == [2.0, 0.0, 0.0] and made.variance[5:].tolist() == [0.0] * 3
    assert made.mean[4] == 1e4 and made.variance[4] == pytest.approx(1.0)
    assert made.mean[0] == pytest.approx(made.mean[1], rel=0.1)  # the series takes over smoothly
    scaled = rectify(np.array([-8.0e-200]), np.array([1e-300]))
    assert all(np.isfinite(part).all() for part in scaled)


def test_scanning_and_training_have_the_same_moments() -> None:
    rng = np.random.default_rng(0)
    mean = np.concatenate([rng.normal(size=400) * 5, [-31.0, -200.0, 7.0, -7.0, 0.0]])
    variance = np.concatenate([rng.gamma(1.0, size=400) ** 3, [1.0, 1.0, 0.0, 0.0, 0.0]])
    made = rectify(mean, variance)
    others = rectified(torch.from_numpy(mean), torch.from_numpy(variance))
    np.testing.assert_allclose(made.mean, others[0], rtol=1e-10, atol=1e-150)
    np.testing.assert_allclose(made.variance, others[1], rtol=1e-9, atol=1e-15)
    net, posterior = fresh((3, 6, 4, 1))
    x = rng.normal(size=(20, 3))
    means, variances = net.propagate(torch.from_numpy(x))
    rows = [propagate(posterior, row)[:2] for row in x]
    np.testing.assert_allclose(np.array(rows).T, np.stack([means, variances]), rtol=1e-12)


def test_moments_of_a_layer_are_those_of_sampled_weights() -> None:
    _, posterior = fresh((2, 1))
    x, rng = np.array([0.8, -1.5]), np.random.default_rng(1)
    weights = rng.normal(posterior.means[0], np.sqrt(posterior.variances[0]), (400_000, 1, 3))
    outputs = weights[:, 0] @ np.append(x, 1.0) / math.sqrt(3)
    mean, variance, _ = propagate(posterior, x)
    assert mean == pytest.approx(outputs.mean(), abs=0.01)
    assert variance == pytest.approx(outputs.var(), rel=0.01)


def test_without_variance_it_is_the_plain_network() -> None:
    _, posterior = fresh((3, 5, 1))
    for v in posterior.variances:
        v[:] = 0.0
    x = np.array([0.3, -1.0, 2.0])
    hidden = np.maximum(posterior.means[0] @ np.append(x, 1.0) / 2.0, 0.0)
    output = posterior.means[1] @ np.append(hidden, 1.0) / math.sqrt(6)
    mean, variance, _ = propagate(posterior, x)
    assert variance == 0.0 and mean == pytest.approx(float(output[0]), abs=1e-15)


# ---- one row -------------------------------------------------------------------------------------


def test_one_weight_learns_as_bayes_says() -> None:
    # N(0.3, 2) · x, x = 1.7, y = 1.1, noise 0.5; the layer divides by √2, and its bias is 0
    posterior = Posterior(
        [np.array([[0.3, 0.0]])], [np.array([[2.0, 0.0]])], np.array([3.0, 1.0]), np.ones(2)
    )
    logs = absorb(posterior, np.array([1.7 * math.sqrt(2)]), 1.1)
    assert posterior.means[0].tolist()[0] == pytest.approx([0.6194268, 0.0], abs=1e-7)
    assert posterior.variances[0].tolist()[0] == pytest.approx([0.1592357, 0.0], abs=1e-7)
    total = 1.7**2 * 2.0 + 0.5
    assert logs == pytest.approx(norm.logpdf(1.1, 0.51, math.sqrt(total)))


def test_the_noise_takes_over_the_first_two_moments() -> None:
    logs = log_normalisers(0.59, 0.4, 6.0, 6.0)
    shape, rate = matched_gamma(logs, 6.0, 6.0)
    assert shape == pytest.approx(6.52386, abs=1e-5) and rate == pytest.approx(6.19809, abs=1e-5)
    z, one, two = np.exp(logs)
    assert shape / rate == pytest.approx(6.0 / 6.0 * one / z, rel=1e-12)
    assert shape * (shape + 1) / rate**2 == pytest.approx(6 * 7 / 36 * two / z, rel=1e-12)
    for d, made in zip((-1.0, 0.0, 1.0), (z, one, two), strict=True):
        assert made == pytest.approx(norm.pdf(0.59, 0.0, math.sqrt(0.4 + 6.0 / (6.0 + d))))


@pytest.mark.parametrize("sizes", [(3, 1), (3, 5, 1), (3, 6, 4, 1)])
def test_gradients_equal_autograd_and_differences(sizes: tuple[int, ...]) -> None:
    net, posterior = fresh(sizes)
    x, y, noise = np.array([0.4, -1.2, 0.9]), 0.7, 1.2

    def log_z(mean: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
        total = variance + noise
        return -0.5 * (torch.log(2 * math.pi * total) + (y - mean) ** 2 / total)

    weights = [p.requires_grad_() for p in (*net.means, *net.variances)]
    by_torch = torch.autograd.grad(log_z(*net.propagate(torch.from_numpy(x)[None])).sum(), weights)
    mean, variance, layers = propagate(posterior, x)
    total = variance + noise
    slope = (y - mean) / total
    made = gradients(posterior, layers, slope, 0.5 * (slope**2 - 1 / total))
    closed = [pair[0] for pair in made] + [pair[1] for pair in made]
    for ours, theirs in zip(closed, by_torch, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    for held, ours in zip((*posterior.means, *posterior.variances), closed, strict=True):
        at = (0, 1)
        before, sides = held[at], []
        for side in (1e-6, -1e-6):
            held[at] = before + side
            m, v, _ = propagate(posterior, x)
            sides.append(float(log_z(*torch.tensor([m, v], dtype=torch.float64))))
        held[at] = before
        assert ours[at] == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-7)


def test_the_variance_grows_away_from_the_rows() -> None:
    rng = np.random.default_rng(2)
    _, posterior = fresh((1, 20, 1))
    factors = PriorFactors.of(posterior)
    x = rng.uniform(-1.0, 1.0, 40)
    for _ in range(10):
        for row in x:
            absorb(posterior, np.array([row]), math.sin(3 * row))
        factors.refine(posterior)
    inside, near, far = (propagate(posterior, np.array([at]))[1] for at in (0.0, 3.0, 9.0))
    assert inside < near < far and far > 10 * inside


# ---- what public code lets through ---------------------------------------------------------------


def test_a_bad_update_is_left_out_for_that_weight_alone() -> None:
    posterior = Posterior(
        [np.array([[0.3, 0.1]])], [np.array([[1e-300, 1.0]])], np.array([6.0, 6.0]), np.ones(2)
    )
    absorb(posterior, np.array([1e155]), 1.0)  # its square is no number
    assert all(np.isfinite(a).all() for a in (posterior.means[0], posterior.variances[0]))
    assert posterior.means[0][0, 0] == 0.3 and posterior.variances[0][0, 0] == 1e-300
    kept = Posterior(
        [np.array([[0.3, 0.1]])], [np.array([[0.5 * LEAST, 1.0]])], np.array([6.0, 6.0]), np.ones(2)
    )
    absorb(kept, np.array([1.0]), 1.0)
    assert kept.means[0][0, 0] == 0.3 and kept.means[0][0, 1] > 0.1


def test_a_mean_that_is_no_number_is_left_out_though_its_variance_is_one() -> None:
    """Public code compares the mean with NaN by !=, which is always true."""
    means = np.array([math.nan, math.inf, 1.0, 1.0, 1.0, 1.0])
    variances = np.array([1.0, 1.0, math.nan, math.inf, LEAST, 2 * LEAST])
    assert usable(means, variances).tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("made", [(math.nan, 1.0), (2.0, math.inf), (1.0, 2.0), (3.0, -1.0)])
def test_a_gamma_distribution_without_a_mean_variance_is_left_out(
    made: tuple[float, float],
) -> None:
    held = np.array([6.0, 6.0])
    assert not take_gamma(held, made) and held.tolist() == [6.0, 6.0]
    assert take_gamma(held, (7.0, 5.0)) and held.tolist() == [7.0, 5.0]


def test_an_outlier_of_the_noise_leaves_finite_numbers() -> None:
    _, posterior = fresh()
    for y in (1e3, -1e6, 1e12, 1e200):
        absorb(posterior, np.array([1.0, 2.0, 3.0]), y)
    held = (*posterior.means, *posterior.variances, posterior.noise)
    assert all(np.isfinite(a).all() for a in held) and posterior.noise[0] > 1
    assert all((v > 0).all() for v in posterior.variances)


# ---- the prior's factors -------------------------------------------------------------------------


def by_loop(posterior: Posterior, factors: PriorFactors, *, serial: bool) -> None:
    """Refine weight by weight in plain numbers; serially, each sees what the one before changed."""
    start, total = posterior.prior.copy(), np.zeros(2)
    for layer, means in enumerate(posterior.means):
        for at in np.ndindex(*means.shape):
            m, v = means[at], posterior.variances[layer][at]
            a0, b0 = posterior.prior if serial else start
            own = [f[layer][at] for f in (factors.shape, factors.rate)]
            precision = 1 / v - factors.precision[layer][at]
            centre = (m / v - factors.shifted[layer][at]) / precision
            cavity, a, b = 1 / precision, a0 - own[0], b0 - own[1]
            if not (0 < cavity < MOST and a > 1 and b > 0):
                continue
            z, z1, z2 = (norm.pdf(centre, 0, math.sqrt(cavity + b / (a + d))) for d in (-1, 0, 1))
            s = cavity + b / (a - 1)
            dm, dv = -centre / s, -0.5 / s + 0.5 * centre**2 / s**2
            mean, spread = centre + cavity * dm, cavity - cavity**2 * (dm**2 - 2 * dv)
            shape = 1 / (z * z2 / z1**2 * (a + 1) / a - 1)
            rate = 1 / (z2 / z1 * (a + 1) / b - z1 / z * a / b)
            factors.precision[layer][at] = 1 / spread - 1 / cavity
            factors.shifted[layer][at] = mean / spread - centre / cavity
            factors.shape[layer][at], factors.rate[layer][at] = shape - a, rate - b
            means[at], posterior.variances[layer][at] = mean, spread
            total += [shape - a - own[0], rate - b - own[1]]
            if serial:
                posterior.prior[:] = shape, rate
    if not serial:
        posterior.prior += total


def trained(seed: int = 0) -> tuple[Posterior, PriorFactors]:
    """Return a posterior that has seen some rows, with the factors of its prior."""
    _, posterior = fresh((3, 5, 1), seed)
    for v in posterior.variances:
        v[:] = 1.2
    factors, rng = PriorFactors.of(posterior), np.random.default_rng(seed)
    for x in rng.normal(size=(60, 3)):
        absorb(posterior, x, float(x[0] - x[1] ** 2))
    return posterior, factors


def test_refining_all_weights_at_once_is_refining_each_of_them() -> None:
    posterior, factors = trained()
    other, others = trained()
    for _ in range(3):
        factors.refine(posterior)
        by_loop(other, others, serial=False)
    for ours, theirs in zip(
        (*posterior.means, *posterior.variances, posterior.prior),
        (*other.means, *other.variances, other.prior),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)


def test_refining_at_once_and_weight_by_weight_have_the_same_fixed_point() -> None:
    posterior, factors = trained()
    other, others = trained()
    for _ in range(300):
        factors.refine(posterior)
        by_loop(other, others, serial=True)
    np.testing.assert_allclose(posterior.prior, other.prior, rtol=1e-4)
    for ours, theirs in zip(posterior.variances, other.variances, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3)


def test_a_cavity_that_is_no_distribution_is_passed_over() -> None:
    posterior, factors = trained()
    posterior.variances[0][0, 0] = 10.0  # wider than its own prior factor: the cavity is negative
    before = posterior.means[0][0, 0], factors.precision[0][0, 0]
    factors.refine(posterior)
    assert (posterior.means[0][0, 0], factors.precision[0][0, 0]) == before
    assert posterior.variances[0][0, 0] == 10.0


def test_a_prior_without_a_mean_variance_is_not_taken() -> None:
    posterior, factors = trained()
    posterior.prior[:] = 1.0, 1e-9  # nothing that is added makes this a distribution
    held = [a.copy() for a in (*factors.shape, *factors.rate)]
    factors.refine(posterior)
    assert posterior.prior.tolist() == [1.0, 1e-9]
    now = (*factors.shape, *factors.rate)
    assert all(np.array_equal(a, b) for a, b in zip(held, now, strict=True))


@pytest.mark.parametrize("seed", [0, 1])
def test_more_weights_than_rows_leave_a_prior_that_is_the_sum_of_its_factors(seed: int) -> None:
    """With 50 units the summed update of the first pass leaves no Gamma distribution."""
    rng, rows = np.random.default_rng(seed), 30
    _, posterior = fresh((6, 50, 1), seed)
    for v in posterior.variances:
        v[:] = 1.2
    factors = PriorFactors.of(posterior)
    x = rng.normal(size=(rows, 6))
    y = np.sin(x[:, 0]) + x[:, 1] * x[:, 2]
    for turn in range(12):
        for row in rng.permutation(rows):
            absorb(posterior, x[row], float(y[row]))
        if turn == 0:
            summed = sum(
                PriorFactors._refine_layer(*copy.deepcopy((factors, posterior)), layer)
                for layer in range(2)
            )
            assert (posterior.prior + summed)[0] < 1.0
        before = posterior.prior.copy()
        factors.refine(posterior)
        assert not np.array_equal(posterior.prior, before)
        assert np.isfinite(posterior.prior).all()
        assert posterior.prior[0] > 1.0 and posterior.prior[1] > 0.0
        added = [sum(float(a.sum()) for a in held) for held in (factors.shape, factors.rate)]
        np.testing.assert_allclose(posterior.prior, 6.0 + np.array(added), rtol=1e-9, atol=1e-9)
    assert all(np.isfinite(m).all() for m in posterior.means)
    assert all((v > 0.0).all() and np.isfinite(v).all() for v in posterior.variances)
