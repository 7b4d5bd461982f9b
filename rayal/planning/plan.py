"""Plan a run before anything runs: its memory, disk and seconds, or a remedy where it does not fit.

The predictions come from sizes alone (``rayal.planning.demands``, ``Objective.footprint``) and from
rates of the machine; only a network's own speed is measured, by ``rayal.planning.seconds``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from rayal.engine.spec import ProjectSpec
from rayal.planning import demands
from rayal.planning.demands import EmbeddingShape, embedding_bytes
from rayal.planning.seconds import RAY_ROUND, Rates, Speed
from rayal.planning.sizes import NetworkShape, PoolShape
from rayal.selection.footprint import Footprint, width
from rayal.selection.objective import Objective

TOLERANCE = 1.05  # a plan is refused for what is more than this too large: it is no better itself
SAMPLE = 200_000  # candidates that a remedy offers, at least 20 for each pick
MOST_SHARDS = 4_096
BASE = 530_000_000  # private bytes of a process that has trained and drawn a report: torch 2.15
# the same of a worker on Ray: that of a process after a first training step, not taken on Ray
WORKER = 430_000_000


@dataclass(frozen=True)
class Place:
    """The machine or cluster on which a run works.

    Attributes:
        executor: local: everything in one process; ray: a driver and workers.
        workers: processes beside the driver that work at a time; 1 on the local executor.
        memory: bytes; None where nobody knows.
        each: whether that is the memory of every worker, or of one machine with all of them.
        base: private bytes of the first process before it does anything.
        threads: tiles that a shard works on at once.
    """

    executor: str = "local"
    workers: int = 1
    memory: int | None = None
    each: bool = False
    base: int = BASE
    threads: int = 1


@dataclass(frozen=True)
class CellPlan:
    """The memory, disk and seconds that one cell needs.

    Attributes:
        rows: items to choose from.
        chosen: rows that the joint choice holds.
        title: the name of the joint choice in messages.
        width: numbers of a row of its columns.
        bf16: whether some of them are held in bf16.
        held: bytes of its columns, mapped into memory over all shards.
        copied: bytes of its columns where they are copied, private, as candidates' are.
        processes: kind of process to its peak of private bytes.
        peak: private bytes at the worst moment, all processes together.
        seconds: stage to seconds of one round, the last one in full.
        total: seconds of all rounds, and of a pre-training, which cells that share one all count.
        disk: bytes of columns and weights at the worst moment.
        left: bytes of them once the run has ended.
        columns: bytes of one round's columns on disk.
    """

    rows: int
    chosen: int
    title: str
    width: int
    bf16: bool
    held: int
    copied: int
    processes: Mapping[str, int]
    peak: int
    seconds: Mapping[str, float]
    total: float
    disk: int
    left: int
    columns: int


def plan_cell(
    spec: ProjectSpec,
    pool: PoolShape,
    net: NetworkShape,
    place: Place,
    *,
    rates: Rates | None = None,
    speed: Speed | None = None,
    embedding: EmbeddingShape | None = None,
) -> CellPlan:
    """Return what one cell needs.

    Args:
        spec: the spec of its project.
        pool: its items.
        net: its network's sizes.
        place: where it runs.
        rates: the speed of one core.
        speed: the speed of its network; without it no seconds are given.
        embedding: the embedding of its frozen backbone, whose head the network then is.
    """
    net = net.under(spec.selection)
    objective = demands.objective_of(spec, pool.rows)
    chosen = round(pool.rows * objective.share)
    footprint = demands.footprint_of(objective, net, chosen, spec.batch)
    size = net.stored(objective.needs)
    copied = size if objective.share < 1.0 else 0
    stages = _stages(spec, pool, net, place)
    stages |= _choice(footprint, pool, place, chosen, copied=copied)
    stages["measure"] = demands.measuring(objective, net, pool.rows, spec.batch)
    stages["embed"] = 0
    if embedding is not None:
        stages["embed"] = embedding_bytes(embedding, spec.scan, pool.part_rows)
    processes = _processes(spec, net, place, stages)
    columns = demands.columns_on_disk(spec, net, pool.rows)
    disk, left = demands.rounds_on_disk(spec, columns, net.weights)
    wide = width(net.shapes(), *objective.needs)
    seconds: dict[str, float] = {}
    if speed is not None:
        known = rates or Rates()
        seconds = _seconds(spec, pool, columns, place, speed=speed, rates=known)
        alone = _select_seconds(objective, footprint, 2.0 * chosen * wide * spec.batch, known)
        seconds["select"] = alone / (place.workers * place.threads)
    once = seconds.get("train", 0.0) + seconds.get("evaluate", 0.0)
    once += 0.0 if speed is None else speed.pretraining
    return CellPlan(
        rows=pool.rows,
        chosen=chosen,
        title=objective.title,
        width=wide,
        bf16=any(name in net.narrow for name in objective.needs),
        held=0 if copied else chosen * size,
        copied=chosen * copied,
        processes=processes,
        peak=_peak(processes, place),
        seconds=seconds,
        total=(spec.rounds or 0) * sum(seconds.values()) + once,
        disk=disk,
        left=left,
        columns=columns,
    )


def _stages(spec: ProjectSpec, pool: PoolShape, net: NetworkShape, place: Place) -> dict[str, int]:
    """Return the private bytes of the stages up to the scan, and of what stays on the driver."""
    labels = spec.initial.count + spec.batch * (spec.rounds or 0)
    return {
        "stay": place.base + demands.driving(pool, spec, net, labels),
        "ingest": 0 if pool.ingested else demands.ingesting(pool),
        "train": max(demands.training(spec, net, labels), demands.pretraining(net, pool.rows)),
        "evaluate": demands.evaluating(pool, spec, net),
        "scan": demands.scanning(spec, net, pool.part_rows),
    }


def _choice(
    made: Footprint, pool: PoolShape, place: Place, rows: int, *, copied: int
) -> dict[str, int]:
    """Return the private bytes of the joint choice, of one shard and on the driver."""
    share, parts = math.ceil(rows / place.workers), math.ceil(pool.parts / place.workers)
    shard = demands.selecting(made, share, parts, threads=place.threads, copied=copied)
    return {
        "sum": demands.summing(made, share, threads=place.threads, copied=copied),
        "select": shard,
        "decide": demands.deciding(made, pool.parts),
    }


def with_parameter(spec: ProjectSpec, name: str, value: Any) -> ProjectSpec | None:
    """Return a cell with another hyperparameter, None where its strategy has none of that name."""
    if name not in {f.name for f in fields(spec.strategy)}:
        return None
    return replace(spec, strategy=replace(spec.strategy, **{name: value}))


def _processes(
    spec: ProjectSpec, net: NetworkShape, place: Place, stages: Mapping[str, int]
) -> dict[str, int]:
    """Return the peak of private bytes of each kind of process."""
    stays = stages["stay"]
    if place.executor == "local":
        single = {n: size for n, size in stages.items() if n not in ("stay", "select", "decide")}
        most = max(*single.values(), stages["select"] + stages["decide"])
        return {"process": stays + most}
    committee = 2 * spec.committee_size * net.weights
    return {
        "driver": stays + max(stages[stage] for stage in _DRIVER),
        "member": WORKER + stages["train"],
        "scanner": WORKER + max(committee + stages["scan"], stages["embed"]),
        "shard": WORKER + max(stages["sum"], stages["select"]),
    }


def _peak(processes: Mapping[str, int], place: Place) -> int:
    """Return the private bytes of all processes together.

    A crew's worker trains members and holds shards by turns; scanners are processes of their own.
    """
    if place.executor == "local":
        return processes["process"]
    worker = max(processes["member"], processes["shard"]) + processes["scanner"]
    cluster = 0 if place.each else CLUSTER
    return processes["driver"] + cluster + place.workers * worker


def _seconds(
    spec: ProjectSpec,
    pool: PoolShape,
    columns: int,
    place: Place,
    *,
    speed: Speed,
    rates: Rates,
) -> dict[str, float]:
    """Return the seconds of a round's stages up to the scan."""
    members = spec.committee_size
    waves = math.ceil(members / place.workers)
    shared = math.ceil(pool.parts / place.workers) / max(1, pool.parts)
    scan = pool.rows * members * speed.scanned(spec) + columns / rates.write
    return {
        "train": waves * spec.learner.steps * speed.step,
        "evaluate": pool.tests * members * speed.row * shared,
        "scan": scan * shared,
        **({"start": RAY_ROUND} if place.executor == "ray" else {}),
    }


def _select_seconds(objective: Objective, made: Footprint, products: float, rates: Rates) -> float:
    """Return the seconds of a joint choice on one core: measured, else by its work."""
    if objective.title in rates.kernels:
        return rates.kernels[objective.title] * products / rates.gemm
    return made.flops / rates.gemm + made.read / rates.read + made.logs / rates.log


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
        spec: the spec of the cell's project.
        pool: its items.
        net: its network's sizes.
        place: where it runs.
        plan: what it needs there.
        embedding: the embedding of its frozen backbone.
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
    mapped = plan.held / place.workers
    holder = "process" if place.executor == "local" else "shard"
    return all(
        size + (mapped if kind == holder else 0) <= room for kind, size in plan.processes.items()
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
    room, columns = size(place.memory or 0), plan.held + plan.copied
    if place.each:
        where = f"on {place.workers} shards of {room}"
    else:
        where = f"beside {size(plan.peak - plan.copied)} of the processes, in {room}"
    remedies = _remedies(spec, place, plan, again)
    return f"{plan.title} on {shape} holds {size(columns)} {where}: use {remedies}"


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


CLUSTER = 1_200_000_000  # a cluster's own processes on this machine: assumed, not measured
_DRIVER = ("ingest", "evaluate", "decide", "measure")  # stages of the driver
