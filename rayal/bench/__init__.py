"""Measure rayal on this machine: beside its peers, beside plain forms, and above the floors."""

from __future__ import annotations

from rayal.bench.bars import BARS, FULL, QUICK, Bar, Sizes
from rayal.bench.results import Rates, load_results, results_path

__all__ = ["BARS", "Bar", "Sizes", "FULL", "QUICK", "Rates", "load_results", "results_path"]
