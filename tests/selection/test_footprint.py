"""What objectives say they hold is what they hold."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from rayal.selection.fisher import Fisher, sizes_of
from rayal.selection.fisher_algebra import class_factors
from rayal.selection.footprint import Shapes, width
from rayal.selection.greedy import LocalShards, Shard, choose
from rayal.selection.joint_entropy import JointEntropy
from rayal.selection.kcenter import KCenter
from rayal.selection.kcenter_tworound import TwoRoundKCenter
from rayal.selection.kmeans import KMeansPP
from rayal.selection.kmeans_parallel import KMeansParallel
from rayal.selection.objective import Commit, Objective
from rayal.selection.tiles import PAD, Tile, cut_tiles, located
from rayal.selection.topk import TopK, UniformDraw
from rayal.types import TILE_ROWS

ROWS, K = TILE_ROWS + 64, 4
SHAPES: Shapes = {
    "score": (),
    "embedding": (12,),
    "residual": (5,),
    "log_probs.0": (5,),
    "member_log_probs": (3, 5),
}
OBJECTIVES: list[Objective] = [
    TopK(),
    UniformDraw(),
    KCenter(),
    KMeansPP(),
    KMeansPP(log_probs="log_probs.0"),
    KMeansPP(residual=None),
    JointEntropy(draws=50),
    TwoRoundKCenter(),
    KMeansParallel(rounds=2, oversampling=1.0),
    KMeansParallel(log_probs="log_probs.0", rounds=2),
    KMeansParallel(residual=None, rounds=2),
    Fisher(log_probs="log_probs.0"),
    Fisher(log_probs="log_probs.0", rank=2),
    Fisher(log_probs="log_probs.0", block_diagonal=True),
    Fisher(log_probs=None),
]


def tiles() -> list[Tile]:
    rng = np.random.default_rng(0)
    columns: dict[str, torch.Tensor] = {}
    for name, shape in SHAPES.items():
        x = torch.from_numpy(rng.normal(size=(ROWS, *shape)))
        columns[name] = x if name == "score" else x.float()
        if "log_probs" in name:
            columns[name] = columns[name].log_softmax(dim=-1)
    return cut_tiles(np.arange(ROWS, dtype=np.uint64), columns)


def kept(tile: Tile) -> int:
    """Return the bytes of the arrays in a tile's state, each once, columns apart."""
    columns = {c.data_ptr() for c in tile.columns.values()}
    held: dict[int, int] = {}
    state: Any = tile.state
    names = [] if state is None else [field.name for field in dataclasses.fields(state)]
    for value in (getattr(state, name) for name in names):
        if isinstance(value, np.ndarray):
            held[value.__array_interface__["data"][0]] = value.nbytes
        elif isinstance(value, torch.Tensor) and value.data_ptr() not in columns:
            held[value.data_ptr()] = value.nbytes
    return sum(held.values())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_bytes_per_row_are_those_of_the_state(objective: Objective) -> None:
    cut = tiles()
    shard = Shard(objective, cut, seed=0)
    choose(objective, LocalShards([shard]), K, seed=0, runners_up=0)
    said = objective.footprint(SHAPES, ROWS, K)
    assert sum(map(kept, cut)) == ROWS * said.row


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_bytes_per_tile_hold_a_proposal(objective: Objective) -> None:
    tile = tiles()[0]
    Shard(objective, [tile], seed=0)
    said = objective.footprint(SHAPES, ROWS, K).tile
    if type(objective) is KCenter:  # a shard proposes, not its tiles
        assert said == 0
        return
    if isinstance(objective, KMeansParallel):  # a count of each candidate, three times
        found = 1 + objective.rounds * objective.oversampling * K
        assert said == max(8 * objective.rows, 24 * found)
        return
    if isinstance(objective, KMeansPP):  # tiles race, and winners alone propose
        assert said == 8 * objective.rows
        return
    if isinstance(objective, Fisher):
        objective.commit(tile, restart(objective))
    proposal = located(0, objective.propose(tile, K, 0))
    sent: list[Any] = [proposal.priority, proposal.keys, *proposal.columns.values()]
    if isinstance(objective, TwoRoundKCenter):  # what the part sends, without where it lies
        part = objective.footprint(SHAPES, ROWS, K).part
        assert part == sum(a.nbytes for n, a in proposal.columns.items() if n != "tile") + 16 * K
        return
    if isinstance(objective, Fisher):  # the greedy asks for one row at a time
        assert said == sum(a[:1].nbytes for a in sent)
        return
    assert sum(a.nbytes for a in sent) <= said <= 1.5 * sum(a.nbytes for a in sent) + 64


def test_k_center_by_hand() -> None:
    said = KCenter().footprint({"embedding": (768,)}, 1_000, 60)
    assert said.row == 8 + 4 + 4 + 1
    assert said.flops == 2 * 1_000 * 768 * (1 + 45)  # all meet the first, three quarters the others
    # a block of rows three times, products with 256 centres, 64 bytes per row of a part
    assert said.transient == 12 * 2**20 + 4 * 256 * 1_365 + 64 * 1_000


def test_k_means_by_hand() -> None:
    shapes: Shapes = {"log_probs.0": (10,), "embedding": (96,)}
    said = KMeansPP(log_probs="log_probs.0").footprint(shapes, 1_000, 100)
    assert said.row == 8 + 8 + 8 + 4 * 10
    assert said.flops == 2 * 1_000 * 106 * (100 + 8 * 3)


def test_joint_entropy_by_hand() -> None:
    said = JointEntropy(draws=1_000).footprint({"member_log_probs": (20, 10)}, 8_192, 5)
    # after 1, 2, 3 picks 10, 100, 1,000 configurations, exact: two blocks of 16 rows in two tiles;
    # after the fourth 1,000 are sampled, and a third of the rows is evaluated
    pairs = 10 * (2 * 2 * 16 * 1_110 + 8_192 * 1_000 / 3)
    assert said.flops == pytest.approx(2 * 20 * pairs)
    assert said.logs == pytest.approx(pairs + 2 * 8_192 * 200)


def test_width_counts_numbers_of_a_row() -> None:
    assert width(SHAPES, "member_log_probs", "embedding", "score") == 15 + 12 + 1


def restart(objective: Fisher) -> Commit:
    """Return the opening commit of the greedy, for matrices that are not the pool's."""
    classes = 1 if objective.log_probs is None else SHAPES["log_probs.0"][0]
    parts, size, _ = sizes_of(classes, objective.rank, objective.block_diagonal)
    matrix = np.tile(np.eye(size * SHAPES["embedding"][0]), (parts, 1, 1))
    return Commit(np.zeros(0, np.uint64), np.zeros(0), {"inverse": matrix, "middle": matrix})


@pytest.mark.parametrize(("rank", "diagonal"), [(0, False), (2, False), (9, False), (0, True)])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_sizes_are_those_of_the_factors(classes: int, rank: int, diagonal: bool) -> None:
    made = class_factors(torch.zeros((3, classes)), rank, diagonal)
    assert sizes_of(classes, rank, diagonal) == tuple(made.shape[1:])


def test_fisher_by_hand() -> None:
    shapes: Shapes = {"log_probs": (3,), "embedding": (4,)}
    said = Fisher().footprint(shapes, 1_000, 10)
    # Q = w = 2: position, 4 of the embedding, 4 of B, and two forms of 4 numbers
    assert said.row == 8 * (1 + 4 + 4 + 2 * 4)
    blocks, matrix = 8 * 3 * 4 * 4, 8 * 8 * 8
    assert said.shard == 2 * matrix
    assert said.summing == 3 * blocks + 4_096 * 8 * (2 * 2 * 2 + 4)
    # twenty picks forward, each kept with B and embedding, and its change of 8 x 2 numbers
    assert said.driver == 6 * matrix + blocks + 20 * 8 * (4 + 4) + 20 * 8 * 8 * 2
    # Z and W, 4 columns: by h into 2 x 4 numbers, by B; two updates, Cholesky, solve and product
    pick = 2 * 4 * 2 * 4 + 2 * 2 * 2 * 4 + 2 * 2 * 2**3 + 4 * 2**3
    opening = 2 * 2 * 3 * 4 * 4  # two matrices, three pairs of classes
    assert said.flops == pytest.approx(2 * 1_000 * (20 * pick + 1.5 * opening))


def test_a_block_diagonal_fisher_by_hand() -> None:
    shapes: Shapes = {"log_probs": (100,), "embedding": (512,)}
    said = Fisher(block_diagonal=True).footprint(shapes, 1_000, 10)
    # position, 512 of the embedding, and of each class the factor and two forms
    assert said.row == 8 * (1 + 512 + 100 + 2 * 100)
    matrix = 8 * 100 * 512 * 512  # 210 MB, not the 20 GB of all classes together
    assert said.shard == 2 * matrix
    assert said.summing == 3 * matrix + 4_096 * 8 * (2 * 100 + 512)
    assert said.driver == 7 * matrix + 20 * 8 * (100 + 512) + 20 * 8 * 512 * 100
    pick = 100 * (2 * 2 * 512 + 2 * 2 + 8)  # Z and W, one column each of every class
    assert said.flops == pytest.approx(2 * 1_000 * (20 * pick + 1.5 * 4 * 100 * 512 * 512))
    exact = Fisher().footprint(shapes, 1_000, 10)
    assert exact.driver > 90 * said.driver and exact.shard > 90 * said.shard


def test_a_shard_holds_no_more_sums_than_it_has_threads() -> None:
    held, most = 0, 0

    class Counted(Fisher):
        def summarize(self, tile: Tile, message: Any) -> Any:
            nonlocal held, most
            held += 1
            most = max(most, held)
            return super().summarize(tile, message)

        def combine(self, first: Any, second: Any) -> Any:
            nonlocal held
            held -= 1
            return super().combine(first, second)

    columns = tiles()[0].columns
    few = {n: columns[n][: 8 * PAD] for n in ("log_probs.0", "embedding")}
    keys = np.arange(8 * PAD, dtype=np.uint64)
    cut = [
        Tile(keys[at : at + PAD], {n: c[at : at + PAD] for n, c in few.items()}, np.full(PAD, True))
        for at in range(0, len(keys), PAD)
    ]
    shard = Shard(Counted(log_probs="log_probs.0"), cut, seed=0)
    shard.answer(pickle.dumps(("summarize", None)))
    assert most == 2  # the sum so far, and one tile's


def test_two_rounds_by_hand() -> None:
    one = KCenter().footprint({"embedding": (8,)}, 200_000, 60)
    said = TwoRoundKCenter().footprint({"embedding": (8,)}, 200_000, 60)
    assert said.part == 60 * (4 * 8 + 8 + 8)
    assert said.transient == one.transient + 16_384 * (17 + 1)  # a part's rows a second time
    last = KCenter().footprint({"embedding": (8,)}, 13 * 60, 60)  # of 13 parts
    assert said.driver == last.driver + 780 * 18
    assert said.flops == one.flops + last.flops


def test_k_means_parallel_by_hand() -> None:
    shapes: Shapes = {"log_probs.0": (10,), "embedding": (96,)}
    made = KMeansParallel(log_probs="log_probs.0", rounds=5, oversampling=2.0)
    said = made.footprint(shapes, 5_000, 100)
    assert said.row == 8 + 8 + 8 + 8 + 4 * 10
    assert said.tile == 3 * 8 * 1_001  # 1 + 5 x 200 candidates
    assert said.flops == 2 * 5_000 * 106 * (1_001 + 100 + 8)
    few = made.footprint(shapes, 500, 100)
    assert few.tile == 3 * 8 * 500  # no more than there are rows
