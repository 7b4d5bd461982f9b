"""What a run would need, before anything runs: memory, disk and seconds, or a remedy.

The predictions come from sizes alone (``rayal.engine.demands``, ``Objective.footprint``) and from
rates of the machine; only a network's own speed is measured, by ``rayal.engine.estimate``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from rayal.engine import demands
from rayal.engine.demands import NetworkShape, PoolShape
from rayal.engine.estimate import RAY_ROUND, Speed
from rayal.engine.spec import ProjectSpec
from rayal.errors import SettingsError
from rayal.selection.footprint import width

BASE = 530_000_000  # private bytes of a process that has trained and drawn a report: torch 2.15
# the same of a worker on Ray: that of a process after a first training step, not taken on Ray
WORKER = 430_000_000
CLUSTER = 1_200_000_000  # a cluster's own processes on this machine: assumed, not measured
EMBED = 0  # place of the frozen backbone's stage: bytes of its cache, until a run has one


@dataclass(frozen=True)
class Rates:
    """What one core does in a second; the defaults are assumed, until a bench measures them.

    Attributes:
        gemm: operations of float32 matrix products.
        read: bytes read from memory.
        log: logarithms.
        write: bytes written to disk.
        ingest: rows ingested.
    """

    gemm: float = 60e9
    read: float = 10e9
    log: float = 0.5e9
    write: float = 0.5e9
    ingest: float = 50e3

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read rates from a JSON file with any of them under the key ``rates``.

        Raises:
            SettingsError: the file is no such JSON, or a rate is not a positive number.
        """
        try:
            given = json.loads(Path(path).read_text(encoding="utf-8"))["rates"]
            known = {f.name: float(given[f.name]) for f in fields(cls) if f.name in given}
        except (ValueError, KeyError, TypeError) as error:
            raise SettingsError(
                f"{path} holds no rates ({error!r}); write it with `rayal bench --json FILE`"
            ) from None
        bad = {name: rate for name, rate in known.items() if not 0 < rate < math.inf}
        if bad:
            raise SettingsError(f"{path}: rates {bad} must be positive numbers; measure them again")
        return cls(**known)


@dataclass(frozen=True)
class Place:
    """Where a run works.

    Attributes:
        executor: local: everything in one process; ray: a driver and workers.
        workers: processes beside the driver that work at a time; 1 on the local executor.
        memory: bytes; None where nobody knows.
        each: whether that is the memory of every worker, or of one machine with all of them.
        base: private bytes of the first process before it does anything.
    """

    executor: str = "local"
    workers: int = 1
    memory: int | None = None
    each: bool = False
    base: int = BASE


@dataclass(frozen=True)
class CellPlan:
    """What one cell needs.

    Attributes:
        rows: items to choose from.
        chosen: rows that the joint choice holds.
        title: what messages call the joint choice.
        width: numbers of a row of its columns.
        held: bytes of its columns, mapped into memory over all shards.
        processes: kind of process to its peak of private bytes.
        peak: private bytes at the worst moment, all processes together.
        seconds: stage to seconds of one round, the last one in full.
        total: seconds of all rounds.
        disk: bytes of columns and weights at the worst moment.
        left: bytes of them once the run has ended.
        columns: bytes of one round's columns on disk.
    """

    rows: int
    chosen: int
    title: str
    width: int
    held: int
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
) -> CellPlan:
    """Return what one cell needs.

    Args:
        spec: what its rounds do.
        pool: its items.
        net: its network's sizes.
        place: where it runs.
        rates: of a core.
        speed: of its network; without it no seconds are given.
    """
    chosen = chosen_rows(spec, pool.rows)
    made, needs, title = demands.objective_footprint(spec, net, chosen)
    labels = spec.initial.count + spec.batch * (spec.rounds or 0)
    part = pool.part_rows if net.signals else 0
    stages = {
        "ingest": 0 if pool.ingested else demands.ingesting(pool),
        "train": demands.training(spec, net, labels),
        "evaluate": demands.evaluating(pool, spec, net),
        "scan": demands.scanning(spec, net, part),
        "select": demands.selecting(made, math.ceil(chosen / place.workers)),
    }
    stays = demands.driving(pool, spec, net, labels, made)
    processes = _processes(spec, net, stages, stays, place)
    columns = demands.columns_on_disk(spec, net, pool.rows)
    disk, left = demands.rounds_on_disk(spec, columns, net.weights)
    seconds: dict[str, float] = {}
    if speed is not None:
        seconds = _seconds(spec, pool, columns, place, speed, rates or Rates())
        seconds["select"] = _select_seconds(spec, net, chosen, place, rates or Rates())
    rounds = spec.rounds or 0
    once = seconds.get("train", 0.0) + seconds.get("evaluate", 0.0)
    total = rounds * sum(seconds.values()) + once
    return CellPlan(
        rows=pool.rows,
        chosen=chosen,
        title=title,
        width=width(net.shapes(), *needs),
        held=chosen * net.size(needs) // (2 if halved(spec) else 1),
        processes=processes,
        peak=_peak(processes, place),
        seconds=seconds,
        total=total,
        disk=disk,
        left=left,
        columns=columns,
    )


def chosen_rows(spec: ProjectSpec, rows: int) -> int:
    """Return the rows that the joint choice holds: a sample where a strategy has ``candidates``."""
    wanted = getattr(spec.strategy, "candidates", None)
    return rows if wanted is None else min(rows, int(wanted))


def halved(spec: ProjectSpec) -> bool:
    """Return whether a strategy keeps its columns in bf16, by a ``precision`` of its own."""
    return getattr(spec.strategy, "precision", "fp32") == "bf16"


def with_parameter(spec: ProjectSpec, name: str, value: Any) -> ProjectSpec | None:
    """Return a cell with another hyperparameter, None where its strategy has none of that name."""
    if name not in {f.name for f in fields(spec.strategy)}:
        return None
    return replace(spec, strategy=replace(spec.strategy, **{name: value}))


def _processes(
    spec: ProjectSpec, net: NetworkShape, stages: Mapping[str, int], stays: int, place: Place
) -> dict[str, int]:
    """Return the peak of private bytes of each kind of process."""
    if place.executor == "local":
        return {"process": place.base + stays + max(stages.values())}
    committee = 2 * spec.committee_size * net.weights
    return {
        "driver": place.base + stays + max(stages["ingest"], stages["evaluate"]),
        "member": WORKER + stages["train"],
        "scanner": WORKER + committee + stages["scan"],
        "shard": WORKER + stages["select"],
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


def _select_seconds(
    spec: ProjectSpec, net: NetworkShape, rows: int, place: Place, rates: Rates
) -> float:
    made, _, _ = demands.objective_footprint(spec, net, rows)
    alone = made.flops / rates.gemm + made.read / rates.read + made.logs / rates.log
    return alone / (place.workers * spec.threads_per_model)


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
