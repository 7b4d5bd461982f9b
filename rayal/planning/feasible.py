"""Whether a run fits the memory of where it works, checked before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rayal.engine.checks import untrained
from rayal.engine.embed import head_task
from rayal.engine.spec import ProjectSpec
from rayal.engine.tasks import task_of
from rayal.errors import ResourceError
from rayal.ledger import Ledger
from rayal.planning.demands import embedding_shape
from rayal.planning.plan import BASE, Place, plan_cell, refusal
from rayal.planning.seconds import machine_memory
from rayal.planning.sizes import ITEM, PoolShape, network_shape
from rayal.pool.reader import Pool
from rayal.selection.threads import cores
from rayal.settings.run import Settings

# private bytes that come later: torch's own modules at a first training step (85 MB), torchvision,
# scikit-learn, the report's matplotlib (measured together: 180 MB whatever the run)
LATER = 180_000_000


def refuse(settings: Settings, cells: Iterable[tuple[ProjectSpec, Pool]]) -> None:
    """Raise ResourceError if a cell would not fit the memory there is; only sizes are asked.

    Where nobody knows the memory, as on a cluster elsewhere, nothing is refused; nor is anything
    with ``plan: false``.

    Args:
        settings: of the run.
        cells: what each project does, and its pool.
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
    items = task_of(pool, spec.task)
    task = head_task(spec, items)
    net = network_shape(spec, task, untrained(spec, task))
    shape = shape_of(pool, items.classes)
    embedding = embedding_shape(spec, items, shape, lambda hash: embedded_rows(pool, hash))
    plan = plan_cell(spec, shape, net, place, embedding=embedding)
    return refusal(spec, shape, net, place, plan=plan, embedding=embedding)


def embedded_rows(pool: Pool, hash: str) -> int:
    """Return the items of a pool, test included, that have embeddings of this hash."""
    with Ledger(pool.root, create=False) as ledger:
        done = ledger.columns(hash)
    return sum(part.rows for part in pool.parts if part.part in done)


def place_of(settings: Settings, *, shards: int | None = None, memory: int | None = None) -> Place:
    """Return where a run would work.

    Args:
        settings: of the run; ``auto`` is planned as one process, which needs most memory at once.
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


def shape_of(pool: Pool, classes: tuple[str, ...]) -> PoolShape:
    """Return the sizes of a pool that is there; it has no classes where a number is predicted."""
    files = sum(part.bytes for part in pool.parts)
    rows = sum(part.rows for part in pool.parts)
    return PoolShape(
        rows=len(pool),
        tests=pool.rows("test"),
        item=max(1.0, files / max(1, rows) - ITEM),
        payload=pool.payload,
        classes=classes,
        disk=pool.bytes_on_disk,
        ingested=True,
    )
