"""The observer that a run reports its progress to."""

from __future__ import annotations

from rayal.evaluation.curves import CurvePoint
from rayal.settings.run import Cell


class Observer:
    """Receives the progress of a run; this one is silent, that of the command line draws it."""

    def pool(self, done: int, total: int | None) -> None:
        """Rows of the pool are being read."""

    def note(self, text: str) -> None:
        """Something was decided that people should know."""

    def cell(self, cell: Cell, index: int, total: int) -> None:
        """A curve begins."""

    def stage(self, stage: str, done: int, total: int) -> None:
        """A stage of the present round goes on."""

    def round(self, cell: Cell, point: CurvePoint) -> None:
        """A round has been evaluated."""
