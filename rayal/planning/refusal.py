"""When a plan does not fit its memory: what is too large, and what would do instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rayal.engine.spec import ProjectSpec
from rayal.planning.embed_demands import EmbeddingShape
from rayal.planning.plan import CellPlan, Place, plan_cell, with_parameter
from rayal.planning.sizes import NetworkShape, PoolShape

TOLERANCE = 1.05  # a plan is refused for what is more than this too large: it is no better itself
SAMPLE = 200_000  # candidates that a remedy offers, at least 20 for each pick
MOST_SHARDS = 4_096

Plan = Callable[[ProjectSpec, Place], CellPlan]


def refusal(
    spec: ProjectSpec,
    pool: PoolShape,
    net: NetworkShape,
    place: Place,
    *,
    plan: CellPlan,
    embedding: EmbeddingShape | None = None,
) -> str | None:
    """Return why a cell would not fit, with remedies; None where it fits, or nobody knows.

    Columns are mapped, not private; a joint choice reads all of them at every step, so that they
    must fit beside the private bytes, or each step reads the disk.

    Args:
        spec: what the cell's rounds do.
        pool: its items.
        net: its network's sizes.
        place: where it runs.
        plan: what it needs there.
        embedding: of its frozen backbone.
    """
    if place.memory is None or _fits(plan, place):
        return None

    def again(other: ProjectSpec, there: Place) -> CellPlan:
        return plan_cell(other, pool, net, there, embedding=embedding)

    if _processes_fit(plan, place):
        return _columns_text(spec, place, plan, again)
    return _process_text(place, plan)


def _fits(plan: CellPlan, place: Place) -> bool:
    assert place.memory is not None
    room = TOLERANCE * place.memory
    if not place.each:
        return plan.peak + plan.held <= room
    held = plan.held / place.workers
    holder = "process" if place.executor == "local" else "shard"
    return all(
        size + (held if kind == holder else 0) <= room for kind, size in plan.processes.items()
    )


def _processes_fit(plan: CellPlan, place: Place) -> bool:
    """Return whether it fits without the columns, and on shards without what is kept beside."""
    assert place.memory is not None
    room = TOLERANCE * place.memory
    if not place.each or place.executor == "local":
        return plan.peak - plan.copied <= room
    return all(size <= room for kind, size in plan.processes.items() if kind != "shard")


def _columns_text(spec: ProjectSpec, place: Place, plan: CellPlan, again: Plan) -> str:
    kind = "bf16" if plan.bf16 else "float32"
    shape = f"{plan.chosen:,} x {plan.width:,} {kind}"
    room, held = size(place.memory or 0), plan.held + plan.copied
    if place.each:
        where = f"on {place.workers} shards of {room}"
    else:
        where = f"beside {size(plan.peak - plan.copied)} of the processes, in {room}"
    remedies = _remedies(spec, place, plan, again)
    return f"{plan.title} on {shape} holds {size(held)} {where}: use {remedies}"


def _remedies(spec: ProjectSpec, place: Place, plan: CellPlan, again: Plan) -> str:
    """Return what would fit, as far as the strategy has it."""
    offers = []
    if place.each:
        wider = _shards(spec, place, again)
        offers += [] if wider is None else [f"{wider} shards"]
    else:
        offers.append(f"a machine with {size(plan.peak + plan.held)}, or executor ray on several")
    narrow = replace(spec, selection=replace(spec.selection, precision="bf16"))
    if not plan.bf16 and _fits(again(narrow, place), place):
        offers.append("selection.precision=bf16")
    sample = max(SAMPLE, 20 * spec.batch)
    fewer = with_parameter(spec, "candidates", sample) if sample < plan.chosen else None
    if fewer is not None and _fits(again(fewer, place), place):
        offers.append(f"candidates={sample}")
    if not offers:
        offers.append("a pool with fewer items, or more memory")
    return listed(offers)


def _shards(spec: ProjectSpec, place: Place, again: Plan) -> int | None:
    """Return the least number of shards, of the same memory each, that would do."""
    workers = place.workers
    while workers < MOST_SHARDS:
        workers += 1
        there = replace(place, workers=workers)
        if _fits(again(spec, there), there):
            return workers
    return None


def _process_text(place: Place, plan: CellPlan) -> str:
    kind, most = max(plan.processes.items(), key=lambda item: item[1])
    room = size(place.memory or 0)
    what = {
        "process": "lower learner.batch, scan.batch or initial.count, or ingest the source first",
        "driver": "ingest the source first (`rayal ingest`), or give fewer test items",
        "member": "lower learner.batch, or take a smaller network",
        "scanner": "lower scan.batch, or take a smaller network",
        "shard": "use more shards",
    }[kind]
    if place.each or place.executor == "local":
        return f"one {kind} holds {size(most)} in {room}: {what}, or give it more memory"
    return (
        f"{place.workers} workers and the driver hold {size(plan.peak)} in {room}, the {kind} "
        f"{size(most)} of it: lower ray.cpus, {what}"
    )


def size(count: float) -> str:
    """Return bytes as text: 123 GB, 4.2 MB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            value = count / scale
            return (
                f"{value:.0f} {unit}"
                if value >= 10
                else f"{value:.1f}".rstrip("0").rstrip(".") + f" {unit}"
            )
    return f"{count:.0f} B"


def listed(offers: list[str]) -> str:
    """Return offers as text: a, b, or c."""
    if len(offers) < 3:
        return " or ".join(offers)
    return f"{', '.join(offers[:-1])}, or {offers[-1]}"
