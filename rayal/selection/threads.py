"""Threads: tiles in parallel, each on one core, so that their number never changes a bit."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """Return the cores that this process may use: OMP_NUM_THREADS, else its affinity."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() and int(setting) else len(os.sched_getaffinity(0))


class Team:
    """Threads that each work on a tile at a time; a matrix product inside uses one core.

    Args:
        threads: how many; 1 works in the caller's thread.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def map(self, work: Callable[[Any], Any], tiles: Sequence[Any]) -> list[Any]:
        """Return the work's result for each tile, in their order."""
        with torch_threads(1):  # a single tile too: two cores may sum in another order
            if self._pool is None or len(tiles) < 2:
                return [work(tile) for tile in tiles]
            return list(self._pool.map(work, tiles))

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


_CPU = torch.device("cpu")


class Room(threading.local):
    """The calling thread's buffers, by name."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, device: torch.device | None = None) -> Tensor:
        """Return a float32 tensor of that shape, its numbers undefined, over the named buffer.

        It is valid until the same thread takes the name again.
        """
        size = prod(shape)
        buffer = self._held.get(name)
        if buffer is None or len(buffer) < size or buffer.device != (device or _CPU):
            buffer = torch.empty(size, dtype=torch.float32, device=device)
            self._held[name] = buffer
        return buffer[:size].view(shape)
