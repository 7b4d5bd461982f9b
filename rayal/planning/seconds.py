"""Estimate the seconds of a run here and on Ray, by which ``executor: auto`` decides.

One forward pass and one training step of the network are timed on this machine; the rest is
counting.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from rayal.engine.embed import head_task
from rayal.engine.executor import RayOptions
from rayal.engine.pretrain import pretraining_of
from rayal.engine.spec import ProjectSpec
from rayal.engine.tasks import task_of
from rayal.pool.reader import Pool
from rayal.selection.threads import torch_threads
from rayal.tasks import Task


@dataclass(frozen=True)
class Rates:
    """The speed of one core; the defaults are assumptions until a bench measures them.

    Attributes:
        gemm: operations of float32 matrix products.
        read: bytes read from memory.
        log: logarithms.
        write: bytes written to disk.
        kernels: a joint choice's title to its seconds as a multiple of the time that the products
            of all rows with all picks take at ``gemm``; the others' work is counted.
    """

    gemm: float = 60e9
    read: float = 10e9
    log: float = 0.5e9
    write: float = 0.5e9
    kernels: Mapping[str, float] = field(default_factory=dict)


def machine_memory() -> int | None:
    """Return the bytes that this machine, or the container around this process, can still give."""
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        known = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
        limits.append(int(known["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError):
        limits += _physical()
    limits += _container()
    return min(limits) if limits else None


def _physical() -> list[int]:
    try:
        return [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError):
        return []


def _container() -> list[int]:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return []
    return [] if limit == "max" else [max(0, int(limit) - used)]


RAY_START = 30.0  # seconds until a started cluster trains: measured 20 to 40 on two cores
RAY_ROUND = 1.0  # seconds that a round costs more there
_TRIES = 3


@dataclass(frozen=True)
class Estimate:
    """Seconds of a run, and what follows.

    Attributes:
        local: in this process.
        ray: on Ray with all cores of this machine, starting it included.
        cores: the cores that Ray would use.
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


@dataclass(frozen=True)
class Speed:
    """Measured seconds of a network.

    Attributes:
        row: one row scanned.
        tail: one row through the stages from the first dropout module on, once a pass.
        step: one training step.
        classes: the classes of the task.
        pretraining: a whole pre-training, once a run and seed.
    """

    row: float
    tail: float
    step: float
    classes: int = 2
    pretraining: float = 0.0

    def scanned(self, spec: ProjectSpec) -> float:
        """Return the seconds of one row and one member under a strategy's signals."""
        signals = spec.strategy.signals()
        passes = max((getattr(s, "passes", 0) for s in signals), default=0)
        gradients = [s.backward for s in signals if s.differentiates]
        backward = sum(1 + cost * (self.classes - 1) for cost in gradients)
        return (self.row * (1 + backward) + passes * self.tail) if signals else 0.0


def estimate(cells: Sequence[tuple[ProjectSpec, Pool]], options: RayOptions) -> Estimate:
    """Estimate a run of projects, one after the other.

    Args:
        cells: the spec and the pool of each project.
        options: how Ray would be used.
    """
    cores = options.cpus or os.cpu_count() or 1
    times: dict[str, Speed] = {}
    embedded: set[tuple[str, str]] = set()
    pretrained: set[tuple[str, int]] = set()
    local, ray = 0.0, RAY_START
    for spec, pool in cells:
        key = repr((spec.network, spec.backbone, spec.learner, spec.scan, spec.threads_per_model))
        key += pool.name
        if key not in times:
            times[key] = speed_of(spec, task_of(pool, spec.task))
        speed = times[key]
        members, rounds = spec.committee_size, (spec.rounds or 0) + 1
        train = members * spec.learner.steps * speed.step
        scan = len(pool) * members * speed.scanned(spec) * (rounds - 1) / rounds
        test = pool.rows("test") * members * speed.row
        at_once = max(1, cores // spec.threads_per_model)
        local += rounds * (train + scan + test)
        waves = math.ceil(members / at_once) / members
        parts = max(1, len(pool.parts_of("pool")))
        shared = (scan + test) * math.ceil(parts / at_once) / parts
        ray += rounds * (train * waves + shared + RAY_ROUND)
        if (key, spec.seeds.model) not in pretrained:
            pretrained.add((key, spec.seeds.model))
            local += speed.pretraining
            ray += speed.pretraining
        if spec.backbone is not None and (pool.name, spec.backbone.hash) not in embedded:
            embedded.add((pool.name, spec.backbone.hash))
            seconds = (len(pool) + pool.rows("test")) * embedding_time(
                spec, task_of(pool, spec.task)
            )
            local += seconds
            ray += seconds * math.ceil(len(pool.parts) / at_once) / len(pool.parts)
    return Estimate(local, ray, cores)


def speed_of(spec: ProjectSpec, items: Task) -> Speed:
    """Time a project's network on this machine, untrained, on rows of zeros."""
    task = head_task(spec, items)
    net = spec.network.build(task, torch.device("cpu"), seed=0)
    with torch_threads(spec.threads_per_model):
        x = torch.zeros((spec.scan.batch, *task.input_shape))
        start = net.stochastic_from
        with torch.inference_mode():
            row = _seconds(lambda: net.eval()(x)) / spec.scan.batch
            trunk = x if start is None else net.run(x, 0, start)
            tail = 0.0
            if start is not None:
                tail = _seconds(lambda: net.run(trunk.clone(), start)) / spec.scan.batch
        step = _step_seconds(net, spec.learner.batch, task)
        before = pretraining_of(spec, task)
        first = 0.0 if before is None else before.steps * _step_seconds(net, before.batch, task)
    return Speed(row, tail, step, task.n_outputs, first)


def _step_seconds(net: nn.Module, rows: int, task: Task) -> float:
    batch = torch.zeros((rows, *task.input_shape))
    trained = any(p.requires_grad for p in net.parameters())
    return _seconds(lambda: net.train()(batch).sum().backward() if trained else net.train()(batch))


def embedding_time(spec: ProjectSpec, items: Task) -> float:
    """Return the seconds in which the backbone embeds one row, of zeros."""
    assert spec.backbone is not None
    shape = items.input_shape
    backbone = spec.backbone.network(shape)
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
