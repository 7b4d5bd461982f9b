"""The local executor: parts, members and shards inside this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rayal.engine.shards import open_tiles
from rayal.pool.reader import Part
from rayal.selection.devices import checked_device
from rayal.selection.greedy import LocalShards, Shard
from rayal.selection.objective import Objective
from rayal.selection.threads import cores
from rayal.selection.tiles import Tile
from rayal.types import Keys


def map_parts(
    job: Any, parts: Sequence[Part], *, threads: int, report: Callable[[int], None]
) -> Iterator[Any]:
    """Yield the job's result for each part, as it is done.

    Args:
        job: what is done with a part.
        parts: the parts.
        threads: the caller has set them.
        report: called with the rows of each finished batch.
    """
    for part in parts:
        yield job.part(part, report)


def start_shards(
    objective: Objective,
    paths: Sequence[Path],
    excluded: Keys,
    *,
    seed: int,
    count: int,
    threads: int,
    device: str = "cpu",
) -> LocalShards:
    """Return ``count`` shards in this process, each holding whole parts.

    Args:
        objective: how rows are chosen together.
        paths: committed column parts.
        excluded: uint64, keys of items that may not be chosen.
        seed: the query seed.
        count: number of shards; the picks do not depend on it.
        threads: of a model; tiles take every core that there is.
        device: where they hold the columns.
    """
    shares = [
        open_share(objective, paths[n::count], excluded, seed, device=device) for n in range(count)
    ]
    held = [tiles for tiles in shares if tiles]
    return LocalShards([Shard(objective, tiles, seed, threads=cores()) for tiles in held])


def open_share(
    objective: Objective, paths: Sequence[Path], excluded: Keys, seed: int, *, device: str = "cpu"
) -> list[Tile]:
    """Return the tiles of the parts of one shard, of candidates alone where those are a sample.

    Raises:
        SettingsError: this process does not have the device.
    """
    there = checked_device(device)
    needs = objective.needs
    more: Any = {"share": objective.share, "seed": seed}
    return [tile.to(there) for path in paths for tile in open_tiles(path, needs, excluded, **more)]
