"""What objectives say they hold is what they hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rayal.selection.footprint import Shapes, width
from rayal.selection.greedy import LocalShards, Shard, choose
from rayal.selection.joint_entropy import JointEntropy
from rayal.selection.kcenter import KCenter
from rayal.selection.kmeans import KMeansPP
from rayal.selection.objective import Objective
from rayal.selection.tiles import Tile, cut_tiles, located
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
    for value in tile.state.values():
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
    m = objective.rows if isinstance(objective, KCenter) else K
    said = objective.footprint(SHAPES, ROWS, K).tile
    if isinstance(objective, KMeansPP):  # tiles race, and winners alone propose
        assert said == 8 * objective.rows
        return
    proposal = located(0, objective.propose(tile, m, 0))
    sent: list[Any] = [proposal.priority, proposal.keys, *proposal.columns.values()]
    assert sum(a.nbytes for a in sent) <= said <= 1.5 * sum(a.nbytes for a in sent) + 64


def test_k_center_by_hand() -> None:
    said = KCenter().footprint({"embedding": (768,)}, 1_000, 60)
    assert said.row == 8 + 8 + 4
    assert said.flops == 2 * 1_000 * 768 * (8 + 15)  # all meet the first, a quarter the others


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
