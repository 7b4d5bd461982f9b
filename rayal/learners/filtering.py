"""Assumed-density filtering of a network with normal weights, row after row, in closed form.

Source: Hernández-Lobato & Adams, ICML 2015, "Probabilistic backpropagation for scalable learning of
Bayesian neural networks", section 3. The gradients of the log-normaliser are written out, so that
a row costs some dozen operations on the weights of each layer. Moments and weights are float64,
whatever rows were rounded to before; functions here change their arrays in place, and want numpy's
floating point warnings off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr

from rayal.models.probabilistic import RATE, SHAPE

Array = npt.NDArray[np.float64]
LEAST = 1e-100  # a variance that may be left of a weight
FAR = -30.0  # deviations below zero from where a ratio of densities is a series
NORMALISER = 1.0 / math.sqrt(2.0 * math.pi)
SHARES = tuple(0.5**n for n in range(30))  # of an update of the prior, the whole first
MOST = 1e6  # a cavity's variance from which on its prior factor is not refined


@dataclass
class Posterior:
    """Normal weights, and Gamma distributions of two precisions.

    Attributes:
        means: means of the weights of each layer, ``[O, K]``, K its inputs and the bias.
        variances: variances of the weights, likewise.
        noise: shape and rate of the noise's precision, ``[2]``.
        prior: shape and rate of the weights' precision under the prior, ``[2]``.
    """

    means: Sequence[Array]
    variances: Sequence[Array]
    noise: Array
    prior: Array


class Rectified(NamedTuple):
    """Moments of max(0, x), x normal, with the terms of their derivatives; each ``[O]``.

    Attributes:
        mean: E[max(0, x)].
        variance: Var[max(0, x)].
        above: Φ(α), the probability of x > 0.
        below: Φ(-α).
        density: φ(α)/σ.
    """

    mean: Array
    variance: Array
    above: Array
    below: Array
    density: Array

    def backward(self, of_mean: Array, of_variance: Array) -> tuple[Array, Array]:
        """Return gradients at mean and variance of x, from those at the moments.

        With f(x) = max(0, x): ∂E f/∂m = Φ, ∂E f/∂v = φ/2σ, ∂E f²/∂m = 2 E f, ∂E f²/∂v = Φ.
        """
        at_mean = of_mean * self.above + 2.0 * of_variance * self.mean * self.below
        spread = self.above - self.mean * self.density
        return at_mean, 0.5 * of_mean * self.density + of_variance * spread


def rectify(mean: Array, variance: Array) -> Rectified:
    """Return the moments of max(0, x) for x ~ N(mean, variance), ``[O]``.

    A variance of 0 gives the ReLU of the mean, and its derivative.
    """
    random = variance > 0.0
    deviation = np.sqrt(np.where(random, variance, 1.0))
    alpha = np.where(random, mean / deviation, np.where(mean > 0.0, np.inf, -np.inf))
    above, below = ndtr(alpha), ndtr(-alpha)
    density = np.exp(-0.5 * alpha * alpha) * NORMALISER
    gamma = np.exp(-0.5 * alpha * alpha - log_ndtr(alpha)) * NORMALISER
    far = alpha < FAR
    if far.any():
        gamma = np.where(far, -alpha - 1.0 / alpha + 2.0 / alpha**3, gamma)
    shifted = mean + deviation * gamma
    first = above * shifted
    spread = first * shifted * below + above * variance * (1.0 - gamma * (gamma + alpha))
    if not random.all():
        first, spread = np.where(random, first, mean), np.where(random, spread, 0.0)
        density = np.where(random, density, 0.0)
    return Rectified(
        np.maximum(first, 0.0), np.maximum(spread, 0.0), above, below, density / deviation
    )


class _Layer(NamedTuple):
    """Moments of a layer's input and bias, ``[K]``, and of its ReLU's output, None for the last."""

    mean: Array
    variance: Array
    rectified: Rectified | None


def propagate(posterior: Posterior, x: Array) -> tuple[float, float, list[_Layer]]:
    """Return mean and variance of the output for a row ``[D]``, and the moments of each layer."""
    mean, variance = x, np.zeros_like(x)
    layers: list[_Layer] = []
    last = len(posterior.means) - 1
    for layer, (weight, spread) in enumerate(
        zip(posterior.means, posterior.variances, strict=True)
    ):
        z, v = np.append(mean, 1.0), np.append(variance, 0.0)
        mean = weight @ z / math.sqrt(len(z))
        variance = (np.square(weight) @ v + spread @ (z * z + v)) / len(z)
        rectified = rectify(mean, variance) if layer < last else None
        layers.append(_Layer(z, v, rectified))
        if rectified is not None:
            mean, variance = rectified.mean, rectified.variance
    return float(mean[0]), float(variance[0]), layers


def gradients(
    posterior: Posterior, layers: Sequence[_Layer], at_mean: float, at_variance: float
) -> list[tuple[Array, Array]]:
    """Return gradients at means and variances of each layer's weights, from those at the output.

    Args:
        posterior: as it was when the row went through.
        layers: moments of each layer for the row, as ``propagate`` returns them.
        at_mean: gradient at the mean of the output.
        at_variance: gradient at its variance.
    """
    of_weights: list[tuple[Array, Array]] = []
    m, v = np.array([at_mean]), np.array([at_variance])
    for layer in range(len(layers) - 1, -1, -1):
        saw, weight = layers[layer], posterior.means[layer]
        if saw.rectified is not None:
            m, v = saw.rectified.backward(m, v)
        inputs = len(saw.mean)
        m, v = m / math.sqrt(inputs), v / inputs
        of_means = m[:, None] * saw.mean + (2.0 * v)[:, None] * weight * saw.variance
        of_weights.append((of_means, v[:, None] * (saw.mean * saw.mean + saw.variance)))
        if layer:
            spread = v @ posterior.variances[layer]
            back, squares = m @ weight + 2.0 * saw.mean * spread, v @ np.square(weight) + spread
            m, v = back[:-1], squares[:-1]
    return of_weights[::-1]


def absorb(posterior: Posterior, x: Array, y: float) -> float:
    """Update the posterior by one labeled row, and return the log-density that it had before.

    An update that would leave a weight without a positive variance, or with a mean or variance
    that is no number, is not made for that weight; nor one of the noise that would leave its
    variance without a mean.

    Args:
        posterior: the posterior, which is changed.
        x: the row, ``[D]``.
        y: its standardised number.
    """
    mean, variance, layers = propagate(posterior, x)
    shape, rate = posterior.noise
    error = y - mean
    logs = log_normalisers(error, variance, shape, rate)
    total = variance + rate / (shape - 1.0)
    slope = error / total
    slopes = gradients(posterior, layers, slope, 0.5 * (slope * slope - 1.0 / total))
    for m, v, (dm, dv) in zip(posterior.means, posterior.variances, slopes, strict=True):
        new_m, new_v = m + v * dm, v - v * v * (dm * dm - 2.0 * dv)
        good = usable(new_m, new_v)
        np.copyto(m, new_m, where=good)
        np.copyto(v, new_v, where=good)
    take_gamma(posterior.noise, matched_gamma(logs, shape, rate))
    return float(logs[0])


def usable(mean: Array, variance: Array) -> npt.NDArray[np.bool_]:
    """Return true for weights whose mean and variance are those of a normal distribution."""
    return (variance > LEAST) & np.isfinite(mean) & np.isfinite(variance)


def log_normalisers(centre: Any, variance: Any, shape: Any, rate: Any) -> list[Any]:
    """Return log N(centre | 0, variance + s), of any shape, for s = b/(a-1), b/a and b/(a+1).

    These are Z, Z₁ and Z₂: the normaliser where the precision has the shape a, a + 1 and a + 2; its
    Student distribution is replaced by a normal one.

    Args:
        centre: distance from the mean.
        variance: variance of the mean.
        shape: a, of the Gamma distribution of the precision.
        rate: b.
    """
    totals = (variance + rate / (shape + d) for d in (-1.0, 0.0, 1.0))
    return [-0.5 * (np.log(2.0 * math.pi * t) + centre * centre / t) for t in totals]


def matched_gamma(logs: Sequence[Any], shape: Any, rate: Any) -> tuple[Any, Any]:
    """Return shape and rate with the first two moments of the precision's updated distribution.

    They are E[γ] = a/b · Z₁/Z and E[γ²] = a(a+1)/b² · Z₂/Z.

    Args:
        logs: logarithms of Z, Z₁ and Z₂.
        shape: a.
        rate: b.
    """
    first, second = np.exp(logs[2] - logs[1]), np.exp(logs[1] - logs[0])
    return (
        1.0 / (first / second * (shape + 1.0) / shape - 1.0),
        1.0 / (first * (shape + 1.0) / rate - second * shape / rate),
    )


def take_gamma(gamma: Array, updated: tuple[float, float] | Array) -> bool:
    """Take shape and rate into ``[2]`` if they are of a distribution with a mean variance."""
    shape, rate = updated
    good = math.isfinite(shape) and math.isfinite(rate) and shape > 1.0 and rate > 0.0
    if good:
        gamma[:] = updated
    return good


@dataclass
class PriorFactors:
    """The prior's factors as the posterior has them: in natural parameters, one per weight.

    Attributes:
        precision: 1/v of the normal factor of each weight, an array ``[O, K]`` a layer.
        shifted: m/v of it.
        shape: its addition to the shape of the weights' precision.
        rate: its addition to the rate.
    """

    precision: list[Array]
    shifted: list[Array]
    shape: list[Array]
    rate: list[Array]

    @classmethod
    def of(cls, posterior: Posterior) -> PriorFactors:
        """Return the factors of fresh weights: normals of variance b/(a-1), without a mean."""
        like = posterior.variances
        zeros = [[np.zeros_like(v) for v in like] for _ in range(3)]
        return cls([np.full_like(v, (SHAPE - 1.0) / RATE) for v in like], *zeros)

    def refine(self, posterior: Posterior) -> None:
        """Refine the factor of every weight once, all of them from the same posterior.

        A weight is passed over where its cavity is not a distribution. What the weights add to the
        Gamma distribution of their precision is halved until it leaves one: there may be many more
        weights than rows, and none of them knows of the others' changes.
        """
        before = [factor.copy() for factor in (*self.shape, *self.rate)]
        layers = range(len(posterior.means))
        added = np.sum([self._refine_layer(posterior, layer) for layer in layers], axis=0)
        share = next(
            (s for s in SHARES if take_gamma(posterior.prior, posterior.prior + s * added)), 0.0
        )
        for factor, old in zip((*self.shape, *self.rate), before, strict=True):
            if share < 1.0:
                factor[:] = old + share * (factor - old)

    def _refine_layer(self, posterior: Posterior, layer: int) -> Array:
        """Refine one layer's weights; return their additions to the precision's Gamma, ``[2]``."""
        m, v = posterior.means[layer], posterior.variances[layer]
        factors = (self.precision[layer], self.shifted[layer], self.shape[layer], self.rate[layer])
        cavity = 1.0 / (1.0 / v - factors[0])
        centre = cavity * (m / v - factors[1])
        shape, rate = posterior.prior[0] - factors[2], posterior.prior[1] - factors[3]
        total = cavity + rate / (shape - 1.0)
        dm = -centre / total
        spread = cavity - cavity * cavity / total
        mean = centre + cavity * dm
        gamma = matched_gamma(log_normalisers(centre, cavity, shape, rate), shape, rate)
        good = (cavity > 0.0) & (cavity < MOST) & (shape > 1.0) & (rate > 0.0) & (spread > LEAST)
        good &= np.isfinite(mean) & np.isfinite(spread) & np.isfinite(gamma).all(axis=0)
        good &= (gamma[0] > 1.0) & (gamma[1] > 0.0)
        factor = (1.0 / spread - 1.0 / cavity, mean / spread - centre / cavity)
        refined = (*factor, gamma[0] - shape, gamma[1] - rate)
        added = [np.where(good, refined[i] - factors[i], 0.0).sum() for i in (2, 3)]
        for old, new in zip((*factors, m, v), (*refined, mean, spread), strict=True):
            np.copyto(old, new, where=good)
        return np.array(added)
