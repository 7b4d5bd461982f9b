"""How long a run would take here and on Ray: what ``executor: auto`` decides by.

One forward pass and one training step of the network are timed on this machine; the rest is
counting.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rayal.engine.embed import head_task
from rayal.engine.executor import RayOptions
from rayal.engine.pool import Pool
from rayal.engine.spec import ProjectSpec
from rayal.engine.trainset import task_of
from rayal.selection.threads import torch_threads

RAY_START = 30.0  # seconds until a started cluster trains: measured 20 to 40 on two cores
RAY_ROUND = 1.0  # seconds that a round costs more there
_TRIES = 3


@dataclass(frozen=True)
class Estimate:
    """Seconds of a run, and what follows.

    Attributes:
        local: in this process.
        ray: on Ray with all cores of this machine, starting it included.
        cores: what Ray would use.
    """

    local: float
    ray: float
    cores: int

    @property
    def executor(self) -> str:
        """The faster one; ``local`` on a tie."""
        return "ray" if self.ray < self.local else "local"

    def __str__(self) -> str:
        return (
            f"executor {self.executor}: the run is estimated at {self.local:.0f} s in one process "
            f"and {self.ray:.0f} s on Ray with {self.cores} cores"
        )


def estimate(cells: Sequence[tuple[ProjectSpec, Pool]], options: RayOptions) -> Estimate:
    """Estimate a run of projects, one after the other.

    Args:
        cells: what each project does, and its pool.
        options: how Ray would be used.
    """
    cores = options.cpus or os.cpu_count() or 1
    times: dict[str, tuple[float, float]] = {}
    embedded: set[tuple[str, str]] = set()
    local, ray = 0.0, RAY_START
    for spec, pool in cells:
        key = repr((spec.network, spec.backbone, spec.learner, spec.scan, spec.threads_per_model))
        key += pool.name
        if key not in times:
            times[key] = _measured(spec, pool)
        row, step = times[key]
        members, rounds = spec.committee_size, (spec.rounds or 0) + 1
        passes = max((getattr(s, "passes", 1) for s in spec.strategy.signals()), default=0)
        train = members * spec.learner.steps * step
        scan = len(pool) * members * passes * row * (rounds - 1) / rounds
        test = pool.rows("test") * members * row
        at_once = max(1, cores // spec.threads_per_model)
        local += rounds * (train + scan + test)
        waves = math.ceil(members / at_once) / members
        parts = max(1, len(pool.parts_of("pool")))
        shared = (scan + test) * math.ceil(parts / at_once) / parts
        ray += rounds * (train * waves + shared + RAY_ROUND)
        if spec.backbone is not None and (pool.name, spec.backbone.hash) not in embedded:
            embedded.add((pool.name, spec.backbone.hash))
            seconds = (len(pool) + pool.rows("test")) * _embedding_time(spec, pool)
            local += seconds
            ray += seconds * math.ceil(len(pool.parts) / at_once) / len(pool.parts)
    return Estimate(local, ray, cores)


def _measured(spec: ProjectSpec, pool: Pool) -> tuple[float, float]:
    """Return the seconds of one scanned row and of one training step."""
    task = head_task(spec, task_of(pool, spec.task))
    net = spec.network.build(task, torch.device("cpu"), seed=0)
    with torch_threads(spec.threads_per_model):
        x = torch.zeros((spec.scan.batch, *task.input_shape))
        with torch.inference_mode():
            row = _seconds(lambda: net.eval()(x)) / spec.scan.batch
        batch = torch.zeros((spec.learner.batch, *task.input_shape))
        step = _seconds(lambda: net.train()(batch).sum().backward())
    return row, step


def _embedding_time(spec: ProjectSpec, pool: Pool) -> float:
    """Return the seconds in which the backbone embeds one row."""
    assert spec.backbone is not None
    shape = task_of(pool, spec.task).input_shape
    backbone = spec.backbone.build(shape)
    x = torch.zeros((spec.scan.batch, *shape))
    with torch_threads(spec.threads_per_model), torch.inference_mode():
        return _seconds(lambda: backbone(x)) / spec.scan.batch


def _seconds(work: Callable[[], object]) -> float:
    """Return the shortest of a few times; the first one warms up."""
    times = []
    for _ in range(_TRIES + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times[1:])
