"""Compare what examples/label_over_http.py kept with a run in one process: picks and curve.

    python tests/acceptance/over_http.py OVER.json RUN_FOLDER [PROJECT]

Exit code 1 unless the same items were picked in the same order in every round, and every metric of
every round is the same number.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq

Picks = dict[int, list[str]]
Curve = dict[int, dict[str, float]]


def over_http(file: Path) -> tuple[Picks, Curve]:
    """Return picks by round in order, and metrics by round, of the service."""
    kept = json.loads(file.read_text())
    picks: Picks = {}
    for row in sorted(kept["picks"], key=lambda row: (row["round"], row["rank"])):
        picks.setdefault(row["round"], []).append(row["item"])
    return picks, {p["round"]: {**p["metrics"], "labels": p["labels"]} for p in kept["curve"]}


def in_process(folder: Path, project: str) -> tuple[Picks, Curve]:
    """Return the same of a run."""
    picks: Picks = {}
    rows = pq.read_table(folder / "picks.parquet").to_pylist()
    for row in sorted(rows, key=lambda row: (row["round"], row["rank"])):
        if row["project"] == project:
            picks.setdefault(row["round"], []).append(row["item"])
    curve: Curve = {}
    for row in pq.read_table(folder / "rounds.parquet").to_pylist():
        if row["project"] == project:
            metrics = {k[7:]: v for k, v in row.items() if k.startswith("metric.")}
            curve[row["round"]] = {**metrics, "labels": row["labels"]}
    return picks, curve


def main(over: Path, folder: Path, project: str = "badge-s0") -> int:
    (picks, curve), (own_picks, own_curve) = over_http(over), in_process(folder, project)
    same = picks == own_picks and curve == own_curve and bool(picks) and bool(curve)
    items = sum(len(items) for items in picks.values())
    last = curve[max(curve)]
    sys.stdout.write(
        f"{items} picks of {len(picks)} rounds: {'equal' if picks == own_picks else 'DIFFERENT'}; "
        f"{len(curve)} points of the curve: {'equal' if curve == own_curve else 'DIFFERENT'}; "
        f"{last['labels']} labels, accuracy {last['accuracy']:.4f}\n"
    )
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]))
