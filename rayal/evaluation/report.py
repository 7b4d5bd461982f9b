"""The files a run leaves behind, and the table it ends with."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from rich import box
from rich.table import Table

from rayal.errors import StorageError
from rayal.evaluation.curves import (
    LOWER,
    CurvePoint,
    curves,
    leading,
    plot,
    shown,
    summary,
    write_curve_csv,
)
from rayal.evaluation.statistics import Interval
from rayal.pool.storage import write_durably
from rayal.settings.run import BASELINE

pa: Any = pyarrow  # Arrow carries no types
_PACKAGES = (
    "rayal",
    "torch",
    "torchvision",
    "numpy",
    "pyarrow",
    "scipy",
    "scikit-learn",
    "sqlalchemy",
    "pydantic",
    "ray",
)


def write_outputs(
    folder: str | Path,
    *,
    settings_yaml: str,
    points: Sequence[CurvePoint],
    rounds: Sequence[Mapping[str, Any]],
    picks: Sequence[Mapping[str, Any]],
    versions: Mapping[str, Any],
    metric: str | None = None,
    title: str = "",
) -> None:
    """Write the results of a run; each file appears whole, in place of an older one.

    ``curve.csv``, ``curve.png`` (once there is a point), ``rounds.parquet``, ``picks.parquet``,
    ``settings.yaml``, ``versions.json``.

    Args:
        folder: made where it does not exist.
        settings_yaml: the resolved settings.
        points: the learning curves.
        rounds: a row per round; rows may differ in their keys, a mapping is stored as JSON text.
        picks: a row per picked item, likewise.
        versions: the result of ``versions`` when the run began.
        metric: the metric that is drawn; None for the leading one.
        title: the heading of the picture.

    Raises:
        StorageError: if a column of rows mixes types; the message names file and column.
        SettingsError: if no point has the metric.
    """
    writers: dict[str, Callable[[Path], Any]] = {
        "settings.yaml": lambda path: path.write_text(settings_yaml, encoding="utf-8"),
        "versions.json": lambda path: path.write_text(
            json.dumps(versions, indent=2) + "\n", encoding="utf-8"
        ),
        "curve.csv": lambda path: write_curve_csv(path, points),
        "rounds.parquet": partial(_write_parquet, rows=rounds, name="rounds.parquet"),
        "picks.parquet": partial(_write_parquet, rows=picks, name="picks.parquet"),
    }
    if points:
        writers["curve.png"] = lambda path: plot(path, points, metric, title)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, write in writers.items():
        write_durably(Path(folder) / name, write)


def table(
    points: Sequence[CurvePoint],
    metric: str | None = None,
    at: Sequence[int] | None = None,
    *,
    approximate: Mapping[str, str] | None = None,
    remarks: Sequence[str] = (),
) -> Table:
    """Return the comparison as a table: random first, then the strategies in their order.

    Args:
        points: the learning curves.
        metric: the metric that is compared; None for the leading one.
        at: label counts to show; None takes up to four that all curves have, evenly spread.
        approximate: labels of strategies that chose approximately, which are marked ≈, to how.
        remarks: lines that go below it.
    """
    marked = approximate or {}
    metric = metric or leading(points)
    columns = _spread(points, metric) if at is None else list(at)
    rows = summary(points, metric, columns)
    columns = [n for n in columns if any(n in row.at for row in rows)]
    title = f"{shown(metric)} by number of labels"
    view = Table(title=title, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    notes = ["n: seeds; bootstrap intervals over seeds are too narrow with fewer than 10"]
    notes += [f"≈ {label}: {how}" for label, how in marked.items()]
    view.caption = "\n".join([*notes, *remarks])
    view.add_column("strategy", overflow="fold")
    compared = f"{BASELINE} minus it" if metric in LOWER else f"minus {BASELINE}"
    for heading in (*(f"{n:,}" for n in columns), "curve mean", f"{compared}, 90 %"):
        view.add_column(heading, justify="right", no_wrap=True)
    view.add_column("n", justify="right")
    for row in rows:
        spread = "" if math.isnan(row.sd) else f" ± {row.sd:.3f}"
        view.add_row(
            f"≈ {row.label}" if row.label in marked else row.label,
            *(f"{row.at[n]:.3f}" if n in row.at else "–" for n in columns),
            f"{row.mean:.3f}{spread}",
            _interval(row.difference),
            str(row.n_seeds),
        )
    return view


def approximations(rounds: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return how strategies chose approximately, and the measured loss: label to one line.

    Args:
        rounds: rows of ``rounds.parquet``; ``approximation`` is None where the choice was exact.
    """
    by_label: dict[str, list[Mapping[str, Any]]] = {}
    for row in rounds:
        if row.get("approximation"):
            by_label.setdefault(row["strategy"], []).append(row["approximation"])
    return {label: _how(approximated) for label, approximated in by_label.items()}


def remarks(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what to know of a run's figures: strategies without an opinion, and wrong labels.

    Args:
        rounds: rows of ``rounds.parquet``; ``warning`` is None where scores differ, ``wrong`` where
            annotators do not err by design.
    """
    equal: dict[str, list[str]] = {}
    last: dict[str, tuple[int, int]] = {}
    for row in rounds:
        if row.get("warning"):
            equal.setdefault(row["strategy"], []).append(f"{row['seed']} round {row['round']}")
        if row.get("wrong") is not None:
            last[row["project"]] = (row["wrong"], row["labels"])
    said = [
        f"! {label}: all scores were equal, so the choice was by item key alone: {', '.join(where)}"
        for label, where in equal.items()
    ]
    wrong, labels = (sum(column) for column in zip(*last.values(), strict=True)) if last else (0, 0)
    if labels:
        share = f"{wrong / labels:.1%}"
        said.append(f"simulated annotators got {wrong:,} of {labels:,} labels wrong ({share})")
    return said


def _how(found: Sequence[Mapping[str, Any]]) -> str:
    """Describe approximate choices: parameters of the last, mean loss of all."""
    last = found[-1]
    said = [str(last["method"])] if "method" in last else []
    said += [f"embeddings in {last['precision']}"] if "precision" in last else []
    if last["candidates"] < last["of"]:
        said.append(f"{last['candidates']:,} candidates of {last['of']:,}")
    losses = [one["loss"] for one in found if one["loss"] and one["loss"]["ratio"] is not None]
    if losses:
        ratio = math.fsum(loss["ratio"] for loss in losses) / len(losses)
        what = "its upper bound" if losses[0]["measure"] == "joint information" else "exact"
        on = f"{losses[0]['rows']:,} rows"
        said.append(f"{losses[0]['measure']} {ratio:.3f} x {what} on {on}, mean of {len(losses)}")
    return "; ".join(said)


def versions() -> dict[str, Any]:
    """Return what computes: versions of Python and packages (None: not installed), and machine."""
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.machine(),
            "platform": platform.platform(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _spread(points: Sequence[CurvePoint], metric: str) -> list[int]:
    every = [
        set(curve) for by_seed in curves(points, metric).values() for curve in by_seed.values()
    ]
    shared = sorted(set.intersection(*every))
    last = len(shared) - 1
    return sorted({shared[round(i * last / 3)] for i in range(4)}) if shared else []


def _interval(difference: Interval | None) -> str:
    if difference is None:
        return "–"
    ends = f" [{difference.low:+.3f} {difference.high:+.3f}]" if difference.n > 1 else ""
    return f"{difference.mean:+.3f}{ends}"


def _write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    keys = dict.fromkeys(key for row in rows for key in row)
    columns = {key: _column([row.get(key) for row in rows], key, name) for key in keys}
    pa.parquet.write_table(pa.table(columns), path)


def _column(values: list[Any], key: str, name: str) -> Any:
    cells = [json.dumps(v, sort_keys=True) if isinstance(v, Mapping) else v for v in values]
    unsigned = any(isinstance(v, int) and v >= 2**63 for v in cells)  # such as id keys
    try:
        return pa.array(cells, pa.uint64() if unsigned else None)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise StorageError(
            f"{name}: column {key!r} mixes types ({error}); a column holds values of one type"
        ) from None
