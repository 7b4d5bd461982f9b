"""Networks: what every task network is, the registered ones, dropout masks, and committees."""

from __future__ import annotations

from rayal.models import (  # noqa: F401 - they fill the table of networks
    image,
    probabilistic,
    sentence,
    tabular,
    text,
)
from rayal.models.base import HookedNet, TaskNet
from rayal.models.build import build_network, find_factory
from rayal.models.committee import Committee
from rayal.models.dropout import dropout_masks, evaluating, stochastic_modules

__all__ = [
    "TaskNet",
    "HookedNet",
    "build_network",
    "find_factory",
    "Committee",
    "dropout_masks",
    "stochastic_modules",
    "evaluating",
]
