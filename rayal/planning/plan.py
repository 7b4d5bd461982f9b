"""What a run would need, before anything runs: memory, disk and seconds, or a remedy.

The predictions come from sizes alone (``rayal.planning.demands``, ``Objective.footprint``) and from
rates of the machine; only a network's own speed is measured, by ``rayal.planning.seconds``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from rayal.engine.spec import ProjectSpec
from rayal.planning import demands
from rayal.planning.embed_demands import EmbeddingShape, embedding_bytes
from rayal.planning.machine import Rates
from rayal.planning.seconds import RAY_ROUND, Speed
from rayal.planning.sizes import NetworkShape, PoolShape
from rayal.selection.footprint import Footprint, width
from rayal.selection.objective import Objective

BASE = 530_000_000  # private bytes of a process that has trained and drawn a report: torch 2.15
# the same of a worker on Ray: that of a process after a first training step, not taken on Ray
WORKER = 430_000_000
CLUSTER = 1_200_000_000  # a cluster's own processes on this machine: assumed, not measured
_DRIVER = ("ingest", "evaluate", "decide", "measure")  # stages of the driver


@dataclass(frozen=True)
class Place:
    """Where a run works.

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
    """What one cell needs.

    Attributes:
        rows: items to choose from.
        chosen: rows that the joint choice holds.
        title: what messages call the joint choice.
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
        spec: what its rounds do.
        pool: its items.
        net: its network's sizes.
        place: where it runs.
        rates: of a core.
        speed: of its network; without it no seconds are given.
        embedding: of its frozen backbone, whose head the network then is.
    """
    net = net.under(spec.selection)
    objective = demands.objective_of(spec, pool.rows)
    chosen = round(pool.rows * objective.share)
    made = demands.footprint_of(objective, net, chosen, spec.batch)
    size = net.stored(objective.needs)
    copied = size if objective.share < 1.0 else 0
    stages = _stages(spec, pool, net, place) | _choice(made, pool, place, chosen, copied=copied)
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
        alone = _select_seconds(objective, made, 2.0 * chosen * wide * spec.batch, known)
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
    held, parts = math.ceil(rows / place.workers), math.ceil(pool.parts / place.workers)
    shard = demands.selecting(made, held, parts, threads=place.threads, copied=copied)
    return {
        "sum": demands.summing(made, held, threads=place.threads, copied=copied),
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
