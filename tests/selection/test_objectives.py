"""The protocol: any number of shards, separate processes, bounded messages, exact folds."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Listener
from pathlib import Path
from typing import Any

import forked
import numpy as np
import numpy.typing as npt
import pytest
import torch

from rayal.selection import (
    Fisher,
    JointEntropy,
    KCenter,
    KMeansParallel,
    KMeansPP,
    Objective,
    TopK,
    UniformDraw,
    select_rows,
)
from rayal.selection.greedy import LocalShards, Shard, choose
from rayal.selection.objective import Commit, Progress
from rayal.selection.tiles import Proposal, Tile, cut_tiles
from rayal.selection.topk import UniformTile
from rayal.types import id_keys

OBJECTIVES: dict[str, tuple[Objective, int]] = {
    "topk": (TopK(), 40),
    "uniform": (UniformDraw(), 40),
    "kcenter": (KCenter(), 40),
    "kmeans": (KMeansPP(), 40),
    "kmeans-largest": (KMeansPP(first="largest"), 5),
    "joint": (JointEntropy(draws=60), 5),
    "fisher": (Fisher(), 5),
    "fisher-regression": (Fisher(log_probs=None, oversample=1), 5),
    "kmeans||": (KMeansParallel(rounds=2), 20),
}


def columns(n: int, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    members = rng.dirichlet(np.ones(3), size=(n, 4)).astype(np.float32)
    return {
        "score": rng.integers(0, 50, size=n).astype(np.float32),
        "embedding": rng.normal(size=(n, 6)).astype(np.float32),
        "residual": rng.normal(size=(n, 3)).astype(np.float32),
        "member_log_probs": np.log(members),
        "log_probs": np.log(members.mean(axis=1)),
    }


def rows_of(objective: Objective, data: Mapping[str, Any]) -> dict[str, Any]:
    return {n: data[n] for n in objective.needs} or {"score": data["score"]}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_shards_and_order_do_not_change_a_bit(name: str) -> None:
    objective, k = OBJECTIVES[name]
    n = 13_000
    ids = [f"item-{i}" for i in range(n)]
    data = rows_of(objective, columns(n))
    one = select_rows(objective, data, k, ids=ids, seed=5)
    order = np.random.default_rng(1).permutation(n)
    shuffled = {c: a[order] for c, a in data.items()}
    for shards in (2, 7):
        other = select_rows(
            objective, shuffled, k, ids=[ids[i] for i in order], seed=5, shards=shards
        )
        assert other.ids == one.ids
        assert other.scores.tobytes() == one.scores.tobytes()
    assert len(set(one.ids)) == k


@pytest.mark.parametrize("name", OBJECTIVES)
def test_all_rows_can_be_chosen(name: str) -> None:
    objective, _ = OBJECTIVES[name]
    data = rows_of(objective, columns(7))
    assert sorted(select_rows(objective, data, 7, seed=1).positions) == list(range(7))
    equal = {c: np.zeros_like(a) for c, a in data.items()}
    assert sorted(select_rows(objective, equal, 7, seed=1).positions) == list(range(7))


class Recorder:
    """Shards that remember how large their messages were."""

    def __init__(self, shards: LocalShards) -> None:
        self.shards = shards
        self.largest = 0

    def ask(self, request: bytes) -> list[bytes]:
        answers = self.shards.ask(request)
        self.largest = max(self.largest, len(request), *map(len, answers))
        return answers

    def tell(self, request: bytes) -> None:
        self.ask(request)

    def close(self) -> None:
        self.shards.close()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_messages_do_not_grow_with_the_pool(name: str) -> None:
    objective, k = OBJECTIVES[name]
    sizes = []
    for n in (5_000, 21_000):
        data = {c: torch.from_numpy(a) for c, a in rows_of(objective, columns(n)).items()}
        tiles = cut_tiles(np.arange(n, dtype=np.uint64), data)
        recorder = Recorder(LocalShards([Shard(objective, tiles, 3)]))
        choose(objective, recorder, k, seed=3)
        sizes.append(recorder.largest)
    assert sizes[1] <= sizes[0] * 1.1


def serve(connection: Any) -> None:
    torch.set_num_threads(1)
    objective, tiles, seed = pickle.loads(connection.recv_bytes())
    shard = Shard(objective, tiles, seed)
    while (request := connection.recv_bytes()) != b"stop":
        connection.send_bytes(shard.answer(request))


_SERVE = """
import sys
sys.path += sys.argv[2:]
from multiprocessing.connection import Client
from test_objectives import serve
serve(Client(sys.argv[1]))
"""


class ProcessShards:
    """Each shard in a process of its own, reached by a pipe."""

    def __init__(self, objective: Objective, held: list[list[Tile]], seed: int) -> None:
        with Listener(family="AF_UNIX") as listener:
            argv = ("-c", _SERVE, listener.address, *map(str, Path(__file__).parents[:2]))
            self.processes = [forked.start(*argv) for _ in held]
            self.pipes = [listener.accept() for _ in held]
        for pipe, tiles in zip(self.pipes, held, strict=True):
            pipe.send_bytes(pickle.dumps((objective, tiles, seed)))

    def ask(self, request: bytes) -> list[bytes]:
        for pipe in self.pipes:
            pipe.send_bytes(request)
        return [pipe.recv_bytes() for pipe in self.pipes]

    def close(self) -> None:
        for pipe in self.pipes:  # accepted in any order: a pipe's process is not known
            pipe.send_bytes(b"stop")
        assert [process.wait() for process in self.processes] == [0] * len(self.processes)


@pytest.fixture(scope="module")
def answers_in_processes() -> dict[str, tuple[Any, Any]]:
    """Run every objective with its shards in three processes, and in this one."""
    torch.set_num_threads(1)
    n, seed = 9_000, 11
    keys = np.sort(id_keys([f"row {i}" for i in range(n)]))
    everything = columns(n)
    together = _Switch(tuple(OBJECTIVES[name] for name in OBJECTIVES))
    data = {c: torch.from_numpy(a) for c, a in everything.items()}
    results = {}
    held = [cut_tiles(keys, data)[s::3] for s in range(3)]
    shards = ProcessShards(together, held, seed)
    try:
        for index, name in enumerate(OBJECTIVES):
            objective, k = OBJECTIVES[name]
            remote = choose(objective, _Channel(shards, index), k, seed=seed)
            local = LocalShards([Shard(objective, cut_tiles(keys, data), seed)])
            results[name] = (remote, choose(objective, local, k, seed=seed))
    finally:
        shards.close()
    return results


@dataclass(frozen=True)
class _Switch(Objective):
    """Holds several objectives, so that three processes serve all of them."""

    objectives: tuple[tuple[Objective, int], ...]

    def begin(self, tile: Tile, seed: int) -> None:
        tile.state = [
            Shard(o, [Tile(tile.keys, tile.columns, tile.eligible.copy())], seed)
            for o, _ in self.objectives
        ]

    def gain(self, tile: Tile) -> npt.NDArray[np.float64]:
        raise AssertionError("never asked")

    def summarize(self, tile: Tile, message: tuple[int, bytes]) -> list[tuple[int, bytes]]:
        index, request = message
        return [(tile.name, tile.state_as(list)[index].answer(request))]

    def combine(self, first: Any, second: Any) -> Any:
        return first + second

    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        return None


class _Channel:
    """Speaks to one of the switched objectives; every tile is a shard of its own."""

    def __init__(self, shards: ProcessShards, index: int) -> None:
        self.shards, self.index = shards, index

    def ask(self, request: bytes) -> list[bytes]:
        message = pickle.dumps(("summarize", (self.index, request)))
        parts = [pickle.loads(a) for a in self.shards.ask(message)]
        return [answer for part in parts if part for _, answer in part]

    def tell(self, request: bytes) -> None:
        self.ask(request)

    def close(self) -> None: ...


@pytest.mark.processes
@pytest.mark.parametrize("name", OBJECTIVES)
def test_three_processes_give_the_same_bits(
    name: str, answers_in_processes: dict[str, tuple[Any, Any]]
) -> None:
    remote, local = answers_in_processes[name]
    assert remote.keys.tobytes() == local.keys.tobytes()
    assert remote.scores.tobytes() == local.scores.tobytes()
    assert remote.runners_up.keys.tobytes() == local.runners_up.keys.tobytes()


@dataclass(frozen=True)
class Normalised(TopK):
    """Two columns scaled by their ranges over the pool, then added: needs a summary first."""

    def summarize(self, tile: Tile, message: Any) -> Any | None:
        if message is not None:
            tile.shared.state = message
            return None
        rows = tile.columns["score"][torch.from_numpy(tile.eligible)].numpy()
        return rows.min(axis=0), rows.max(axis=0)

    def combine(self, first: Any, second: Any) -> Any:
        return np.minimum(first[0], second[0]), np.maximum(first[1], second[1])

    def reduce(self, total: Any, progress: Progress) -> Any | None:
        return total

    def gain(self, tile: Tile) -> npt.NDArray[np.float64]:
        low, high = tile.shared.state_as(tuple)
        scaled = (tile.columns["score"].numpy() - low) / (high - low)
        return np.asarray(scaled.sum(axis=1), dtype=np.float64)


@pytest.mark.parametrize("shards", [1, 3])
def test_summaries_are_folded_and_come_back(shards: int) -> None:
    score = np.random.default_rng(2).normal(size=(9_000, 2)) * [1.0, 100.0]
    low, high = score.min(axis=0), score.max(axis=0)
    expected = np.argsort(-((score - low) / (high - low)).sum(axis=1))[:25]
    picks = select_rows(Normalised(), {"score": score}, 25, shards=shards).positions
    assert picks.tolist() == expected.tolist()


def test_state_of_another_kind_is_refused() -> None:
    tile = cut_tiles(np.arange(3, dtype=np.uint64), {"score": torch.arange(3.0)})[0]
    with pytest.raises(TypeError, match="Tile is NoneType, UniformTile is asked for"):
        tile.state_as(UniformTile)
    UniformDraw().begin(tile, 0)
    assert len(tile.state_as(UniformTile).uniform) == len(tile.keys)


def test_runners_up_are_the_best_rows_not_picked() -> None:
    tiles = cut_tiles(np.arange(100, dtype=np.uint64), {"score": torch.arange(100.0)})
    chosen = choose(TopK(), LocalShards([Shard(TopK(), tiles, 0)]), 5)
    assert chosen.keys.tolist() == [99, 98, 97, 96, 95]
    assert chosen.runners_up.keys.tolist() == list(range(94, 84, -1))


def test_rows_that_are_not_eligible_are_never_picked() -> None:
    eligible = np.arange(6000) % 2 == 0
    data = {c: torch.from_numpy(a) for c, a in columns(6000).items()}
    for objective, k in OBJECTIVES.values():
        tiles = cut_tiles(np.arange(6000, dtype=np.uint64), data, eligible)
        chosen = choose(objective, LocalShards([Shard(objective, tiles, 0)]), k)
        assert (chosen.keys % 2 == 0).all()


def test_tie_breakers_behind_the_score() -> None:
    score = np.array([[1.0, 0.0], [2.0, 1.0], [2.0, 3.0], [2.0, 2.0]])
    assert select_rows(TopK(), {"score": score}, 4).positions.tolist() == [2, 3, 1, 0]
