"""``rayal plan``: what each cell of a run would need, as JSON and as text."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from rayal.engine.spec import ProjectSpec, spec_from
from rayal.errors import SettingsError
from rayal.planning import demands
from rayal.planning.demands import EmbeddingShape
from rayal.planning.feasible import place_of
from rayal.planning.plan import CellPlan, Place, plan_cell, refusal, size
from rayal.planning.pools import PlannedPool, WhatIf, planned_pool
from rayal.planning.seconds import RAY_START, Rates, Speed, embedding_time, speed_of
from rayal.planning.sizes import PoolShape
from rayal.settings.run import Cell, Settings
from rayal.tasks import Task

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class RunPlan:
    """The needs of a run.

    Attributes:
        record: pool, memory (bytes), disk (bytes), seconds and cells, as JSON has it.
        refusals: why it does not fit, with remedies.
    """

    record: dict[str, Any]
    refusals: tuple[str, ...]


def plan_run(settings: Settings, what_if: WhatIf, rates: Rates) -> RunPlan:
    """Return what a run of these settings would need; nothing is ingested or written.

    Args:
        settings: the settings of the run.
        what_if: assumptions instead of what there is.
        rates: the speed of one core.

    Raises:
        PoolError: the pool is not there, and nothing says what it would be.
    """
    place = place_of(settings, shards=what_if.shards, memory=what_if.memory)
    cells: list[dict[str, Any]] = []
    plans: list[tuple[CellPlan, int]] = []
    refusals: list[str] = []
    ordered = sorted(settings.cells(), key=lambda cell: cell.label)
    for _, group in groupby(ordered, key=lambda cell: cell.label):
        alike = list(group)
        spec = spec_from(settings, alike[0])
        pool = planned_pool(settings, alike[0], what_if)
        net, embedding = pool.sizes(spec, width=what_if.width)
        speed = _speed(spec, pool.task)
        plan = plan_cell(
            spec, pool.shape, net, place, rates=rates, speed=speed, embedding=embedding
        )
        text = refusal(spec, pool.shape, net, place, plan=plan, embedding=embedding)
        refusals += [] if text is None else [text]
        plans.append((plan, len(alike)))
        cells.append(_row(alike, plan))
    embed = _embedding(spec, pool, embedding, place)  # that of every cell
    record = _record(settings, pool.shape, place, plans, embed=embed)
    return RunPlan({**record, "cells": cells, "refusals": refusals}, tuple(refusals))


def _embedding(
    spec: ProjectSpec, pool: PlannedPool, embedding: EmbeddingShape | None, place: Place
) -> tuple[int, float]:
    """Return the bytes of a pool's embeddings, and the seconds of those that are missing."""
    if embedding is None:
        return 0, 0.0
    parts = pool.shape.parts
    shared = math.ceil(parts / place.workers) / parts
    row = embedding_time(spec, pool.task) if embedding.missing else 0.0
    return embedding.disk, embedding.missing * row * shared


_SPEEDS: dict[str, Speed] = {}


def _speed(spec: ProjectSpec, task: Task) -> Speed:
    key = repr((spec.network, spec.backbone, spec.learner, spec.scan, spec.threads_per_model, task))
    if key not in _SPEEDS:
        _SPEEDS[key] = speed_of(spec, task)
    return _SPEEDS[key]


def _row(cells: Sequence[Cell], plan: CellPlan) -> dict[str, Any]:
    return {
        "strategy": cells[0].label,
        "seeds": len(cells),
        "peak": plan.peak,
        "processes": dict(plan.processes),
        "mapped": plan.held,
        "columns": plan.columns,
        "bf16": plan.bf16,
        "seconds": {stage: round(s, 3) for stage, s in plan.seconds.items()},
        "total": round(plan.total * len(cells), 1),
    }


def _record(
    settings: Settings,
    pool: PoolShape,
    place: Place,
    plans: Sequence[tuple[CellPlan, int]],
    *,
    embed: tuple[int, float],
) -> dict[str, Any]:
    pools = len({s.pool for s in settings.seeds}) if settings.pool.subset is not None else 1
    files, embedded = pools * pool.bytes_on_disk, pools * embed[0]
    cells = sum(n for _, n in plans)
    picks = settings.initial.count + settings.batch * settings.rounds
    ledger = demands.LEDGER_FILE + cells * picks * demands.ENTRY + demands.OUTPUTS
    left = sum(plan.left * n for plan, n in plans)
    most = max(plan.disk - plan.left for plan, _ in plans)  # cell after cell
    seconds = pools * embed[1] + sum(plan.total * n for plan, n in plans)
    start = RAY_START if place.executor == "ray" and settings.ray.address == "local" else 0.0
    return {
        "pool": {
            "items": pool.rows,
            "test items": pool.tests,
            "parts": pool.parts,
            "classes": len(pool.classes),
            "ingested": pool.ingested,
        },
        "place": asdict(place),
        "memory": {
            "peak": max(plan.peak for plan, _ in plans),
            "mapped": max(plan.held for plan, _ in plans),
        },
        "disk": {
            "pool": files,
            "columns and models": left,
            "embeddings": embedded,
            "ledger and outputs": ledger,
            "total": files + embedded + left + ledger,
            "most": files + embedded + left + ledger + most,
        },
        "seconds": {"embed": round(pools * embed[1], 1), "total": round(seconds + start, 1)},
    }


def parse_size(text: str) -> int:
    """Return bytes of a text such as 16GB (10⁹), 16GiB (2³⁰) or 500M.

    Raises:
        SettingsError: it is no size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", text.lower())
    units = {} if match is None else (_BINARY if match[3] else _UNITS)
    if match is None or match[2] not in units or float(match[1]) <= 0:
        raise SettingsError(f"{text!r} is no size of memory; give one such as 16GB or 512MiB")
    return int(float(match[1]) * units[match[2]])


def as_lines(record: dict[str, Any]) -> dict[str, Any]:
    """Return a plan's record as tables show it: sizes and times as text, one line a strategy."""
    memory, disk, place = record["memory"], record["disk"], record["place"]
    room = "unknown" if place["memory"] is None else size(place["memory"])
    kind = "one process" if place["executor"] == "local" else f"{place['workers']} workers"
    narrow = "; embeddings in bf16" if any(row["bf16"] for row in record["cells"]) else ""
    return {
        "pool": ", ".join(f"{v:,} {k}" for k, v in record["pool"].items() if k != "ingested"),
        "where": f"{kind}, {room} of memory" + (" each" if place["each"] else ""),
        "peak memory": f"{size(memory['peak'])} private, {size(memory['mapped'])} of columns "
        f"mapped besides (page cache){narrow}",
        "disk": f"{size(disk['total'])} in the end, {size(disk['most'])} at most; "
        + ", ".join(f"{k} {size(v)}" for k, v in disk.items() if k not in ("total", "most")),
        "time": _time(record["seconds"]),
        "cells": [_line(row) for row in record["cells"]],
    }


def _time(seconds: dict[str, float]) -> str:
    embed = f", embedding {seconds['embed']:,.0f} s of it" if seconds["embed"] else ""
    return f"{seconds['total']:,.0f} s{embed}"


def _line(row: dict[str, Any]) -> dict[str, str]:
    seconds = {f"{stage} s": f"{s:,.1f}" for stage, s in row["seconds"].items()}
    kind, most = max(row["processes"].items(), key=lambda item: item[1])
    return {
        "strategy": row["strategy"],
        "seeds": str(row["seeds"]),
        "memory": size(most) if kind == "process" else f"{kind} {size(most)}",
        "columns": size(row["columns"]),
        **seconds,
        "total s": f"{row['total']:,.0f}",
    }
