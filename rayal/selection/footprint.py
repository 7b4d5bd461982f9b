"""The cost of a joint choice: memory of its shards and work, as each objective states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Footprint:
    """Memory and work of one selection, besides the columns, which stay mapped.

    Attributes:
        row: bytes kept per row while it lasts.
        tile: bytes kept per tile during a step: the proposals that wait for the fold.
        part: bytes that every part of the pool sends to the driver, where objectives gather.
        transient: bytes while one tile is worked on, once per thread.
        shard: bytes kept once per shard: messages, and what they leave there.
        summing: bytes while one tile is summed up, once per thread, before the first step.
        driver: bytes on the driver.
        flops: multiplications and additions of matrix products, over all rows.
        read: bytes read from the columns, over all rows and passes.
        logs: logarithms and exponentials.
    """

    row: int = 0
    tile: int = 0
    part: int = 0
    transient: int = 0
    shard: int = 0
    summing: int = 0
    driver: int = 0
    flops: float = 0.0
    read: float = 0.0
    logs: float = 0.0


def width(shapes: Shapes, *names: str) -> int:
    """Return the numbers that one row of the named columns holds together."""
    return sum(prod(shapes[name]) for name in names)
