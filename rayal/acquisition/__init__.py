"""Acquisition functions: pure maps ``[N, …] -> [N]``, float64, larger means label first."""

from rayal.acquisition.disagreement import (
    bald,
    bald_of_members,
    mean_standard_deviation,
    variation_ratio_mean,
    variation_ratio_vote,
)
from rayal.acquisition.evidential import divergence_from_uniform, vacuity
from rayal.acquisition.gradient import softmax_gradient_length
from rayal.acquisition.uncertainty import entropy, least_confidence, margin, probability_entropy

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
