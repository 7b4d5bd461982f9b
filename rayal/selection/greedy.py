"""One greedy for every joint choice, over any number of shards.

The driver broadcasts a message, every shard answers for its own tiles, the answers fold
associatively, the objective decides, the decision is broadcast. All arithmetic on rows happens on
tiles of fixed shape, every fold is exact (a maximum, a merge of sorted rows), ties and draws use
the item's key: so picks are the same bits for one shard or many, in any order of answers.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from rayal.selection.objective import Objective
from rayal.selection.progress import Commit, Progress
from rayal.selection.threads import Team
from rayal.selection.tiles import Floats, Proposal, Shared, Tile, best_rows, merge_rows
from rayal.types import Keys


@dataclass(frozen=True)
class Chosen:
    """The result of a selection.

    Attributes:
        keys: uint64 ``[k]`` in pick order.
        scores: float64 ``[k]``.
        runners_up: the best rows not picked, by their last computed gain; where gains are
            evaluated lazily (joint entropy) that is an upper bound.
        drawn: what the objective drew beforehand, by name.
        notes: what it noted for the strategy's memory, by name.
    """

    keys: Keys
    scores: Floats
    runners_up: Proposal
    drawn: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


class Shards(Protocol):
    """The holders of the tiles: in this process, other processes, or actors."""

    def ask(self, request: bytes) -> list[bytes]:
        """Send one request to every shard and return their answers, in any order."""

    def tell(self, request: bytes) -> None:
        """Send one request whose answers nobody wants; later ones see what it did."""

    def close(self) -> None:
        """Let go of the tiles."""


class Shard:
    """One holder of whole tiles; it speaks bytes, wherever it runs.

    Args:
        objective: the frozen objective.
        tiles: the tiles this shard owns.
        seed: the query seed.
        threads: tiles worked on at once; the answers do not depend on it.
    """

    def __init__(
        self, objective: Objective, tiles: Sequence[Tile], seed: int, *, threads: int = 1
    ) -> None:
        self._objective = objective
        self._tiles = list(tiles)
        device = self._tiles[0].device if self._tiles else torch.device("cpu")
        self._shared = Shared(device)
        self._team = Team(threads)
        for tile in self._tiles:
            tile.shared = self._shared
            tile.state = None
        if self._tiles:
            objective.prepare(self._tiles, seed, self._team)

    def answer(self, request: bytes) -> bytes:
        """Return the answer to one encoded request."""
        verb, *arguments = pickle.loads(request)
        handlers: dict[str, Callable[..., Any]] = {
            "summarize": self._summarize,
            "propose": self._propose,
            "runners_up": self._runners_up,
            "commit": self._commit,
            "count": self._count,
        }
        return pickle.dumps(handlers[verb](*arguments), protocol=5)

    def _summarize(self, message: Any) -> Any | None:
        total, at_once = None, self._team.threads
        for start in range(0, len(self._tiles), at_once):  # or every tile's sum would be held
            some = self._tiles[start : start + at_once]
            for part in self._team.map(lambda t: self._objective.summarize(t, message), some):
                if part is not None:
                    total = part if total is None else self._objective.combine(total, part)
        return total

    def _propose(self, m: int, step: int) -> Proposal | None:
        if not self._tiles:
            return None
        return self._objective.offer(self._tiles, m, step, self._team)

    def _runners_up(self, m: int) -> Proposal | None:
        if not self._tiles:
            return None
        self._objective.settle(self._tiles, m, self._team)
        rows = [best_rows(tile, self._objective.gain(tile), m) for tile in self._tiles]
        return replace(merge_rows(rows, m), columns={})

    def _count(self) -> int:
        return sum(int(np.count_nonzero(tile.eligible)) for tile in self._tiles)

    def _commit(self, commit: Commit) -> None:
        if not self._tiles:
            return
        self._objective.receive(self._shared, commit)

        def update(tile: Tile) -> None:
            tile.drop(commit.keys)
            self._objective.commit(tile, commit)

        self._team.map(update, self._tiles)

    def close(self) -> None:
        """End the shard's threads."""
        self._team.close()


def count(shards: Shards) -> int:
    """Return how many rows of all shards may be chosen."""
    return sum(map(pickle.loads, shards.ask(pickle.dumps(("count",), protocol=5))))


def choose(
    objective: Objective,
    shards: Shards,
    k: int,
    *,
    seed: int = 0,
    context: Mapping[str, npt.NDArray[Any]] | None = None,
    runners_up: int = 10,
    report: Callable[[int, int], None] | None = None,
) -> Chosen:
    """Run the greedy to k picks, or until the objective finds no more.

    Args:
        objective: how rows are chosen together.
        shards: the holders of the tiles.
        k: number of picks.
        seed: seeds every draw.
        context: columns of labeled and pending rows, ``[L, …]``, in key order.
        runners_up: how many of the best rows not picked to return.
        report: called with (picks done, picks of the greedy) after each step.
    """
    goal, state = objective.target(k), objective.driver_state()
    progress = Progress(k=k, seed=seed, goal=goal, state=state)

    def ask(*request: Any) -> list[Any]:
        answers = shards.ask(pickle.dumps(request, protocol=5))
        return [a for a in map(pickle.loads, answers) if a is not None]

    _exchange_sums(objective, ask, progress)
    for opening in objective.open(context or {}, progress):
        shards.tell(pickle.dumps(("commit", opening), protocol=5))
    while progress.left > 0:
        m = objective.block(progress)
        answers = ask("propose", m, progress.step)
        proposal = objective.fold(answers, m) if answers else None
        decided = objective.merge(proposal, progress) if proposal is not None else None
        if decided is None:
            break
        decided = replace(
            decided, keys=decided.keys[: progress.left], scores=decided.scores[: progress.left]
        )
        progress.keys.extend(decided.keys.tolist())
        progress.scores.extend(decided.scores.tolist())
        progress.step += 1
        shards.tell(pickle.dumps(("commit", decided), protocol=5))
        if report is not None:
            report(len(progress.keys), max(k, progress.goal))
    kept = objective.finish(progress)
    rest = ask("runners_up", runners_up) if runners_up else []
    others = merge_rows(rest, runners_up) if rest else Proposal(np.zeros((0, 1)), _NO_KEYS, {})
    return Chosen(
        np.array(progress.keys, dtype=np.uint64)[kept],
        objective.reported(np.array(progress.scores, dtype=np.float64)[kept]),
        replace(others, priority=objective.reported(others.priority)),
        objective.drawn(),
        objective.notes(progress),
    )


_NO_KEYS: Keys = np.zeros(0, dtype=np.uint64)


def _exchange_sums(objective: Objective, ask: Callable[..., list[Any]], progress: Progress) -> None:
    message = None
    while parts := ask("summarize", message):
        total = parts[0]
        for part in parts[1:]:
            total = objective.combine(total, part)
        message = objective.reduce(total, progress)
        if message is None:
            return


class LocalShards:
    """Shards in this process; still every message passes as bytes."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards

    def ask(self, request: bytes) -> list[bytes]:
        """Ask each shard in turn."""
        return [shard.answer(request) for shard in self._shards]

    def tell(self, request: bytes) -> None:
        """Tell each shard in turn."""
        self.ask(request)

    def close(self) -> None:
        """Let go of the shards."""
        for shard in self._shards:
            shard.close()
        self._shards = ()
