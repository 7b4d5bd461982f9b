"""Print what each strategy of some runs came to, beside random of the same run.

    python tests/acceptance/informativeness.py [--metric NAME] STORAGE…

Exits with 1 where a round is missing, a figure is no number, or all scores of a round were equal.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet

from rayal.evaluation.report import remarks
from rayal.settings.run import BASELINE, Settings, load

read_parquet: Any = pyarrow.parquet.read_table  # Arrow carries no types
Row = dict[str, Any]


def by_cell(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["strategy"], row["seed"]), []).append(row)
    return {cell: sorted(of, key=lambda row: row["round"]) for cell, of in cells.items()}


def wrong(settings: Settings, cells: dict[tuple[str, str], list[Row]], metric: str) -> list[str]:
    """Return what is amiss of a run: one line each."""
    said = []
    named = {(cell.label, row["seed"]) for cell in settings.cells() for row in cells_of(cells)}
    for cell in sorted(named - set(cells)):
        said.append(f"{cell[0]} {cell[1]}: no round at all")
    for (label, seed), rows in cells.items():
        if len(rows) != settings.rounds + 1:
            said.append(f"{label} {seed}: {len(rows)} rounds of {settings.rounds + 1}")
        for row in rows:
            where = f"{label} {seed}, round {row['round']}"
            value = row.get(f"metric.{metric}")
            if value is None or not math.isfinite(value):
                said.append(f"{where}: {metric} is {value}")
            if row["warning"]:
                said.append(f"{where}: {row['warning']}")
    return said


def cells_of(cells: dict[tuple[str, str], list[Row]]) -> list[Row]:
    return [rows[0] for rows in cells.values()]


def mean(values: Iterable[float]) -> float:
    held = list(values)
    return math.fsum(held) / len(held) if held else math.nan


def spent(rows: list[Row]) -> float:
    """Return the seconds of a round's scan and choice, in the mean."""
    stages = ("seconds.scan", "seconds.select")
    return mean(sum(row.get(s) or 0.0 for s in stages) for row in rows[:-1])


def lines(settings: Settings, cells: dict[tuple[str, str], list[Row]], metric: str) -> list[str]:
    """Return a line for each strategy: last figure, mean of the curve, both minus random's."""
    labels = list(dict.fromkeys(label for label, _ in cells))
    labels.sort(key=lambda label: label != BASELINE)
    seeds = sorted({seed for _, seed in cells})
    kind = settings.learner.name
    if settings.model.members > 1:
        kind += f" x {settings.model.members}"

    def figures(label: str, seed: str) -> list[float]:
        return [row[f"metric.{metric}"] for row in cells[label, seed]]

    made = []
    for label in labels:
        own = [figures(label, seed) for seed in seeds]
        base = [figures(BASELINE, seed) for seed in seeds]
        last, whole = mean(f[-1] for f in own), mean(mean(f) for f in own)
        ahead = mean(a[-1] - b[-1] for a, b in zip(own, base, strict=True))
        over = mean(mean(a) - mean(b) for a, b in zip(own, base, strict=True))
        seconds = mean(spent(cells[label, seed]) for seed in seeds)
        made.append(
            f"{label:26} {kind:20} {last:8.4f} {ahead:+8.4f} {whole:8.4f} {over:+8.4f}"
            f" {seconds:8.1f} {len(seeds):3}"
        )
    return made


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("storages", nargs="+", type=Path)
    asked = parser.parse_args()
    names = ("last", "- random", "curve", "- random", "s/round")
    columns = "".join(f" {name:>8}" for name in names)
    sys.stdout.write(f"{'strategy':26} {'learner':20}{columns}   n\n")
    amiss: list[str] = []
    for storage in asked.storages:
        if not (storage / "rounds.parquet").is_file():
            amiss.append(f"{storage}: no rounds.parquet, the run did not end")
            continue
        settings = load(storage / "settings.yaml")
        cells = by_cell(read_parquet(storage / "rounds.parquet").to_pylist())
        found = wrong(settings, cells, asked.metric)
        amiss += [f"{storage.name}: {line}" for line in found]
        if not any("is None" in line or "rounds of" in line for line in found):
            shown = lines(settings, cells, asked.metric)
            said = remarks([row for rows in cells.values() for row in rows])
            sys.stdout.writelines(f"{line}\n" for line in (*shown, *said))
    sys.stdout.writelines(f"AMISS {line}\n" for line in amiss)
    return int(bool(amiss))


if __name__ == "__main__":
    sys.exit(main())
