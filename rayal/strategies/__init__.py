"""Strategies, one file per paper; importing this package fills the registry."""

from rayal.strategies import (
    adaptive,
    badge,
    bait,
    batchbald,
    bayesian,
    coreset,
    deal,
    dfal,
    egl,
    ensembles,
    learning_loss,
    multicriteria,
    multiview,
    pbp,
    random,
    uncertainty,
)
from rayal.strategies.base import Ctx, Joint, Strategy
from rayal.strategies.stateless import select

__all__ = [
    "Strategy",
    "Joint",
    "Ctx",
    "select",
    "adaptive",
    "badge",
    "bait",
    "batchbald",
    "bayesian",
    "coreset",
    "deal",
    "dfal",
    "egl",
    "ensembles",
    "learning_loss",
    "multicriteria",
    "multiview",
    "pbp",
    "random",
    "uncertainty",
]
