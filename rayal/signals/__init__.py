"""Signals: quantities per item that are asked of a trained committee."""

from __future__ import annotations

from rayal.signals.adversarial import AdversarialDistance
from rayal.signals.base import Forward, Signal, compute
from rayal.signals.features import Embedding, Extra, Moments, ViewLogProbs, prediction_of
from rayal.signals.gradients import GradientLength, WordGradientLength
from rayal.signals.predictions import LogProbs, MemberLogProbs, MemberMoments, MemberStats

__all__ = [
    "Signal",
    "Forward",
    "compute",
    "LogProbs",
    "Embedding",
    "Moments",
    "prediction_of",
    "MemberStats",
    "MemberLogProbs",
    "MemberMoments",
    "ViewLogProbs",
    "Extra",
    "GradientLength",
    "WordGradientLength",
    "AdversarialDistance",
]
