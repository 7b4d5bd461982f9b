"""Uniform random choice: the baseline of every curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rayal.registry import strategies
from rayal.selection.topk import UniformDraw
from rayal.strategies.base import Ctx, Strategy


@strategies.register("random")
@dataclass(frozen=True)
class Random(Strategy):
    """Choose k items uniformly without replacement."""

    taxonomy: ClassVar[str] = "baseline"
    source: ClassVar[str] = "uniform sampling without replacement"

    def objective(self, ctx: Ctx) -> UniformDraw:
        """Return a draw keyed by (query seed, item)."""
        return UniformDraw()
