"""What this machine can give: its memory, and how fast a core of it is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Rates:
    """What one core does in a second; the defaults are assumed, until a bench measures them.

    Attributes:
        gemm: operations of float32 matrix products.
        read: bytes read from memory.
        log: logarithms.
        write: bytes written to disk.
        kernels: a joint choice's title to its seconds as a multiple of the time that the products
            of all rows with all picks take at ``gemm``; the others' work is counted.
    """

    gemm: float = 60e9
    read: float = 10e9
    log: float = 0.5e9
    write: float = 0.5e9
    kernels: Mapping[str, float] = field(default_factory=dict)


def machine_memory() -> int | None:
    """Return the bytes that this machine, or the container around this process, can still give."""
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        known = {name: rest for name, _, rest in (line.partition(":") for line in lines)}
        limits.append(int(known["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError):
        limits += _physical()
    limits += _container()
    return min(limits) if limits else None


def _physical() -> list[int]:
    try:
        return [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (ValueError, OSError):
        return []


def _container() -> list[int]:
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return []
    return [] if limit == "max" else [max(0, int(limit) - used)]
