"""The executor: three functions that say where parts, members and shards are worked on.

Whatever the executor, the same parts are scanned, the same members are trained and the same picks
are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from annotated_types import Ge

from rayal.engine.columns import open_tiles
from rayal.engine.train import train_members
from rayal.pool.reader import Part
from rayal.selection.devices import checked_device
from rayal.selection.greedy import LocalShards, Shard, Shards
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
    filled = [tiles for tiles in shares if tiles]
    return LocalShards([Shard(objective, tiles, seed, threads=cores()) for tiles in filled])


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


T_co = TypeVar("T_co", covariant=True)


class PartJob(Protocol[T_co]):
    """Work on one part of a pool; it pickles, and may be repeated."""

    def part(self, part: Part, report: Callable[[int], None] | None = None) -> T_co:
        """Do it, calling ``report`` with the rows of each finished batch."""


class MapParts(Protocol):
    """Yields a job's result for each part, in any order."""

    def __call__(
        self,
        job: PartJob[Any],
        parts: Sequence[Part],
        *,
        threads: int,
        report: Callable[[int], None],
    ) -> Iterator[Any]:
        """Work on parts, ``threads`` torch threads each, reporting finished rows."""


class StartShards(Protocol):
    """Opens column parts for one selection."""

    def __call__(
        self,
        objective: Objective,
        paths: Sequence[Path],
        excluded: Keys,
        *,
        seed: int,
        count: int,
        threads: int,
        device: str = "cpu",
    ) -> Shards:
        """Return the holders of the tiles."""


@dataclass(frozen=True)
class Executor:
    """Three functions: how parts are mapped, members trained, shards opened.

    Args:
        name: local or ray.
        map_parts: works on parts.
        train_members: trains members of a committee.
        start_shards: opens the holders of the columns.
        workers: processes that work at the same time.
    """

    name: str
    map_parts: MapParts
    train_members: Callable[..., Sequence[int]]
    start_shards: StartShards
    workers: int = 1


LOCAL = Executor("local", map_parts, train_members, start_shards)


@dataclass(frozen=True)
class RayOptions:
    """Options of Ray: which cluster, and what a worker gets of it.

    Args:
        address: ``local`` starts a cluster on this machine for the run and ends it; ``auto`` is
            the cluster this process runs in; else HOST:PORT of a running one.
        cpus: cores of a cluster that is started; None takes all of the machine.
        member_cpus: cores of one member in training; None takes threads_per_model.
        member_gpus: GPUs of one member in training; a fraction shares one.
        scanner_cpus: cores of one scanning worker; None takes threads_per_model.
        scanner_gpus: GPUs of one scanning worker; then decoding runs apart, on cores.
        staged: decode and forward as two stages; None where a GPU scans.
        restarts: how often the worker of one part, member or shard may be lost.
        stall: seconds without progress after which the run stops.
    """

    address: str = "local"
    cpus: Annotated[int, Ge(1)] | None = None
    member_cpus: float | None = None
    member_gpus: float = 0.0
    scanner_cpus: float | None = None
    scanner_gpus: float = 0.0
    staged: bool | None = None
    restarts: Annotated[int, Ge(0)] = 3
    stall: float = 1800.0
