"""Columns on another device: nothing but one function of ours brings them back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from foreign_device import AWAY, Foreign, ForeignDevice
from test_objectives import OBJECTIVES, columns, rows_of

from rayal.errors import SettingsError
from rayal.selection import KCenter, KMeansPP, Objective, TwoRoundKCenter, k_center
from rayal.selection.devices import checked_device, to_device, to_host
from rayal.selection.greedy import Chosen, LocalShards, Shard, choose
from rayal.selection.tiles import cut_tiles
from rayal.selection.topk import MinMaxMixture

N = 5000
ALL: dict[str, tuple[Objective, int]] = {
    **OBJECTIVES,
    "two-round": (TwoRoundKCenter(), 10),
    "kmeans-log-probs": (KMeansPP(log_probs="log_probs"), 40),
    "mixture": (MinMaxMixture(weight=0.3), 40),
}


def chosen_on(device: torch.device, objective: Objective, k: int, data: dict[str, Any]) -> Chosen:
    keys = np.arange(N, dtype=np.uint64)
    tensors = {n: to_device(c, torch.device("cpu")) for n, c in rows_of(objective, data).items()}
    tiles = [tile.to(device) for tile in cut_tiles(keys, tensors)]
    assert {t.device for t in tiles} == {device}
    context = {n: data[n][:3] for n in objective.context}
    shards = LocalShards([Shard(objective, tiles[s::2], 5) for s in range(2)])
    return choose(objective, shards, k, seed=5, context=context)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shifted", [False, True], ids=["centred", "far"])
def test_every_objective_keeps_to_its_device(name: str, shifted: bool) -> None:
    objective, k = ALL[name]
    data: dict[str, Any] = columns(N)
    if name == "mixture":
        data["score"] = data["embedding"][:, :2].copy()
    data["embedding"][10:20] = data["embedding"][:10]  # rows at distance 0 of others
    if shifted:
        data["embedding"] += np.float32(1000.0)
    here = chosen_on(torch.device("cpu"), objective, k, data)
    with ForeignDevice() as device:
        there = chosen_on(AWAY, objective, k, data)
    assert np.array_equal(here.keys, there.keys)
    assert np.array_equal(here.scores, there.scores)
    assert device.operations > 2 or name == "uniform"


def test_what_a_gpu_refuses_is_refused() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    with ForeignDevice():
        away = x.to(AWAY)
        assert isinstance(away, Foreign) and away.device == AWAY
        assert torch.equal((away @ away.T).cpu(), x @ x.T)
        assert float(away.sum()) == 15.0 and away.new_zeros(2).device == AWAY
        assert np.array_equal(to_host(away), x.numpy())
        for forbidden in (
            lambda: away + x,
            lambda: x[torch.nonzero(away[0] > 0)[:, 0]],
            lambda: away.index_select(0, torch.tensor([1])),
            lambda: away.numpy(),
            lambda: np.asarray(away),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                forbidden()


@pytest.mark.parametrize("name", ["tpu", "cuda:x", ""])
def test_devices_that_do_not_exist(name: str) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        checked_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(SettingsError, match="this process finds 0 CUDA devices; use device cpu"):
        k_center(np.eye(4, dtype=np.float32), 2, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ALL)
def test_a_gpu_chooses_as_the_cpu(name: str) -> None:
    objective, k = ALL[name]
    data: dict[str, Any] = columns(N)
    here = chosen_on(torch.device("cpu"), objective, k, data)
    there = chosen_on(torch.device("cuda", 0), objective, k, data)
    assert np.array_equal(here.keys, there.keys)
    np.testing.assert_allclose(here.scores, there.scores, rtol=1e-5)


def test_a_lone_tile_is_where_its_columns_are() -> None:
    (tile,) = cut_tiles(np.arange(3, dtype=np.uint64), {"embedding": torch.ones(3, 2)})
    assert tile.to(torch.device("cpu")) is tile
    with ForeignDevice():
        moved = tile.to(AWAY)
        shard = Shard(KCenter(), [moved], 0)
        assert moved.device == AWAY and tile.device.type == "cpu"
        shard.close()
