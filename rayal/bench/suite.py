"""The whole bench: which rows, in which order, and the document that comes out."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rayal.bench import informativeness, kernels, peers, pools, scoring
from rayal.bench.bars import BARS, FULL, Bar, Sizes
from rayal.bench.results import rates_of
from rayal.bench.rows import Context, Measurement, Row, judge
from rayal.bench.timing import Floors, measure_floors
from rayal.errors import SettingsError, nearest

_PACKAGES = ("rayal", "torch", "torchvision", "numpy", "scipy", "ray")
_GPU = "gpu-"

MEASUREMENTS: tuple[tuple[Measurement, tuple[str, ...]], ...] = (
    (kernels.kcenter, ("kcenter-60k-*",)),
    (kernels.badge, ("badge-60k-*",)),
    (kernels.large, ("*-1m-*",)),
    (informativeness.batchbald, ("batchbald-5k",)),
    (informativeness.bait, ("bait-5k",)),
    (informativeness.scores, ("entropy-60k", "margin-60k", "bald-60k")),
    (
        kernels.approximations,
        ("kcenter-candidates", "kcenter-two-round", "kcenter-bf16", "kmeans-parallel"),
    ),
    (scoring.scan, ("scan-*",)),
    (scoring.dropout, ("mc-*",)),
    (pools.pools, ("pool-*",)),
    (kernels.gpu, ("gpu-*",)),
)


@dataclass(frozen=True)
class Observer:
    """Callbacks that receive the progress of the bench.

    Args:
        begins: called with the names of the rows that are measured next.
        floors: called once the machine's floors are known.
        row: called with each row.
    """

    begins: Callable[[Sequence[str]], None] = lambda names: None
    floors: Callable[[Floors], None] = lambda floors: None
    row: Callable[[Row], None] = lambda row: None


def wanted(only: Sequence[str], *, gpu: bool = False) -> tuple[Bar, ...]:
    """Return the rows that names and patterns such as ``kcenter*`` ask for; all without any.

    Args:
        only: a row's name, the start of one, or a pattern with ``*``.
        gpu: whether rows on a GPU belong to all.

    Raises:
        SettingsError: nothing is called so.
    """
    if not only:
        return tuple(b for b in BARS if gpu or not b.name.startswith(_GPU))
    for name in only:
        if not any(_matches(bar.name, name) for bar in BARS):
            raise SettingsError(f"--only {name!r}: {nearest(name, [b.name for b in BARS])}")
    kept = tuple(b for b in BARS if any(_matches(b.name, name) for name in only))
    return kept + tuple(b for b in BARS if gpu and b.name.startswith(_GPU) and b not in kept)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or name.startswith(pattern)


def run_bench(
    bars: Sequence[Bar],
    sizes: Sizes = FULL,
    *,
    repeats: int = 5,
    seed: int = 0,
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Measure rows and return everything as one document: floors, rows, rates, versions, machine.

    Args:
        bars: the rows.
        sizes: sizes of the arrays.
        repeats: timed runs of each contender, in turn.
        seed: seed of the arrays.
        observer: is told how it goes.

    Raises:
        SettingsError: fewer than one repeat.
    """
    if repeats < 1:
        raise SettingsError(f"--repeats {repeats}: at least 1 is needed; 5 for figures to compare")
    watcher = observer or Observer()
    watcher.begins(["the machine's floors"])
    floors = measure_floors(sizes.floor_mb, sizes.floor_side)
    watcher.floors(floors)
    context = Context(sizes, repeats, seed, floors, frozenset(b.name for b in bars))
    by_name = {bar.name: bar for bar in bars}
    rows: list[Row] = []
    for measure, patterns in MEASUREMENTS:
        names = [n for n in by_name if any(fnmatch(n, p) for p in patterns)]
        if not names:
            continue
        watcher.begins(names)
        for name, measured in measure(context):
            if name in by_name:
                rows.append(judge(by_name[name], measured))
                watcher.row(rows[-1])
    return _document(rows, context)


def _document(rows: Sequence[Row], context: Context) -> dict[str, Any]:
    document = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "sizes": asdict(context.sizes),
        "repeats": context.repeats,
        "seed": context.seed,
        "machine": _machine(),
        "versions": {**_versions(), **peers.versions()},
        "floors": context.floors.to_json(),
        "rows": [row.to_json() for row in rows],
    }
    return {**document, "rates": rates_of(document)}


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")
    return {
        "cpu": model or platform.processor(),
        "cores": os.cpu_count(),
        "bf16": scoring.has_bf16(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _versions() -> dict[str, str | None]:
    installed: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = None
    return installed
