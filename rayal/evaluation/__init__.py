"""Judge runs by learning curves and their statistics, and write the files and tables of both."""

from __future__ import annotations

from rayal.evaluation.curves import (
    CurvePoint,
    SummaryRow,
    plot,
    read_curve_csv,
    summary,
    write_curve_csv,
)
from rayal.evaluation.report import table, versions, write_outputs
from rayal.evaluation.statistics import Interval, area, curve_mean, paired_bootstrap

__all__ = [
    "CurvePoint",
    "SummaryRow",
    "summary",
    "plot",
    "read_curve_csv",
    "write_curve_csv",
    "Interval",
    "paired_bootstrap",
    "area",
    "curve_mean",
    "write_outputs",
    "table",
    "versions",
]
