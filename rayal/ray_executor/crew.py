"""The crew: long-lived actors that train members and hold shards.

A fresh process pays seconds for loading torch, so workers stay from round to round. One that
stays reserves no core, or the scan between trainings could never run; instead the crew counts
slots itself: as many workers on a node as its cores and GPUs allow.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayal.engine.executor import RayOptions, open_share
from rayal.engine.train import Fit, FolderStore
from rayal.errors import ClusterError, RayalError, StorageError, WorkerError
from rayal.failpoints import failpoint
from rayal.learners.loop import Progress
from rayal.selection.greedy import Shard
from rayal.selection.objective import Objective
from rayal.types import Keys

Lost = RayActorError  # the error of a call whose worker, or the worker's node, is gone
_STEPS_EVERY = 10  # training steps between two reports


class Worker:
    """One process of the crew, which trains members and opens shards."""

    def __init__(self) -> None:
        self._shard: Shard | None = None
        weight = torch.zeros(
            1, requires_grad=True
        )  # torch loads seconds of modules at a first step
        torch.optim.SGD([weight], lr=0.1).step()

    def ready(self) -> bool:
        """Answer once torch is loaded."""
        return True

    def train(
        self, fit: Fit, store: FolderStore, resume: tuple[int, str] | None
    ) -> Iterator[tuple[Any, ...]]:
        """Train one member; yield ("step", done, total) and ("epoch", epoch, file, final).

        The ledger is the driver's: a file counts once the driver has recorded it.
        """
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        latest = [resume]

        def commit(epoch: int, file: str, final: bool) -> None:
            latest[0] = (epoch, file)
            events.put(("epoch", epoch, file, final))

        def report(stage: str, done: int, total: int) -> None:
            if done % _STEPS_EVERY == 0 or done == total:
                events.put(("step", done, total))

        def run() -> None:
            try:
                fit.train(store.member, store.recorded_by(lambda: latest[0], commit), report)
                events.put(None)
            except BaseException as error:
                events.put(error)

        threading.Thread(target=run, daemon=True).start()
        while (event := events.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def open(
        self,
        objective: Objective,
        paths: Sequence[Path],
        excluded: Keys,
        seed: int,
        threads: int,
        device: str,
    ) -> None:
        """Hold the tiles of column parts, memory-mapped or on a GPU, until the next selection."""
        torch.set_num_threads(threads)
        tiles = open_share(objective, paths, excluded, seed, device=device)
        self._shard = Shard(objective, tiles, seed, threads=threads)

    def answer(self, request: bytes) -> bytes:
        """Answer one request of the greedy."""
        failpoint("shard.answer")
        if self._shard is None:
            raise RuntimeError("no shard is open on this worker")
        return self._shard.answer(request)

    def tell(self, request: bytes) -> None:
        """Take in one request of the greedy."""
        self.answer(request)

    def close(self) -> None:
        """Drop the tiles."""
        if self._shard is not None:
            self._shard.close()
        self._shard = None


class Crew:
    """The workers of a run, by slot.

    Args:
        options: settings of Ray.
        threads: torch threads of a model; a slot has as many cores unless ``member_cpus`` is set.

    Raises:
        ClusterError: no node has room for one worker.
    """

    def __init__(self, options: RayOptions, threads: int) -> None:
        self.options = options
        self._cpus = options.member_cpus or threads
        self._actors: dict[int, Any] = {}
        self._nodes: dict[int, str] = {}
        self._slots()

    def __len__(self) -> int:
        """Return the largest number of workers: the slots of all nodes that live."""
        return sum(self._slots().values())

    def start(self, count: int) -> None:
        """Start those of the first ``count`` workers that are missing."""
        for slot in range(count):
            if slot not in self._actors:
                self.replace(slot)

    def wait(self) -> None:
        """Wait until the workers that were started can work."""
        ray.get([actor.ready.remote() for actor in list(self._actors.values())])

    def __getitem__(self, slot: int) -> Any:
        """Return the actor of a slot."""
        return self._actors[slot]

    def replace(self, slot: int) -> None:
        """End a slot's worker, if it lives, and start another where there is most room."""
        self.end(slot)
        room = self._slots()
        room.subtract(node for node in self._nodes.values() if node in room)
        node = max(room, key=lambda name: (room[name], name))
        self._nodes[slot] = node
        self._actors[slot] = (
            ray.remote(Worker)
            .options(
                num_cpus=0,
                num_gpus=self.options.member_gpus,
                max_restarts=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),
            )
            .remote()
        )

    def end(self, slot: int) -> None:
        """End a slot's worker."""
        actor = self._actors.pop(slot, None)
        self._nodes.pop(slot, None)
        if actor is not None:
            ray.kill(actor, no_restart=True)

    def release(self) -> None:
        """End workers that hold a GPU, which the next stage may want."""
        if self.options.member_gpus:
            self.close()

    def close(self) -> None:
        """End all workers."""
        for slot in list(self._actors):
            self.end(slot)

    def _slots(self) -> Counter[str]:
        """Return the number of workers that each living node has room for; one at least has."""
        slots: Counter[str] = Counter()
        for node in ray.nodes():
            resources = node["Resources"]
            room = math.floor(resources.get("CPU", 0.0) / self._cpus)
            if self.options.member_gpus:
                room = min(room, math.floor(resources.get("GPU", 0.0) / self.options.member_gpus))
            if node["Alive"] and room:
                slots[node["NodeID"]] = room
        if not slots:
            raise ClusterError(
                f"a worker needs {self._cpus:g} CPUs and {self.options.member_gpus:g} GPUs, and no "
                f"node has them: the cluster has {_resources()}; lower model.threads_per_model, "
                "ray.member_cpus or ray.member_gpus, or add nodes"
            )
        return slots


def cause_of(error: BaseException) -> BaseException:
    """Return rayal's own error behind what Ray raised, else the error itself."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, RayalError):
        cause = seen.cause if isinstance(seen, RayTaskError) else None
        seen = cause if cause is not None and cause is not seen else seen.__cause__
    return seen if seen is not None else error


def _resources() -> str:
    resources = ray.cluster_resources()
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs in all"


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
        fit: what the members have in common; it travels once to each node.
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
