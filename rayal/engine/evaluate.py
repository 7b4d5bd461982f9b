"""Evaluation: the predictions of a committee on the test items, part by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rayal.engine.forward import run_signals
from rayal.engine.scan_options import ScanOptions
from rayal.models.committee import Committee
from rayal.pool.reader import Part, Pool
from rayal.signals import prediction_of


@dataclass(frozen=True)
class Evaluation:
    """What a worker needs to evaluate one part of the test items.

    Args:
        pool: the pool's snapshot.
        committee: the trained members.
        options: how the network is run.
    """

    pool: Pool
    committee: Committee
    options: ScanOptions

    def part(self, part: Part, report: Callable[[int], None] | None = None) -> tuple[str, Tensor]:
        """Return the part's name, and log-probabilities ``[N, C]`` or moments ``[N, 3]``."""
        table = self.pool.read(part)
        keys = table.column("key").to_numpy()
        self.committee.move(self.options.device)
        signal = prediction_of(self.committee.task.target)
        made = run_signals(
            self.committee, (signal,), table, keys=keys, options=self.options, report=report
        )
        return part.part, made[signal.names()[0]]
