"""Print mean accuracy over the curve, and each strategy's paired difference to random."""

from __future__ import annotations

import sys

from rich.console import Console

from rayal.evaluation.curves import read_curve_csv
from rayal.evaluation.report import table


def main() -> None:
    points = [point for path in sys.argv[1:] for point in read_curve_csv(path)]
    Console(width=140).print(table(points, at=(100, 300, 500, 1000)))


if __name__ == "__main__":
    main()
