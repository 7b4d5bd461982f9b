"""What ``rayal bench`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rayal.bench import bars
from rayal.bench.report import Watch, fell_short, print_report
from rayal.bench.results import results_path, write_results
from rayal.bench.suite import run_bench, wanted

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
        seed: of the arrays.
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
