"""The file with the figures of the bench, and the rates that other parts read from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rayal.errors import SettingsError


@dataclass(frozen=True)
class Rates:
    """The speed of one thread of this machine.

    The defaults are those of a server core with AVX-512, rounded down; they stand until
    ``rayal bench`` has measured this machine.

    Attributes:
        gemm_gflops: GFLOP/s of float32 matrix products.
        gemm_bf16_gflops: GFLOP/s of bfloat16 matrix products.
        read_gbps: GB/s read from memory.
        copy_gbps: GB/s read and written by a copy.
        gemv_gbps: GB/s of the matrix in a matrix-vector product.
        log_gps: 10^9 logarithms a second.
        scan_cnn_rows: 28 x 28 images a second through the small CNN, float32.
        scan_resnet_rows: 64 x 64 images a second through ResNet-18, float32.
        kcenter_of_floor: k-center's seconds as a multiple of 2 N D B / ``gemm_gflops``; None
            where it was not run.
        badge_of_floor: k-means++'s seconds as a multiple of 2 N (D + C) B / ``gemm_gflops``; None
            where it was not run.
        measured: whether a bench gave them.
    """

    gemm_gflops: float = 60.0
    gemm_bf16_gflops: float = 100.0
    read_gbps: float = 10.0
    copy_gbps: float = 10.0
    gemv_gbps: float = 8.0
    log_gps: float = 0.5
    scan_cnn_rows: float = 10_000.0
    scan_resnet_rows: float = 250.0
    kcenter_of_floor: float | None = None
    badge_of_floor: float | None = None
    measured: bool = False


def results_path() -> Path:
    """Return the file in which ``rayal bench`` leaves its figures.

    ``RAYAL_BENCH`` names another one; else it is ``bench.json`` in the user's cache folder.
    """
    path = os.environ.get("RAYAL_BENCH")
    if path:
        return Path(path)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "rayal" / "bench.json"


def load_results(path: str | Path | None = None) -> Rates:
    """Return the rates of the last bench; the documented defaults where there was none.

    Args:
        path: a file that ``rayal bench`` wrote; None for ``results_path()``, which may be missing.

    Raises:
        SettingsError: the file is no output of the bench, or a given one is missing.
    """
    file = results_path() if path is None else Path(path)
    if path is None and not file.exists():
        return Rates()
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))["rates"]
        known = {f.name for f in fields(Rates)} - {"measured"}
        rates = {name: float(value) for name, value in stored.items() if name in known}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"{file} is no output of `rayal bench` ({type(error).__name__}: {error}); run "
            "`rayal bench` again, or remove the file"
        ) from None
    return Rates(**rates, measured=True)


def rates_of(document: Mapping[str, Any]) -> dict[str, float]:
    """Return the rates that a bench's floors and rows give; what was not run is left out."""
    rates = {k: float(v) for k, v in document["floors"].items()}
    rows = {row["name"]: row for row in document["rows"] if row["verdict"] != "not run"}
    for rate, name in (
        ("scan_cnn_rows", "scan-cnn-fp32"),
        ("scan_resnet_rows", "scan-resnet-fp32"),
    ):
        if name in rows:
            rates[rate] = rows[name]["figures"]["rows_per_second"]
    for rate, names in (
        ("kcenter_of_floor", ("kcenter-1m-100", "kcenter-60k-1000", "kcenter-60k-100")),
        ("badge_of_floor", ("badge-1m-100", "badge-60k-1000", "badge-60k-100")),
    ):
        factors = [rows[n]["of_floor"] for n in names if n in rows and rows[n]["of_floor"]]
        if factors:
            rates[rate] = factors[0]
    return rates


def write_results(document: Mapping[str, Any], path: Path) -> None:
    """Write a bench's document; the file appears whole, in place of an older one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)
