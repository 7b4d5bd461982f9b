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
        result: what the last run returned.
    """

    cpu: tuple[float, ...]
    wall: tuple[float, ...]
    result: Any


def alternate(
    contenders: Mapping[str, Callable[[], Any]], repeats: int, *, warm: bool = True
) -> dict[str, Runs]:
    """Run contenders in turn, A B A B …, and return the seconds of each.

    Args:
        contenders: name to what is timed.
        repeats: timed runs of each.
        warm: run each once before, untimed.
    """
    results = {name: run() for name, run in contenders.items()} if warm else {}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            results.pop(name, None)
            gc.collect()
            began, ticks = time.perf_counter(), time.process_time()
            results[name] = run()
            cpu[name].append(time.process_time() - ticks)
            wall[name].append(time.perf_counter() - began)
    return {n: Runs(tuple(cpu[n]), tuple(wall[n]), results[n]) for n in contenders}


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
