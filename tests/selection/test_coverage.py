"""The rows of a shard as one matrix, and bounds that hold whatever rows stand together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from rayal.selection.coverage import Coverage, Stack
from rayal.selection.threads import Room, Team
from rayal.selection.tiles import PAD, Tile, cut_tiles
from rayal.types import TILE_ROWS

ROWS = TILE_ROWS + 5 * PAD + 3


def matrix(offset: float = 0.0) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(ROWS, 16)) + offset).astype(np.float32)


def tiles(x: npt.NDArray[np.float32]) -> list[Tile]:
    keys = np.arange(len(x), dtype=np.uint64)
    return cut_tiles(keys, {"x": torch.from_numpy(x)}, np.arange(len(x)) % 5 != 0)


def test_a_stack_gathers_and_walks_its_rows() -> None:
    held = tiles(matrix())
    whole = torch.cat([tile.columns["x"] for tile in held])
    stack = Stack(held, "x")
    rows = np.array([0, 3, TILE_ROWS - 1, TILE_ROWS, len(stack) - 1])
    assert torch.equal(stack.gather(rows, torch.empty(5, 16)), whole[torch.from_numpy(rows)])
    seen = list(stack.blocks(slice(10, TILE_ROWS + 30), 1_000))
    assert torch.equal(torch.cat([x for _, x in seen]), whole[10 : TILE_ROWS + 30])
    assert [rows.start for rows, _ in seen] == [10, 1010, 2010, 3010, 4010, TILE_ROWS]
    held[1].drop(np.array([TILE_ROWS + 1], dtype=np.uint64))
    assert not stack.eligible[TILE_ROWS + 1]  # tiles hold views


def test_rows_side_by_side_in_memory_are_one_block() -> None:
    x = matrix()[: TILE_ROWS + 4 * PAD]
    assert len(list(Stack(tiles(x), "x").blocks(slice(0, len(x)), 1 << 20))) == 1


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_bounds_hold_and_the_top_is_exact(offset: float, threads: int) -> None:
    x, team = matrix(offset), Team(threads)
    cover, wide = Coverage(tiles(x), "x"), x.astype(np.float64)
    nearest = np.full(ROWS, np.inf)
    free = np.arange(ROWS) % 5 != 0
    for step in range(6):
        centres = np.arange(step * 40, step * 40 + 1 + 6 * step)
        cover.extend(torch.from_numpy(x[centres]))
        gaps = ((wide[:, None] - wide[centres][None]) ** 2).sum(axis=2)
        nearest = np.minimum(nearest, gaps.min(axis=1))
        threshold = -np.inf if step == 0 else 0.8 * float(nearest[free].max())
        cover.refresh(threshold, team)
        rows, bound = cover.top(20, threshold)
        assert (cover.upper[:ROWS][free] >= nearest[free] * (1 - 1e-12)).all()
        wanted = np.flatnonzero(free)[np.argsort(-nearest[free], kind="stable")]
        assert rows.tolist() == wanted[: len(rows)].tolist()
        assert cover.upper[rows] == pytest.approx(nearest[rows], rel=1e-12)
        assert bound is not None
        assert bound[0] >= nearest[wanted[len(rows)]] * (1 - 1e-12)
    team.close()


def test_equal_rows_are_at_distance_zero_exactly() -> None:
    x = np.tile(matrix()[:1], (300, 1))
    cover = Coverage(tiles(x), "x")
    cover.extend(torch.from_numpy(x[:1]))
    cover.refresh(-np.inf, Team(1))
    rows, bound = cover.top(10)
    assert cover.upper[rows].tolist() == [0.0] * 10
    assert rows.tolist() == [r for r in range(300) if r % 5][:10]
    assert bound == (0.0, 13)


def test_a_room_hands_out_the_same_memory() -> None:
    room = Room()
    first = room.take("a", 4, 5)
    assert room.take("a", 2, 3).data_ptr() == first.data_ptr()
    assert room.take("b", 2, 3).data_ptr() != first.data_ptr()
    assert room.take("a", 40, 5).shape == (40, 5)
