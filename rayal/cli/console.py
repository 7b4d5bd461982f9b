"""Display of the command line: progress with rate and time left, tables, errors."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import typer
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from rayal.evaluation.curves import CurvePoint
from rayal.evaluation.observer import Observer
from rayal.evaluation.outcomes import seeds_text
from rayal.registry import learners, networks, strategies
from rayal.settings.parameters import ParameterInfo, factory_parameters, parameters
from rayal.settings.run import Cell
from rayal.strategies.base import TAXONOMY

out = Console()


def show(value: Any, *, as_json: bool) -> None:
    """Print a record or rows, as JSON or as tables."""
    if as_json:
        typer.echo(json.dumps(value, indent=2, default=str))
        return
    rows = value if isinstance(value, list) else [value]
    flat = [_flat(row) for row in rows]
    nested = {k: v for row in rows for k, v in row.items() if _is_rows(v)}
    names = list(dict.fromkeys(k for row in flat for k in row))
    if isinstance(value, list) and all(row.keys() == flat[0].keys() for row in flat):
        out.print(_rows_table(names, flat))
    else:
        for row in flat:
            table = Table.grid(padding=(0, 2))
            for name, text in row.items():
                table.add_row(name, Text(text))
            out.print(table, "")
    for name, inner in nested.items():
        out.print(name, style="bold")
        show(inner, as_json=False)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _flat(row: Mapping[str, Any]) -> dict[str, str]:
    flat = {}
    for name, value in row.items():
        if not _is_rows(value):
            plain = isinstance(value, Mapping | list | tuple)
            flat[name] = json.dumps(value, default=str) if plain else str(value)
    return flat


def _rows_table(names: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    table = plain_table(*names)
    for row in rows:
        table.add_row(*(Text(row.get(name, "")) for name in names))
    return table


def plain_table(*headings: str) -> Table:
    """Return a table without frames, its first column unbroken."""
    table = Table(box=box.SIMPLE_HEAD)
    for number, heading in enumerate(headings):
        table.add_column(heading, no_wrap=number == 0)
    return table


err = Console(stderr=True)
_UNITS = {
    "train": "steps",
    "embed": "rows",
    "pretrain": "steps",
    "scan": "rows",
    "evaluate": "rows",
    "select": "picks",
    "ingest": "rows",
}


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:,.0f} {_UNITS.get(task.description, '')}/s")


class Watch(Observer):
    """Draws a run: one bar for the present stage, one line for each evaluated round.

    Args:
        verbose: also print every stage's seconds.
    """

    def __init__(self, *, verbose: bool = False) -> None:
        self._verbose = verbose
        self._bar = Progress(
            TextColumn("{task.fields[cell]}"),
            TextColumn("{task.description:>9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,  # a log file gets the lines alone
        )
        self._task: TaskID | None = None
        self._stage = ""
        self._cell = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def pool(self, done: int, total: int | None) -> None:
        """Move the bar of the ingest."""
        self.stage("ingest", done, total or 0)

    def note(self, text: str) -> None:
        """Print one line."""
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def cell(self, cell: Cell, index: int, total: int) -> None:
        """Name the curve that begins."""
        self._cell = f"[{index + 1}/{total}] {cell.label} {seeds_text(cell.seeds)}"

    def stage(self, stage: str, done: int, total: int) -> None:
        """Move the stage's bar; a new stage gets a new one."""
        if self._task is None or stage != self._stage or done == 0:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._stage = stage
            self._task = self._bar.add_task(stage, total=total or None, cell=self._cell)
        self._bar.update(self._task, completed=done, total=total or None)

    def round(self, cell: Cell, point: CurvePoint) -> None:
        """Print one line for the round."""
        metric, value = next(iter(point.metrics.items()), ("", float("nan")))
        seconds = sum(point.seconds.values())
        line = f"{self._cell}  {point.labels} labels  {metric} {value:.4f}  {seconds:.1f} s"
        if self._verbose:
            line += "  (" + ", ".join(f"{n} {s:.2f}" for n, s in point.seconds.items()) + ")"
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)


def registry_json() -> dict[str, Any]:
    """Return strategies, learners and networks by name, with all that is stated of them."""
    return {
        "strategies": {name: strategy_json(name) for name in strategies},
        "learners": {name: learner_json(name) for name in learners},
        "networks": {name: _described(networks[name]) for name in networks},
    }


def strategy_json(name: str) -> dict[str, Any]:
    """Return one strategy's taxonomy, source, departures, needs and parameters."""
    cls = strategies[name]
    strategy = cls()
    columns = [column for signal in strategy.signals() for column in signal.names()]
    return {
        **_described(cls),
        "taxonomy": cls.taxonomy,
        "source": cls.source,
        "departures": cls.departures,
        "approximations": cls.approximations,
        "signals": [repr(signal) for signal in strategy.signals()],
        "columns": columns,
        "context": list(cls.context),
        "members": strategy.members,
        "learner": _prescribed(cls.learner),
    }


def _prescribed(learner: Any) -> str:
    """Return the name of the learner that a strategy prescribes."""
    if learner is None:
        return "any"
    return next(name for name in learners if learners[name] is type(learner))


def learner_json(name: str) -> dict[str, Any]:
    """Return one learner's taxonomy, source, departures and parameters."""
    cls = learners[name]
    stated = {key: getattr(cls, key) for key in ("taxonomy", "source", "departures")}
    return {**_described(cls), **stated}


def _described(entry: Any) -> dict[str, Any]:
    first = (entry.__doc__ or "").strip().splitlines()[0]
    return {"summary": first, "parameters": [vars(p) for p in _parameters(entry)]}


def _parameters(entry: Any) -> Iterable[ParameterInfo]:
    return parameters(entry) if inspect.isclass(entry) else factory_parameters(entry)


def strategy_table() -> Table:
    """Return all strategies, grouped by taxonomy."""
    table = plain_table("strategy", "what it does", "source")
    for group in TAXONOMY:
        names = [n for n in strategies if strategies[n].taxonomy == group]
        if names:
            table.add_row(f"[bold]{group}[/bold]")
        for name in names:
            row = strategy_json(name)
            table.add_row(f"  {name}", row["summary"], row["source"])
    return table


def entry_table(kind: str, entries: dict[str, Any]) -> Table:
    """Return learners or networks with their parameters."""
    table = plain_table(kind, "what it is", "parameters")
    for name, row in entries.items():
        table.add_row(name, row["summary"], ", ".join(p["name"] for p in row["parameters"]))
    return table


def print_parameter(row: dict[str, Any]) -> None:
    """Print a hyperparameter: its type, default and bounds, and below them what it means."""
    facts = [row["type"], f"default {row['default']}", *row["bounds"]]
    out.print(f"    {row['name']}: {', '.join(facts)}", highlight=False, markup=False)
    out.print(Padding(Text(row["meaning"]), (0, 0, 0, 8)))


_STATED = (
    "taxonomy",
    "source",
    "departures",
    "approximations",
    "signals",
    "columns",
    "context",
    "members",
    "learner",
)
_ONE = {"strategies": "strategy", "learners": "learner", "networks": "network"}


def print_entry(name: str, kind: str, row: dict[str, Any]) -> None:
    """Print all that is stated of a strategy, learner or network."""
    out.print(f"[bold]{name}[/bold] ({_ONE[kind]}): {row['summary']}")
    for key in _STATED:
        if key in row:
            value = row[key]
            text = ", ".join(value) if isinstance(value, list) else str(value)
            out.print(f"  {key}: {text or '–'}", highlight=False, markup=False)
    if row["parameters"]:
        out.print("  parameters:")
    for parameter in row["parameters"]:
        print_parameter(parameter)
