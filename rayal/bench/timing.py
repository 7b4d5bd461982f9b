"""Seconds of contenders that take turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Runs:
    """What the runs of one contender took.

    Attributes:
        cpu: seconds of this process's CPUs, which is what is compared: at one thread others on
            the machine do not count.
        wall: seconds of the clock.
        results: what the runs returned.
    """

    cpu: tuple[float, ...]
    wall: tuple[float, ...]
    results: tuple[Any, ...]

    @property
    def result(self) -> Any:
        """What the last run returned."""
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
            made = run()
            cpu[name].append(time.process_time() - ticks)
            wall[name].append(time.perf_counter() - began)
            results[name].append(made)
    return {n: Runs(tuple(cpu[n]), tuple(wall[n]), tuple(results[n])) for n in contenders}


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
