"""Seconds of contenders that take turns, and the floors under every kernel on this machine."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rayal.selection.threads import torch_threads


@dataclass(frozen=True)
class Runs:
    """The times and results of the runs of one contender.

    Attributes:
        cpu: seconds of this process's CPUs, which is what is compared: at one thread others on
            the machine do not count.
        wall: seconds of the clock.
        results: results of the runs.
    """

    cpu: tuple[float, ...]
    wall: tuple[float, ...]
    results: tuple[Any, ...]

    @property
    def result(self) -> Any:
        """The result of the last run."""
        return self.results[-1]


def alternate(
    contenders: Mapping[str, Callable[[], Any]], repeats: int, *, warm: bool = True
) -> dict[str, Runs]:
    """Run contenders in turn, A B A B …, and return the seconds of each.

    Args:
        contenders: name to what is timed.
        repeats: timed runs of each.
        warm: run each once before, untimed.
    """
    if warm:
        for run in contenders.values():
            run()
    results: dict[str, list[Any]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            gc.collect()
            began, ticks = time.perf_counter(), time.process_time()
            result = run()
            cpu[name].append(time.process_time() - ticks)
            wall[name].append(time.perf_counter() - began)
            results[name].append(result)
    return {n: Runs(tuple(cpu[n]), tuple(wall[n]), tuple(results[n])) for n in contenders}


@dataclass(frozen=True)
class Floors:
    """Rates of one thread.

    Attributes:
        copy_gbps: GB/s read and written by a copy, together.
        read_gbps: GB/s read by a sum.
        gemv_gbps: GB/s of the matrix in a matrix-vector product, float32.
        gemm_gflops: GFLOP/s of a matrix product, float32.
        gemm_bf16_gflops: GFLOP/s of bfloat16 matrix products.
        log_gps: 10^9 logarithms a second, float32.
    """

    copy_gbps: float
    read_gbps: float
    gemv_gbps: float
    gemm_gflops: float
    gemm_bf16_gflops: float
    log_gps: float

    def gemm(self, flops: float) -> float:
        """Return the seconds of so many float32 operations in matrix products."""
        return flops / (self.gemm_gflops * 1e9)

    def read(self, count: float) -> float:
        """Return the seconds of reading so many bytes."""
        return count / (self.read_gbps * 1e9)

    def log(self, count: float) -> float:
        """Return the seconds of so many logarithms."""
        return count / (self.log_gps * 1e9)

    def to_json(self) -> dict[str, float]:
        """Return the rates by name."""
        return asdict(self)


def measure_floors(megabytes: int, side: int = 2048, *, repeats: int = 5) -> Floors:
    """Measure the machine in CPU seconds: the best of some runs, since a floor is what is possible.

    Args:
        megabytes: size of the arrays that are read, far above the caches.
        side: side of the square matrices that are multiplied.
        repeats: runs.
    """
    with torch_threads(1):
        x = torch.rand((megabytes << 20) // 4)
        y = torch.empty_like(x)
        size = x.numel() * 4 / 1e9
        copied = _best(lambda: y.copy_(x), repeats)
        read = _best(x.sum, repeats)
        matrix = x[: x.numel() // 512 * 512].view(-1, 512)
        vector = torch.rand(512)
        product = _best(lambda: matrix @ vector, repeats)
        few = x[: 1 << 20]
        logged = _best(lambda: torch.log(few, out=y[: 1 << 20]), repeats)
        a, b = torch.rand((side, side)), torch.rand((side, side))
        single = _best(lambda: a @ b, repeats)
        a16, b16 = a.bfloat16(), b.bfloat16()
        half = _best(lambda: a16 @ b16, repeats)
    flops = 2 * side**3 / 1e9
    return Floors(
        2 * size / copied, size / read, size / product, flops / single, flops / half,
        (1 << 20) / 1e9 / logged,
    )  # fmt: skip


def _best(run: Callable[[], object], repeats: int) -> float:
    best = math.inf
    for _ in range(repeats + 1):
        began = time.process_time()
        run()
        best = min(best, time.process_time() - began)
    return best
