"""Commands that work on this machine: they read settings and storage roots, and run rounds."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import typer

from rayal.bench.results import load_results, results_path
from rayal.cli import console
from rayal.cli.remote import csv_reader
from rayal.engine.project import Project
from rayal.errors import LabelError, ResourceError, SettingsError, UnknownNameError, nearest
from rayal.evaluation import report
from rayal.evaluation.protocol import Outcome, run
from rayal.ledger import Appearance, LabelRow, LeaseRow, Ledger
from rayal.ledger.location import split
from rayal.planning.pools import WhatIf
from rayal.planning.runs import as_lines, plan_run
from rayal.planning.seconds import Rates
from rayal.pool.files import collect_files
from rayal.pool.from_settings import pool_of, read_columns
from rayal.pool.reader import Pool
from rayal.settings.run import Settings, load
from rayal.strategies import select


def settings_of(
    config: Path, overrides: Sequence[str], executor: str | None, address: str | None
) -> Settings:
    """Read settings, with the executor of the command line, and a storage that outlives a job.

    A Ray job runs in a copy of the working folder, which goes with the cluster's session; a
    relative storage root is taken from the home folder of the head node there, and said.
    """
    lines = [*overrides]
    lines += [] if address is None else [f"ray.address={address}", "executor=ray"]
    lines += [] if executor is None else [f"executor={executor}"]
    settings = load(config, lines)
    if not _in_ray_job() or Path(settings.storage).is_absolute():
        return settings
    home = Path.home() / settings.storage
    console.err.print(
        f"storage {settings.storage!r} is relative, and the working folder of a job is a copy: "
        f"taken as {home}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return load(config, [*lines, f"storage={home}"])


def plan_settings(settings: Settings, given: WhatIf, rates: Path | None, *, as_json: bool) -> None:
    """Print what a run would need; raise ResourceError with the remedies where it does not fit."""
    forecast = plan_run(settings, given, measured_rates(rates))
    console.show(forecast.record if as_json else as_lines(forecast.record), as_json=as_json)
    if forecast.refusals:
        raise ResourceError("\n       ".join(forecast.refusals))


def measured_rates(path: Path | None) -> Rates:
    """Return what ``rayal bench`` measured of this machine; assumed rates where it never ran.

    Args:
        path: a file that the bench wrote; None for that of the last whole one.

    Raises:
        SettingsError: the file is missing, no output of the bench, or holds a rate of 0.
    """
    bench = load_results(path)
    rates = {"gemm": bench.gemm_gflops, "read": bench.read_gbps, "log": bench.log_gps}
    kernels = {"k-center": bench.kcenter_of_floor, "k-means++": bench.badge_of_floor}
    measured = {title: of for title, of in kernels.items() if of is not None}
    bad = {name: rate for name, rate in (rates | measured).items() if not 0 < rate < math.inf}
    if bad:
        raise SettingsError(
            f"{path or results_path()}: rates {bad} must be positive numbers; run `rayal bench` "
            "again"
        )
    return Rates(**{name: rate * 1e9 for name, rate in rates.items()}, kernels=measured)


def _in_ray_job() -> bool:
    return "runtime_resources" in Path.cwd().parts and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def run_settings(
    settings: Settings,
    out: Path | None,
    *,
    verbose: bool = False,
    quiet: bool = False,
    at: Sequence[int] | None = None,
) -> Outcome:
    """Run settings under a progress bar and print the table, or what people should label."""
    with console.Watch(verbose=verbose) as watch:
        outcome = run(settings, out=out, observer=watch)
    if quiet:
        return outcome
    if outcome.points:
        shown = report.table(
            outcome.points, at=at, approximate=outcome.approximate, remarks=outcome.remarks
        )
        console.out.print(shown)
        console.out.print(f"outputs: {outcome.folder}", highlight=False, soft_wrap=True)
        plot = outcome.folder / "curve.png"
        console.out.print(f"plot:    {plot}", highlight=False, soft_wrap=True)
    for name, count in outcome.waiting.items():
        where = f"{settings.storage}#{name}"
        console.out.print(
            f"{count} items of {where} want labels:\n"
            f"  rayal export '{where}' --what offered --out offered.csv\n"
            f"  rayal label '{where}' labels.csv        # columns id,label\n"
            "then run the same command again: it goes on from there.",
            highlight=False,
            markup=False,
        )
    return outcome


def a_pick(folder: Path, project: str) -> str:
    """Return an item that a project's strategy picked, to be asked about."""
    table = pa.parquet.read_table(folder / "picks.parquet")
    rows = zip(*(table[n].to_pylist() for n in ("project", "round", "item")), strict=True)
    return next(str(item) for name, number, item in rows if name == project and number >= 0)


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Return a run's outputs and curve points."""
    return {
        "folder": str(outcome.folder),
        "points": [dataclasses.asdict(p) for p in outcome.points],
        "waiting": outcome.waiting,
        "remarks": list(outcome.remarks),
    }


def ingest_source(
    source: str, root: Path, name: str | None, given: Sequence[str], *, line: bool
) -> Any:
    """Ingest a source as ``pool: {source: …}`` in the settings would; return the pool's record."""
    overrides = [f"pool.{text}" for text in given]
    settings = load({"pool": {"source": source}}, overrides).pool
    with console.Watch() as watch:
        pool = pool_of(settings, root, seed=0, name=name, progress=watch.pool)
    return pool_line(pool_json(pool)) if line else pool_json(pool)


def pool_json(pool: Pool) -> dict[str, Any]:
    """Return what a pool's snapshot holds."""
    rows = {role: sum(p.rows for p in pool.parts_of(role)) for role in ("pool", "test")}
    return {
        "pool": pool.name,
        "snapshot": pool.snapshot,
        "items": rows["pool"],
        "test items": rows["test"],
        "parts": len(pool.parts),
        **{k: v for k, v in pool.info.items() if k != "labels"},
    }


def pool_line(pool: dict[str, Any]) -> dict[str, Any]:
    """Return a pool's record as one line of a table: counts instead of lists."""
    counts = {k: pool[k]["count"] for k in ("quarantined", "duplicates")}
    plain = {k: pool[k] for k in ("pool", "snapshot", "items", "test items", "parts")}
    return {**plain, "classes": len(pool.get("classes", ())), **counts}


def round_line(row: dict[str, Any]) -> dict[str, Any]:
    """Return a round's record as one line of a table."""
    metrics = {k: f"{v:.4f}" for k, v in row["metrics"].items()}
    seconds = {f"{k} s": f"{v:.1f}" for k, v in row["seconds"].items() if v >= 0.05}
    return {"round": row["round"], "labels": row["labels"], **metrics, **seconds}


def status_of(where: str, *, lines: bool) -> Any:
    """Return pools and projects of a root, or one project's rounds; lines are for tables."""
    if "#" in where:
        whole = project_json(_open(where))
        return {**whole, "rounds": [round_line(r) for r in whole["rounds"]]} if lines else whole
    with Ledger(where, create=False) as ledger:
        pools = [pool_json(Pool.open(where, name)) for name in ledger.pools()]
        pools = [pool_line(pool) for pool in pools] if lines else pools
        rows = []
        for name in ledger.projects():
            project = Project(ledger, name)
            rounds = project.rounds()
            rows.append(
                {
                    "project": name,
                    "rounds": len(rounds),
                    "labels": len(ledger.resolved(name)),
                    "offered": len(ledger.open_items(name)),
                    "finished": project.finished,
                    **{k: round(v, 4) for k, v in (rounds[-1].metrics if rounds else {}).items()},
                }
            )
        return {"pools": pools, "projects": rows}


def project_json(project: Project) -> dict[str, Any]:
    """Return a project's settings and rounds."""
    states = list(project.ledger.states(project.name).values())
    return {
        "project": project.name,
        "pool": project.pool.name,
        "strategy": project.spec.to_json()["strategy"],
        "finished": project.finished,
        "items": {s: states.count(s) for s in ("labeled", "leased", "offered")},
        "rounds": [dataclasses.asdict(r) for r in project.rounds()],
    }


def _what(row: Appearance | LeaseRow | LabelRow) -> str:
    """Return what a row of an item's story tells of."""
    if isinstance(row, LabelRow):
        return {"skipped": "skip", "retracted": "retraction"}.get(row.status, "label")
    return "lease" if isinstance(row, LeaseRow) else "selection"


def why_of(where: str, item: str) -> Any:
    """Return every selection an item appears in, with its leases and labels."""
    project = _open(where)
    if not project.pool.contains([item])[0]:
        raise UnknownNameError(f"item {item!r} is not in pool {project.pool.name!r}")
    story = project.ledger.why(project.name, item)
    rows = [{"what": _what(row), **dataclasses.asdict(row)} for row in story]
    return {"item": item, "story": rows or "never picked, leased or labeled"}


def label_from(where: str, path: Path, annotator: str) -> Any:
    """Import labels of a CSV file with columns id and label; return counts by status."""
    project = _open(where)
    if not path.is_file():
        raise LabelError(f"labels file {str(path)!r} does not exist; give a CSV with id,label")
    with csv_reader(path, LabelError) as reader:
        if not {"id", "label"} <= set(reader.fieldnames or ()):
            raise LabelError(
                f"{path} has columns {reader.fieldnames}; the columns id and label are needed"
            )
        read, labels = project.task.labels.read, dict[str, Any]()
        for line, row in enumerate(reader, start=2):
            value = read(row["label"] or "", row["id"])
            if labels.setdefault(row["id"], value) != value:
                raise LabelError(f"{path}, line {line}: item {row['id']!r} has two labels")
    results = project.tell(labels, annotator=annotator)
    statuses = [r.status for r in results]
    return {"project": project.name, **{s: statuses.count(s) for s in dict.fromkeys(statuses)}}


def export_csv(where: str, what: str) -> str:
    """Return labels, history or offered items as CSV."""
    project = _open(where)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if what == "labels":
        writer.writerow(["id", "label"])
        writer.writerows(project.ledger.resolved(project.name).items())
    elif what == "history":
        rows = [dataclasses.asdict(row) for row in project.ledger.labels(project.name)]
        writer.writerow(rows[0] if rows else ["item"])
        writer.writerows(row.values() for row in rows)
    elif what == "offered":
        writer.writerow(["id", "label"])
        writer.writerows([item, ""] for item in project.ledger.open_items(project.name))
    else:
        raise SettingsError(f"--what {what!r}: {nearest(what, ('labels', 'history', 'offered'))}")
    return text.getvalue()


def select_from(
    path: Path,
    strategy: str,
    k: int,
    *,
    labeled: Path | None,
    id: str,
    seed: int,
    params: Sequence[str],
) -> Any:
    """Choose k rows of a file of columns."""
    columns, ids = read_columns(path, id)
    known = None if labeled is None else read_columns(labeled, id)[0]
    parsed = _parsed(params)
    chosen = select(strategy, columns, k, ids=ids, labeled=known, params=parsed, seed=seed)
    return [
        {"rank": rank, "id": item, "position": int(position), "score": float(score)}
        for rank, (item, position, score) in enumerate(
            zip(chosen.ids, chosen.positions, chosen.scores, strict=True), start=1
        )
    ]


def list_registry(name: str | None, *, as_json: bool) -> None:
    """Print the registry, or one entry."""
    everything = console.registry_json()
    if name is None and as_json:
        typer.echo(json.dumps(everything, indent=2, default=str))
    elif name is None:
        console.out.print(console.strategy_table())
        for kind in ("learner", "network"):
            console.out.print(console.entry_table(kind, everything[f"{kind}s"]))
    else:
        registered = {k: v[name] for k, v in everything.items() if name in v}
        if not registered:
            raise UnknownNameError(
                f"{name!r} is no strategy, learner or network; "
                f"{nearest(name, [n for v in everything.values() for n in v])}"
            )
        if as_json:
            typer.echo(json.dumps(registered, indent=2, default=str))
        for kind, row in () if as_json else registered.items():
            console.print_entry(name, kind, row)


def collect(root: Path, *, dry_run: bool) -> Any:
    """Remove what no ledger row commits and what ``keep`` lets go."""
    with Ledger(root, create=False) as ledger:
        removed = collect_files(ledger, dry_run=dry_run)
    return {"files": len(removed), "bytes": sum(removed.values()), "removed": not dry_run}


def _open(where: str) -> Project:
    root, name = split(where)
    return Project.open(root, name)


def _parsed(params: Sequence[str]) -> dict[str, Any]:
    settings = load({"pool": {"source": "digits"}}, [f"learner.{text}" for text in params])
    return settings.learner.params


INTRODUCTION = """\
rayal demo: 1,797 images of digits, of which 400 are kept for testing.
A small network starts from 50 labels and asks for 25 more, ten times, up to 300.
random asks for anything, margin for what the network is unsure of, badge for what is both
uncertain and diverse. Each runs with three seeds; a simulated annotator answers.
"""
COUNTS = (50, 100, 200, 300)  # labels at which the table shows accuracy
NEXT = """
What to try next:
  rayal strategies                                    # what else there is
  rayal status {out}                           # pools, projects, rounds
  rayal why '{out}#badge-s0' {item}      # why an item was picked
  rayal run examples/fashion_mnist.yaml               # 60,000 images
"""


def demo_settings(out: Path) -> Settings:
    """Return the demonstration's settings; its storage is ``out``."""
    return load(
        {
            "pool": {"source": "digits"},
            "task": {"kind": "image"},
            "model": {"network": "mlp", "params": {"widths": [128, 128], "dropout": 0.2}},
            "learner": {"name": "supervised", "steps": 150, "batch": 32},
            "strategies": ["random", "margin", "badge"],
            "initial": {"count": 50},
            "rounds": 10,
            "batch": 25,
            "seeds": [0, 1, 2],
            "storage": str(out),
        }
    )
