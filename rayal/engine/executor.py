"""Where the work runs: the three functions of an executor; Ray is imported when asked for.

Whatever the executor, the same parts are scanned, the same members are trained and the same picks
are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from annotated_types import Ge

from rayal.engine.local import map_parts, start_shards
from rayal.engine.member import train_members
from rayal.pool.reader import Part
from rayal.selection.greedy import Shards
from rayal.selection.objective import Objective
from rayal.types import Keys

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
    """How Ray is used.

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


def open_executor(
    name: str,
    options: RayOptions,
    *,
    threads: int = 1,
    members: int = 1,
    shared: Path | None = None,
) -> AbstractContextManager[Executor]:
    """Return a context manager that gives an executor: ``local`` or ``ray``.

    Args:
        name: which one.
        options: how Ray is used.
        threads: torch threads of a model.
        members: of the largest committee; 0 where nothing is to be trained.
        shared: the storage root, which every node of a cluster must see.
    """
    if name == "local":
        return nullcontext(LOCAL)
    from rayal.ray_executor.cluster import connect

    return connect(options, threads=threads, members=members, shared=shared)
