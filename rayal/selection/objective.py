"""One greedy for every joint choice, over any number of shards.

The driver broadcasts a message, every shard answers for its own tiles, the answers fold
associatively, the objective decides, the decision is broadcast. All arithmetic on rows happens on
tiles of fixed shape, every fold is exact (a maximum, a merge of sorted rows), ties and draws use
the item's key: so picks are the same bits for one shard or many, in any order of answers.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.types import TILE_ROWS, Keys

Floats = npt.NDArray[np.float64]
PAD = 64  # rows of a tile are a multiple of this, so that matrix products never become GEMV


@dataclass
class Tile:
    """A fixed run of rows in key order, with the running arrays of one selection.

    Attributes:
        keys: uint64 ``[T]``; padding rows have key 0 and are not eligible.
        columns: name to tensor ``[T, …]``, padding rows are zero.
        eligible: bool ``[T]``, rows that may be picked.
        state: what the objective keeps per row.
        shared: what the objective keeps once per shard.
    """

    keys: Keys
    columns: Mapping[str, Tensor]
    eligible: npt.NDArray[np.bool_]
    state: dict[str, Any] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> int:
        """The tile's own key: that of its first row, the same wherever the tile lives."""
        return int(self.keys[0])


@dataclass(frozen=True)
class Proposal:
    """Rows that a shard offers, best first.

    Attributes:
        priority: float64 ``[m, P]``, compared from left to right, larger first.
        keys: uint64 ``[m]``; the smaller key wins a tie.
        columns: what the driver needs of these rows, ``[m, …]``.
        bound: (priority, key) of the best row that was left out; None when none was.
    """

    priority: Floats
    keys: Keys
    columns: Mapping[str, npt.NDArray[Any]]
    bound: tuple[tuple[float, ...], int] | None = None

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Commit:
    """What the driver decided, broadcast to every shard.

    Attributes:
        keys: uint64 ``[b]``, the picks, in order; they stop being eligible.
        scores: float64 ``[b]``, each pick's value when it was picked.
        columns: what the shards need to update their state.
    """

    keys: Keys
    scores: Floats
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Progress:
    """The driver's side of one selection: how far it is, and what the objective remembers."""

    k: int
    seed: int
    step: int = 0
    keys: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> int:
        """How many picks are missing."""
        return self.k - len(self.keys)


@dataclass(frozen=True)
class Chosen:
    """The result of a selection.

    Attributes:
        keys: uint64 ``[k]`` in pick order.
        scores: float64 ``[k]``.
        runners_up: the best rows not picked, under the state after the last pick.
    """

    keys: Keys
    scores: Floats
    runners_up: Proposal


class Objective(ABC):
    """How k items are chosen together; frozen, its running arrays live in ``tile.state``."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns of the pool's rows that the objective reads."""
        return ()

    @property
    def context(self) -> tuple[str, ...]:
        """Columns of labeled and pending rows that the objective reads."""
        return ()

    def block(self, progress: Progress) -> int:
        """Return how many proposals the next step wants."""
        return progress.left

    def begin(self, tile: Tile, seed: int) -> None:
        """Set up ``tile.state``; called once per tile."""

    def summarize(self, tile: Tile, message: Any) -> Any | None:
        """Return the tile's part of a global quantity; None when nothing is asked."""
        return None

    def combine(self, first: Any, second: Any) -> Any:
        """Fold two parts; must be exactly associative and commutative (max, min, integers)."""
        raise TypeError(f"{type(self).__name__} summarizes but defines no fold")

    def reduce(self, total: Any, progress: Progress) -> Any | None:
        """Turn the folded parts into the next message; None ends the phase."""
        return None

    @abstractmethod
    def gain(self, tile: Tile) -> Floats:
        """Return each row's present value, ``[T]`` or ``[T, P]`` with tie-breakers behind."""

    def propose(self, tile: Tile, m: int, step: int) -> Proposal:
        """Return the tile's best m eligible rows."""
        return best_rows(tile, self.gain(tile), m, self.needs)

    def fold(self, proposals: Sequence[Proposal], m: int) -> Proposal:
        """Merge proposals into one of at most m rows."""
        return merge_rows(proposals, m)

    def open(self, context: Mapping[str, npt.NDArray[Any]], progress: Progress) -> list[Commit]:
        """Return commits (without picks) that tell the shards about labeled and pending rows."""
        return []

    @abstractmethod
    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Decide on the folded proposals; None ends the selection."""

    def receive(self, shared: dict[str, Any], commit: Commit) -> None:
        """Keep, once per shard, what a commit brings."""

    def commit(self, tile: Tile, commit: Commit) -> None:
        """Update the tile's running state."""


def best_rows(tile: Tile, gain: Floats, m: int, columns: Sequence[str] = ()) -> Proposal:
    """Return a tile's m best eligible rows by (gain, tie-breakers, key), and the bound."""
    rows = np.flatnonzero(tile.eligible)
    priority = np.asarray(gain, dtype=np.float64).reshape(len(tile.keys), -1)
    if len(rows) > 2 * m + 2:  # cut first by the leading value; ties at the cut stay in
        lead = priority[rows, 0]
        cut = np.partition(lead, len(lead) - m - 1)[len(lead) - m - 1]
        rows = rows[lead >= cut]
    order = _order(priority[rows], tile.keys[rows])
    rows = rows[order]
    kept = rows[:m]
    bound = None
    if len(rows) > m:
        bound = (tuple(priority[rows[m]].tolist()), int(tile.keys[rows[m]]))
    index = torch.from_numpy(kept)
    sent = {name: tile.columns[name][index].numpy() for name in columns}
    return Proposal(priority[kept], tile.keys[kept], sent, bound)


def merge_rows(proposals: Sequence[Proposal], m: int) -> Proposal:
    """Merge sorted proposals and keep the m best; associative, so shards may fold first."""
    if len(proposals) == 1 and len(proposals[0]) <= m:
        return proposals[0]
    priority = np.concatenate([p.priority for p in proposals])
    keys = np.concatenate([p.keys for p in proposals])
    order = _order(priority, keys)
    kept = order[:m]
    bounds = [p.bound for p in proposals if p.bound is not None]
    if len(order) > m:
        cut = order[m]
        bounds.append((tuple(priority[cut].tolist()), int(keys[cut])))
    names = proposals[0].columns
    sent = {n: np.concatenate([p.columns[n] for p in proposals])[kept] for n in names}
    bound = max(bounds, key=lambda b: (b[0], -b[1])) if bounds else None
    return Proposal(priority[kept], keys[kept], sent, bound)


def _order(priority: Floats, keys: Keys) -> npt.NDArray[np.int64]:
    """Return row positions, best first: larger priority from left to right, then smaller key."""
    by = (keys, *(-priority[:, c] for c in reversed(range(priority.shape[1]))))
    return np.lexsort(by)


class Shards(Protocol):
    """The holders of the tiles: in this process, other processes, or actors."""

    def ask(self, request: bytes) -> list[bytes]:
        """Send one request to every shard and return their answers, in any order."""


class Shard:
    """One holder of whole tiles; it speaks bytes, wherever it runs.

    Args:
        objective: the frozen objective.
        tiles: the tiles this shard owns.
        seed: the query seed.
    """

    def __init__(self, objective: Objective, tiles: Sequence[Tile], seed: int) -> None:
        self._objective = objective
        self._tiles = list(tiles)
        self._shared: dict[str, Any] = {}
        for tile in self._tiles:
            tile.shared = self._shared
            tile.state = {}
            objective.begin(tile, seed)

    def answer(self, request: bytes) -> bytes:
        """Return the answer to one encoded request."""
        verb, *arguments = pickle.loads(request)
        handlers: dict[str, Callable[..., Any]] = {
            "summarize": self._summarize,
            "propose": self._propose,
            "runners_up": self._runners_up,
            "commit": self._commit,
        }
        return pickle.dumps(handlers[verb](*arguments), protocol=5)

    def _summarize(self, message: Any) -> Any | None:
        total = None
        for tile in self._tiles:
            part = self._objective.summarize(tile, message)
            if part is not None:
                total = part if total is None else self._objective.combine(total, part)
        return total

    def _propose(self, m: int, step: int) -> Proposal | None:
        proposals = [self._objective.propose(tile, m, step) for tile in self._tiles]
        return self._objective.fold(proposals, m) if proposals else None

    def _runners_up(self, m: int) -> Proposal | None:
        rows = [best_rows(tile, self._objective.gain(tile), m) for tile in self._tiles]
        return merge_rows(rows, m) if rows else None

    def _commit(self, commit: Commit) -> None:
        self._objective.receive(self._shared, commit)
        for tile in self._tiles:
            tile.eligible &= ~np.isin(tile.keys, commit.keys)
            self._objective.commit(tile, commit)


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
        report: called with (picks done, k) after each step.
    """
    progress = Progress(k=k, seed=seed)

    def ask(*request: Any) -> list[Any]:
        answers = shards.ask(pickle.dumps(request, protocol=5))
        return [a for a in map(pickle.loads, answers) if a is not None]

    _exchange_sums(objective, ask, progress)
    for opening in objective.open(context or {}, progress):
        ask("commit", opening)
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
        ask("commit", decided)
        if report is not None:
            report(len(progress.keys), k)
    rest = ask("runners_up", runners_up)
    return Chosen(
        np.array(progress.keys, dtype=np.uint64),
        np.array(progress.scores, dtype=np.float64),
        merge_rows(rest, runners_up) if rest else Proposal(np.zeros((0, 1)), _NO_KEYS, {}),
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


def cut_tiles(
    keys: Keys, columns: Mapping[str, Tensor], eligible: npt.NDArray[np.bool_] | None = None
) -> list[Tile]:
    """Cut rows, already in key order, into tiles of TILE_ROWS padded to a multiple of PAD."""
    tiles = []
    for start in range(0, len(keys), TILE_ROWS):
        stop = min(start + TILE_ROWS, len(keys))
        pad = -(stop - start) % PAD
        mask = np.ones(stop - start, dtype=bool) if eligible is None else eligible[start:stop]
        tiles.append(
            Tile(
                np.pad(keys[start:stop], (0, pad)),
                {n: _pad(c[start:stop], pad) for n, c in columns.items()},
                np.pad(mask, (0, pad)),
            )
        )
    return tiles


def _pad(column: Tensor, rows: int) -> Tensor:
    if rows == 0:
        return column
    return torch.cat([column, column.new_zeros((rows, *column.shape[1:]))])
