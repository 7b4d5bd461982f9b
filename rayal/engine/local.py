"""The local executor: parts, members and shards inside this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from rayal.engine.shards import open_tiles
from rayal.selection.greedy import LocalShards, Shard
from rayal.selection.objective import Objective, Tile
from rayal.types import Keys

A = TypeVar("A")
B = TypeVar("B")


def map_parts(function: Callable[[A], B], parts: Sequence[A]) -> Iterator[B]:
    """Yield the function's result for each part, as it is done."""
    yield from map(function, parts)


def start_shards(
    objective: Objective, paths: Sequence[Path], excluded: Keys, *, seed: int, count: int
) -> LocalShards:
    """Return ``count`` shards in this process, each holding whole parts.

    Args:
        objective: how rows are chosen together.
        paths: committed column parts.
        excluded: uint64, keys of items that may not be chosen.
        seed: the query seed.
        count: number of shards; the picks do not depend on it.
    """
    held: list[list[Tile]] = [[] for _ in range(count)]
    for index, path in enumerate(paths):
        held[index % count] += open_tiles(path, objective.needs, excluded)
    return LocalShards([Shard(objective, tiles, seed) for tiles in held if tiles])
