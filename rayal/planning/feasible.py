"""Refuse a run that cannot work: strategies that lack what they ask for, or too little memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from rayal.engine.checks import check_fits, check_initial
from rayal.engine.spec import ProjectSpec
from rayal.engine.tasks import task_of
from rayal.errors import RayalError, ResourceError
from rayal.planning.plan import BASE, Place, plan_cell, refusal
from rayal.planning.pools import PlannedPool, tasks_beforehand
from rayal.planning.seconds import machine_memory
from rayal.pool.reader import Pool
from rayal.selection.threads import cores
from rayal.settings.run import Cell, Settings
from rayal.tasks import Task

# private bytes that come later: torch's own modules at a first training step (85 MB), torchvision,
# scikit-learn, the report's matplotlib (measured together: 180 MB whatever the run)
LATER = 180_000_000


def check_beforehand(
    settings: Settings, cells: Sequence[Cell], specs: Sequence[ProjectSpec]
) -> None:
    """Check what needs no ingested pool: that strategies get what they ask for.

    A pool that is there already is checked with each project.

    Args:
        settings: the settings of the run.
        cells: its curves.
        specs: the spec of the project of each.

    Raises:
        PoolError: the source does not exist or does not form a pool.
        NeedsError: a strategy asks for what network and learner do not give.
        SettingsError: network, learner or task do not fit the rows.
    """
    tasks = tasks_beforehand(settings, cells[0]) if cells else []
    if not tasks:
        return
    alike = dict(zip((cell.label for cell in cells), specs, strict=True))
    for spec in alike.values():
        check_initial(spec)
        _check_fits_one(tasks, spec)


def _check_fits_one(tasks: Sequence[Task], spec: ProjectSpec) -> None:
    """Raise what the first task refuses, unless one of the others takes the project."""
    try:
        check_fits(tasks[0], spec)
    except RayalError:
        for task in tasks[1:]:
            with suppress(RayalError):
                return check_fits(task, spec)
        raise


def refuse(settings: Settings, cells: Iterable[tuple[ProjectSpec, Pool]]) -> None:
    """Raise ResourceError if a cell would not fit the memory there is; only sizes are asked.

    Where nobody knows the memory, as on a cluster elsewhere, nothing is refused; nor is anything
    with ``plan: false``.

    Args:
        settings: the settings of the run.
        cells: the spec and the pool of each project.
    """
    if not settings.plan:
        return
    place = place_of(settings)
    seen = set()
    for spec, pool in cells:
        key = repr((spec.strategy, spec.learner, pool.name))
        if key in seen or place.memory is None:
            continue
        seen.add(key)
        text = _refused(spec, pool, place)
        if text is not None:
            raise ResourceError(f"{text}; `--no-plan` runs it all the same")


def _refused(spec: ProjectSpec, pool: Pool, place: Place) -> str | None:
    planned = PlannedPool.of(pool, task_of(pool, spec.task))
    net, embedding = planned.sizes(spec)
    plan = plan_cell(spec, planned.shape, net, place, embedding=embedding)
    return refusal(spec, planned.shape, net, place, plan=plan, embedding=embedding)


def place_of(settings: Settings, *, shards: int | None = None, memory: int | None = None) -> Place:
    """Return where a run would work.

    Args:
        settings: the settings of the run; ``auto`` is planned as one process, which needs most
            memory at once.
        shards: workers of a cluster that is only imagined.
        memory: bytes of each of them, or of the one process; by default what this machine has.
    """
    threads = settings.model.threads_per_model
    cpus = settings.ray.cpus or os.cpu_count() or 1
    here = machine_memory()
    base = base_now()
    if shards is None and settings.executor != "ray":
        return Place("local", 1, memory or here, base=base, threads=cores())
    workers = shards or max(1, cpus // threads)
    if memory is not None:
        return Place("ray", workers, memory, each=True, base=base, threads=threads)
    local = settings.ray.address == "local"
    return Place("ray", workers, here if local else None, base=base, threads=threads)


def base_now() -> int:
    """Return the private bytes of a process like this one, its first training step counted."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return BASE
    kinds = [line.split() for line in lines if line.startswith("RssAnon")]
    return int(kinds[0][1]) * 1024 + LATER if kinds else BASE
