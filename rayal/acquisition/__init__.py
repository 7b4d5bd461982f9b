"""Acquisition functions: pure maps ``[N, …] -> [N]``, float64, larger means label first."""

from rayal.acquisition.disagreement import (
    bald,
    bald_of_members,
    mean_standard_deviation,
    variation_ratio_mean,
    variation_ratio_vote,
)
from rayal.acquisition.uncertainty import (
    divergence_from_uniform,
    entropy,
    least_confidence,
    margin,
    probability_entropy,
    softmax_gradient_length,
    vacuity,
)

__all__ = [
    "least_confidence",
    "margin",
    "entropy",
    "probability_entropy",
    "bald",
    "bald_of_members",
    "variation_ratio_mean",
    "variation_ratio_vote",
    "mean_standard_deviation",
    "softmax_gradient_length",
    "vacuity",
    "divergence_from_uniform",
]
