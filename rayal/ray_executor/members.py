"""Members on the crew: trained side by side, and begun again from their last epoch when lost."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from rayal.engine.train import Fit, FolderStore
from rayal.errors import StorageError, WorkerError
from rayal.learners.loop import Progress
from rayal.ray_executor.crew import Crew, Lost, cause_of


def train_members(
    crew: Crew,
    fit: Fit,
    members: Sequence[int],
    stores: Mapping[int, FolderStore],
    *,
    quorum: int,
    progress: Progress | None = None,
) -> tuple[int, ...]:
    """Train members on the crew, as many at a time as there are slots.

    Args:
        crew: the workers.
        fit: the training that the members share; it travels once to each node.
        members: those to train.
        stores: member to its checkpoints; recorded here, as the workers write them.
        quorum: members that suffice; the caller counts those that are returned as lost.
        progress: called with ("train", steps done, steps of all members).

    Returns:
        Members whose workers were lost more often than ``restarts``.

    Raises:
        RayalError: what training itself raised; it is not repeated.
    """
    training = _Training(crew, ray.put(fit), fit.members, stores, progress)
    try:
        return training.run(members)
    finally:
        training.stop()
        crew.release()


class _Training:
    """The members in training, and the slots they hold."""

    def __init__(
        self,
        crew: Crew,
        fit: Any,
        members: int,
        stores: Mapping[int, FolderStore],
        progress: Progress | None,
    ) -> None:
        self._crew, self._fit, self._stores = crew, fit, stores
        self._members, self._progress = members, progress
        # event stream -> (slot, member, the checkpoint that it goes on from)
        self._running: dict[Any, tuple[int, int, tuple[int, str] | None]] = {}
        self._losses: Counter[int] = Counter()
        self._steps: dict[int, int] = {}
        self._waiting: deque[int] = deque()
        self._given_up: list[int] = []

    def run(self, members: Sequence[int]) -> tuple[int, ...]:
        self._waiting.extend(members)
        slots = min(len(self._crew), len(members))
        self._crew.start(slots)
        free = list(range(slots))
        self._steps = dict.fromkeys(range(self._members), 0)
        while self._waiting or self._running:
            while free and self._waiting:
                self._begin(free.pop(0), self._waiting.popleft())
            stall = self._crew.options.stall
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=stall)
            if not ready:
                raise WorkerError(
                    f"no member made a step for {stall:g} s (ray.stall); look at the nodes, then "
                    "run the same command again: it goes on from the last epochs"
                )
            for stream in ready:
                if self._over(stream):
                    slot = self._running.pop(stream)[0]
                    free.append(slot)
        return tuple(self._given_up)

    def stop(self) -> None:
        """End the workers that still train: an error or Ctrl-C came first."""
        for slot, *_ in self._running.values():
            self._crew.end(slot)

    def _begin(self, slot: int, member: int) -> None:
        store = self._stores[member]
        resume = store.committed()
        train = self._crew[slot].train.options(num_returns="streaming")
        stream = train.remote(self._fit, store.unrecorded(), resume)
        self._running[stream] = (slot, member, resume)

    def _over(self, stream: Any) -> bool:
        """Take in the next event of a member; return whether its slot is free again."""
        slot, member, resume = self._running[stream]
        try:
            event = ray.get(next(stream))
        except StopIteration:
            return True
        except Lost:
            self._crew.replace(slot)
            self._losses[member] += 1
            if self._losses[member] > self._crew.options.restarts:
                self._given_up.append(member)
            else:
                self._waiting.appendleft(member)
            return True
        except ray.exceptions.RayError as error:
            cause = cause_of(error)
            if isinstance(cause, StorageError) and self._stores[member].committed() != resume:
                self._waiting.appendleft(member)  # another driver has replaced that file meanwhile
                return True
            raise cause from None
        self._take_in(member, *event)
        return False

    def _take_in(self, member: int, kind: str, *values: Any) -> None:
        if kind == "epoch":
            self._stores[member].commit(*values)
        elif self._progress is not None:
            done, total = values
            self._steps[member] = done
            self._progress("train", sum(self._steps.values()), total * self._members)
