"""Shards on the crew: each worker holds whole parts, memory-mapped, for one selection.

A shard is rebuilt from its parts and the requests it had answered, in their order; what it holds
is a function of both, so picks do not depend on who died when.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from rayal.errors import WorkerError
from rayal.ray_executor.crew import Crew, Lost, cause_of
from rayal.selection.objective import Objective
from rayal.types import Keys

_SHARED = 64 << 10  # bytes above which a message goes to the object store, once for all shards


def start_shards(
    crew: Crew,
    objective: Objective,
    paths: Sequence[Path],
    excluded: Keys,
    *,
    seed: int,
    count: int,
    threads: int,
    device: str = "cpu",
) -> RayShards:
    """Return shards on the crew, one for each worker that gets a part.

    Args:
        crew: the workers.
        objective: the joint choice of rows.
        paths: committed column parts.
        excluded: uint64, keys of items that may not be chosen.
        seed: the query seed.
        count: the local executor's; here every worker is a shard, and the picks are the same.
        threads: torch threads.
        device: where a worker holds its columns; for cuda it needs a share of a GPU.
    """
    shards = max(1, min(len(crew), len(paths)))
    crew.start(shards)
    shares = [list(paths[n::shards]) for n in range(shards)]
    rest = (ray.put(excluded), seed, threads, device)
    return RayShards(crew, [(objective, share, *rest) for share in shares])


class RayShards:
    """The shards of one selection.

    Args:
        crew: the workers; the first ones hold the shards.
        openings: arguments with which each shard is opened.
    """

    def __init__(self, crew: Crew, openings: Sequence[tuple[Any, ...]]) -> None:
        self._crew, self._openings = crew, openings
        self._log: list[Any] = []
        self._told: list[list[Any]] = [[crew[n].open.remote(*o)] for n, o in enumerate(openings)]
        self._lost = 0

    def ask(self, request: bytes) -> list[bytes]:
        """Send one request to every shard and return their answers."""
        sent = _shared(request)
        answers = [self._crew[n].answer.remote(sent) for n in range(len(self._openings))]
        received = [self._received(n, answer, sent) for n, answer in enumerate(answers)]
        self._log.append(sent)
        return received

    def tell(self, request: bytes) -> None:
        """Send one request and go on: a worker takes requests in their order."""
        sent = _shared(request)
        for n in range(len(self._openings)):
            self._told[n].append(self._crew[n].tell.remote(sent))
        self._log.append(sent)

    def close(self) -> None:
        """Make the workers drop their tiles."""
        for n in range(len(self._openings)):
            self._crew[n].close.remote()

    def _received(self, n: int, answer: Any, sent: Any) -> bytes:
        while True:
            try:
                *_, received = ray.get([*self._told[n], answer])
                self._told[n] = []
                return bytes(received)
            except Lost:
                answer = self._rebuilt(n, sent)
            except ray.exceptions.RayError as error:
                raise cause_of(error) from None

    def _rebuilt(self, n: int, sent: Any) -> Any:
        """Open a lost shard on a new worker, repeat what it was told, and ask again."""
        self._lost += 1
        if self._lost > self._crew.options.restarts:
            raise WorkerError(
                f"the workers of shards were lost {self._lost} times in one selection, "
                f"{self._crew.options.restarts} are allowed (ray.restarts); look at the memory of "
                "the nodes, and run the same command again: the scan is kept"
            )
        self._crew.replace(n)
        worker = self._crew[n]
        opened = worker.open.remote(*self._openings[n])
        self._told[n] = [opened, *(worker.tell.remote(request) for request in self._log)]
        return worker.answer.remote(sent)


def _shared(request: bytes) -> Any:
    return ray.put(request) if len(request) > _SHARED else request
