"""Seconds from the command to the first training step on Ray, and what a round costs more there.

python tests/acceptance/first_step.py FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

STARTED = time.perf_counter()

from rayal.evaluation.curves import CurvePoint  # noqa: E402
from rayal.evaluation.observer import Observer  # noqa: E402
from rayal.evaluation.protocol import run  # noqa: E402
from rayal.settings.run import Cell, load  # noqa: E402 - the clock starts before anything is loaded


class Clock(Observer):
    """Notes the first training step, and the wall seconds between evaluated rounds."""

    def __init__(self) -> None:
        self.first = 0.0
        self.rounds: list[float] = []
        self.last = 0.0

    def stage(self, stage: str, done: int, total: int) -> None:
        if stage == "train" and not self.first:
            self.first = time.perf_counter() - STARTED

    def cell(self, cell: Cell, index: int, total: int) -> None:
        self.last = 0.0

    def round(self, cell: Cell, point: CurvePoint) -> None:
        now = time.perf_counter()
        if self.last:
            self.rounds.append(now - self.last)
        self.last = now


def timed(folder: Path, executor: str) -> Clock:
    clock = Clock()
    settings = load(
        {
            "pool": {"source": "digits"},
            "model": {"network": "mlp", "params": {"widths": [64]}},
            "learner": {"name": "supervised", "steps": 100, "batch": 16},
            "strategies": ["badge"],
            "initial": {"count": 30},
            "rounds": 5,
            "batch": 10,
            "seeds": [0],
            "executor": executor,
            "storage": str(folder / executor),
        }
    )
    run(settings, observer=clock)
    return clock


def main() -> None:
    folder = Path(sys.argv[1])
    remote = timed(folder, "ray")
    local = timed(folder, "local")
    more = [a - b for a, b in zip(remote.rounds, local.rounds, strict=True)]
    figures = {
        "first_step_s": remote.first,
        "local_round_s": sum(local.rounds) / len(local.rounds),
        "ray_round_s": sum(remote.rounds) / len(remote.rounds),
        "most_overhead_of_a_round_s": max(more),
    }
    sys.stdout.write(json.dumps({k: round(v, 2) for k, v in figures.items()}) + "\n")


if __name__ == "__main__":
    main()
