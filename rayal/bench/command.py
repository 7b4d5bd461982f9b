"""The command `rayal bench`: it measures, prints ratios and verdicts, and keeps the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from rayal.bench import bars
from rayal.bench.bars import Sizes
from rayal.bench.results import results_path, write_results
from rayal.bench.rows import Row
from rayal.bench.suite import Observer, run_bench, wanted
from rayal.bench.timing import Floors

_WIDE = 110  # columns of a terminal that has room for all of the table
_COLOURS = {"ok": "green", "below": "red", "not run": "yellow"}
_UNITS = {
    "copy_gbps": "copy {:.1f} GB/s",
    "read_gbps": "read {:.1f} GB/s",
    "gemv_gbps": "GEMV {:.1f} GB/s",
    "gemm_gflops": "GEMM {:.0f} GFLOP/s float32",
    "gemm_bf16_gflops": "{:.0f} bf16",
    "log_gps": "log {:.2f} G/s",
}


class Watch:
    """Shows on standard error what is being measured, and a line for each finished row.

    Args:
        err: the console.
        total: rows that will be measured.
    """

    def __init__(self, err: Console, total: int) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} rows"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._task = self._bar.add_task("", total=total)

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

    @property
    def observer(self) -> Observer:
        """An observer that draws the progress of the bench."""
        return Observer(self._begins, self._floors, self._row)

    def _begins(self, names: Sequence[str]) -> None:
        self._bar.update(self._task, description=", ".join(names))

    def _floors(self, floors: Floors) -> None:
        self._say(floors_line(floors.to_json()))

    def _row(self, row: Row) -> None:
        self._bar.advance(self._task)
        self._say(f"{row.bar.name:<26} {row.verdict:<8} {row.why or _ratio(row.to_json())}")

    def _say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)


def floors_line(floors: Mapping[str, float]) -> str:
    """Return the machine's rates as one line."""
    return "1 thread: " + ", ".join(u.format(floors[n]) for n, u in _UNITS.items())


def print_report(out: Console, document: Mapping[str, Any], sizes: Sizes) -> None:
    """Print a bench's document: machine, floors, the table, then notes of each row."""
    machine = document["machine"]
    out.print(f"{machine['cpu']}, {machine['cores']} cores", highlight=False, markup=False)
    out.print(floors_line(document["floors"]), highlight=False, markup=False)
    if sizes.name != "full":
        out.print(
            f"{sizes.name}: smaller arrays than the sizes named; the bars are those of full size",
            style="yellow",
        )
    out.print(rows_table(document["rows"], wide=out.width >= _WIDE))
    for row in document["rows"]:
        for text in _remarks(row):
            out.print(f"{row['name']}: {text}", highlight=False, markup=False, soft_wrap=True)
    verdicts = [row["verdict"] for row in document["rows"]]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in _COLOURS)
    out.print(
        f"medians of {document['repeats']} alternating runs, CPU seconds at one thread; {counts}",
        highlight=False,
    )


def rows_table(rows: Sequence[Mapping[str, Any]], *, wide: bool = True) -> Table:
    """Return the rows of a document as a table; a narrow one leaves out what rows are against."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("row", no_wrap=True)
    if wide:
        table.add_column("against", no_wrap=True)
    for name in ("rayal s", "peer s", "of floor", "ratio", "least", "aim"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for row in rows:
        sign = "≤ " if row["lower"] else ""
        table.add_row(
            row["name"],
            *([row["peer"]] if wide else []),
            _number(row["seconds"]),
            _number(row["peer_seconds"]),
            _number(row["of_floor"]),
            _ratio(row),
            _bound(row["at_least"], sign),
            _bound(row["aim"], sign),
            Text(row["verdict"], style=_COLOURS[row["verdict"]]),
        )
    return table


def _remarks(row: Mapping[str, Any]) -> list[str]:
    remarks = [row["why"]] if row["why"] else []
    if row["quality"] is not None:
        remarks.append(row["quality"]["text"])
    if row["memory"] is not None:
        peer = row["peer_memory"]
        beside = "" if peer is None else f" (peer {peer:.2f} GB)"
        remarks.append(f"{row['memory']:.2f} GB{beside}")
    return remarks + ([row["note"]] if row["note"] else [])


def _ratio(row: Mapping[str, Any]) -> str:
    return "–" if row["ratio"] is None else f"x {row['ratio']:.3g}"


def _bound(value: float | None, sign: str) -> str:
    return "–" if value is None else f"{sign}{value:g}"


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def fell_short(document: Mapping[str, Any]) -> list[str]:
    """Return the names of the rows that are below their bar or were not run."""
    return [row["name"] for row in document["rows"] if row["verdict"] != "ok"]


_PAGE = 120  # columns of a report that goes to a file


def bench(
    only: Sequence[str],
    *,
    quick: bool,
    gpu: bool,
    repeats: int,
    seed: int,
    json_file: Path | None,
) -> tuple[dict[str, Any], list[str]]:
    """Measure, report and keep the figures; return the document and what is not ok.

    A whole bench is kept at ``results_path()``; one of some rows only where ``json_file`` says.

    Args:
        only: names, starts of names or patterns of rows; none for all.
        quick: smaller arrays.
        gpu: rows on a GPU too.
        repeats: timed runs of each contender.
        seed: seed of the arrays.
        json_file: where the document goes; None for ``results_path()``.
    """
    chosen = wanted(only, gpu=gpu)
    sizes = bars.QUICK if quick else bars.FULL
    err, out = Console(stderr=True), Console()
    if not out.is_terminal:
        out.width = _PAGE
    with Watch(err, len(chosen)) as watch:
        document = run_bench(chosen, sizes, repeats=repeats, seed=seed, observer=watch.observer)
    print_report(out, document, sizes)
    if json_file is not None or not only:
        file = json_file or results_path()
        write_results(document, file)
        out.print(f"figures: {file}", highlight=False, markup=False, soft_wrap=True)
    return document, fell_short(document)
