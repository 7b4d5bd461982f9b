"""The batched kernels against one pass per pick, over tiles, shards, threads and awkward data."""

from __future__ import annotations

from typing import Any

import forked
import numpy as np
import numpy.typing as npt
import pytest
import torch

from rayal.selection import KCenter, KMeansPP, k_center, kmeans_plus_plus, select_rows
from rayal.selection.coverage import Coverage
from rayal.selection.distances import apart
from rayal.selection.greedy import LocalShards, Shard, choose
from rayal.selection.objective import Objective
from rayal.selection.threads import Team
from rayal.selection.tiles import cut_tiles
from rayal.types import TILE_ROWS

ROWS = 2 * TILE_ROWS + 700


def clustered(spread: float = 0.3, offset: float = 0.0, rows: int = ROWS) -> npt.NDArray[Any]:
    """Return clusters ``[N, 64]`` of different sizes, on which blocks of picks are short."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 64))
    which = np.minimum(rng.geometric(0.08, size=rows) - 1, 39)
    x = centres[which] + spread * rng.normal(size=(rows, 64)) + offset
    return np.asarray(x, dtype=np.float32)


def one_by_one(x: npt.NDArray[Any], first: int, k: int) -> tuple[list[int], npt.NDArray[Any]]:
    """Return farthest-first picks by one pass over all rows per pick, and the last distances."""
    wide = x.astype(np.float64)
    nearest = ((wide - wide[first]) ** 2).sum(axis=1)
    picks = [first]
    while len(picks) < k:
        picks.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, ((wide - wide[picks[-1]]) ** 2).sum(axis=1))
    return picks, nearest


@pytest.mark.parametrize("shards", [1, 2, 7])
@pytest.mark.parametrize(
    "data",
    [
        clustered(),
        clustered(spread=1.0),
        clustered(offset=100.0),
        np.repeat(clustered(rows=900), 9, 0),
    ],
    ids=["clustered", "wide", "far from zero", "copies"],
)
def test_k_center_is_the_one_by_one_sequence(data: npt.NDArray[Any], shards: int) -> None:
    picks = k_center(data, 250, seed=3, shards=shards)
    wanted, _ = one_by_one(data, int(picks[0]), 250)
    assert picks.tolist() == wanted


def chosen(objective: Objective, columns: dict[str, torch.Tensor], threads: int) -> Any:
    keys = np.arange(ROWS, dtype=np.uint64)
    shard = Shard(objective, cut_tiles(keys, columns), 1, threads=threads)
    shards = LocalShards([shard])
    try:
        return choose(objective, shards, 120, seed=1, runners_up=10)
    finally:
        shards.close()


@pytest.mark.parametrize("objective", [KCenter(), KMeansPP()], ids=["k-center", "k-means++"])
def test_threads_change_no_bit(objective: Objective) -> None:
    rng = np.random.default_rng(2)
    residual = torch.from_numpy(rng.normal(size=(ROWS, 5))).float()
    columns = {"embedding": torch.from_numpy(clustered()), "residual": residual}
    one = chosen(objective, columns, 1)
    for threads in (2, 3):
        more = chosen(objective, columns, threads)
        assert more.keys.tolist() == one.keys.tolist()
        assert more.scores.tobytes() == one.scores.tobytes()
        assert more.runners_up.keys.tolist() == one.runners_up.keys.tolist()


@pytest.mark.parametrize("shards", [1, 2, 7])
def test_k_center_scores_are_the_distances_of_differences_to_the_bit(shards: int) -> None:
    x = clustered(spread=1.0)
    found = select_rows(KCenter(), {"embedding": x}, 200, seed=3, shards=shards)
    wide = x[found.positions].astype(np.float64)
    for i in range(1, 200):
        gaps = apart(np.broadcast_to(wide[i], (i, x.shape[1])), wide[:i])
        assert found.scores[i] == np.sqrt(gaps.min())


@pytest.mark.parametrize("objective", [KCenter(), KMeansPP()], ids=["k-center", "k-means++"])
def test_where_tiles_lie_in_memory_changes_no_bit(objective: Objective) -> None:
    rng = np.random.default_rng(4)
    residual = torch.from_numpy(rng.normal(size=(ROWS, 5))).float()
    columns = {"embedding": torch.from_numpy(clustered()), "residual": residual}
    keys = np.arange(ROWS, dtype=np.uint64)
    apart_ = cut_tiles(keys, columns)
    for tile in apart_[::-1]:
        tile.columns = {n: torch.cat([c[:1], c])[1:] for n, c in tile.columns.items()}
    made = []
    for tiles in (cut_tiles(keys, columns), apart_[::-1]):
        shards = LocalShards([Shard(objective, tiles, 1)])
        made.append(choose(objective, shards, 120, seed=1))
    assert made[0].keys.tobytes() == made[1].keys.tobytes()
    assert made[0].scores.tobytes() == made[1].scores.tobytes()
    assert made[0].runners_up.keys.tobytes() == made[1].runners_up.keys.tobytes()


_PEAK = """
import resource, sys, torch
from rayal.selection import k_center, kmeans_plus_plus
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
x = torch.empty(200_000, 256).normal_(generator=torch.Generator().manual_seed(0))
a = torch.empty(200_000, 10).normal_(generator=torch.Generator().manual_seed(1))
k_center(x[:5000], 20), kmeans_plus_plus(a[:5000], x[:5000], 20)
before = peak()
k_center(x, 60) if sys.argv[1] == "k-center" else kmeans_plus_plus(a, x, 60)
print(peak() - before)
"""


@pytest.mark.measured
@pytest.mark.processes
@pytest.mark.parametrize("kernel", ["k-center", "k-means++"])
def test_a_kernel_takes_little_besides_its_columns(kernel: str) -> None:
    done = forked.run("-c", _PEAK, kernel)
    assert int(done.stdout) < 80_000  # kB; the columns are 213 MB


def test_the_runners_up_of_k_center_are_up_to_date() -> None:
    x = clustered()
    found = chosen(KCenter(), {"embedding": torch.from_numpy(x)}, 1)
    _, nearest = one_by_one(x, int(found.keys[0]), 120)
    order = np.argsort(-nearest, kind="stable")[:10]
    assert found.runners_up.keys.tolist() == order.tolist()
    assert found.runners_up.priority[:, 0] == pytest.approx(np.sqrt(nearest[order]), rel=1e-5)


def test_k_center_looks_at_few_rows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    x, seen, lowest = clustered(), 0, Coverage._lowest

    def counted(self: Coverage, rows: Any, x: torch.Tensor, first: int, out: Any) -> None:
        nonlocal seen
        seen += len(x) * (self.count - first)
        lowest(self, rows, x, first, out)

    monkeypatch.setattr(Coverage, "_lowest", counted)
    chosen(KCenter(), {"embedding": torch.from_numpy(x)}, 1)
    assert ROWS < seen < 0.8 * ROWS * 120  # one pass per pick looks at ROWS x 120 pairs


def test_k_means_draws_of_copies_have_no_mass() -> None:
    x = np.repeat(clustered(rows=30), 300, axis=0)
    picks = kmeans_plus_plus(np.ones((len(x), 1)), x, 30, seed=5)
    assert sorted(p // 300 for p in picks.tolist()) == list(range(30))


def test_a_team_keeps_the_order_and_torch_threads() -> None:
    team, before = Team(3), torch.get_num_threads()
    try:
        assert team.map(lambda i: (i, torch.get_num_threads()), range(20)) == [
            (i, 1) for i in range(20)
        ]
    finally:
        team.close()
    assert torch.get_num_threads() == before
