"""Seconds of a frozen backbone's rounds, stage by stage: python …/frozen_rounds.py STORAGE."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow.parquet as pq

STAGES = ("embed", "train", "evaluate", "scan", "select")


def main(storage: Path) -> None:
    (file,) = storage.rglob("rounds.parquet")
    rows = pq.read_table(file).to_pylist()
    named = {}
    for row in rows:
        made = {n.removeprefix("seconds."): v for n, v in row.items() if n.startswith("seconds.")}
        named[row["strategy"], row["round"]] = {s: made.get(s) or 0.0 for s in STAGES}
    for (strategy, round), spent in sorted(named.items()):
        parts = ", ".join(f"{s} {spent[s]:.2f}" for s in STAGES)
        sys.stdout.write(f"{strategy} round {round}: {sum(spent.values()):.2f} s ({parts})\n")
    later = [sum(s.values()) for (_, round), s in named.items() if round > 0]
    sys.stdout.write(f"slowest later round {max(later):.2f} s\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
