"""Columns held in bf16: half the bytes, the picks of the rounded values, and never unnamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import rayal
from rayal.bench.data import log_probabilities, mixture, residuals
from rayal.errors import SettingsError
from rayal.selection import (
    Fisher,
    KCenter,
    KMeansParallel,
    KMeansPP,
    Objective,
    TopK,
    TwoRoundKCenter,
    k_center,
    kmeans_plus_plus,
    select_rows,
)
from rayal.selection.quality import covering_radius
from rayal.selection.threads import Team
from rayal.selection.tiles import Tile, cut_tiles

N, D = 9_000, 64
JOINT: dict[str, tuple[Objective, int]] = {
    "kcenter": (KCenter(), 60),
    "two-round": (TwoRoundKCenter(), 60),
    "kmeans": (KMeansPP(log_probs="log_probs"), 60),
    "kmeans||": (KMeansParallel(log_probs="log_probs", rounds=2), 20),
    "sampled": (KCenter(share=0.3), 60),
    "bait": (Fisher(), 3),
}


def data_of(objective: Objective, *, width: int = D) -> dict[str, Tensor]:
    every = {"embedding": mixture(N, width, 3), "log_probs": log_probabilities(N, 4, 3)}
    return {n: every[n] for n in objective.needs}


def rounded(data: dict[str, Tensor]) -> dict[str, Tensor]:
    """The float32 values of the columns that may be narrow, rounded: the oracle's input."""
    return {n: c.bfloat16().float() if n == "embedding" else c for n, c in data.items()}


def test_a_hand_computed_rounding() -> None:
    # 8 bits: 257 lies between 256 and 258 and goes to the even one
    x = np.array([[0.0], [256.0], [257.0], [-100.0]], dtype=np.float32)
    (tile,) = cut_tiles(np.arange(4, dtype=np.uint64), {"x": torch.from_numpy(x).bfloat16()})
    assert tile.columns["x"].dtype == torch.float32
    assert tile.columns["x"][:4, 0].tolist() == [0.0, 256.0, 256.0, -100.0]
    assert tile.rows("x", np.array([2, 0]))[:, 0].tolist() == [256.0, 0.0]
    assert tile.rows("x", 3).tolist() == [-100.0] and tile.stored["x"].dtype == torch.bfloat16
    # from 0, the farthest of 256 and 257 is 257; rounded they tie, and the smaller position wins
    centre = np.zeros((1, 1), dtype=np.float32)
    assert k_center(x, 2, labeled=centre).tolist() == [2, 3]
    assert k_center(x, 2, labeled=centre, precision="bf16").tolist() == [1, 3]


@pytest.mark.parametrize("name", JOINT)
def test_picks_are_those_of_the_rounded_values(name: str) -> None:
    objective, k = JOINT[name]
    data = data_of(objective, width=D if name != "bait" else 8)
    context = {n: data[n][:5].clone() for n in objective.context}
    ids = [f"row-{i}" for i in range(N)]
    oracle = select_rows(objective, rounded(data), k, context=rounded(context), ids=ids, seed=2)
    order = np.random.default_rng(0).permutation(N)
    for shards in (1, 2, 7):
        made = select_rows(
            objective, data, k, context=context, ids=ids, seed=2, shards=shards, precision="bf16"
        )
        assert made.ids == oracle.ids and np.array_equal(made.scores, oracle.scores)
    shuffled = {n: c[order] for n, c in data.items()}
    moved = select_rows(
        objective, shuffled, k, context=context, ids=[ids[i] for i in order], seed=2, shards=2,
        precision="bf16",
    )  # fmt: skip
    assert moved.ids == oracle.ids and np.array_equal(moved.scores, oracle.scores)
    exact = select_rows(objective, data, k, context=context, ids=ids, seed=2)
    assert exact.scores.tolist() != oracle.scores.tolist(), "rounding moved nothing: a weak case"


def test_bf16_stays_as_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Tile] = []
    prepare = KCenter.prepare

    def noting(self: KCenter, tiles: Sequence[Tile], seed: int, team: Team) -> None:
        held.extend(tiles)
        prepare(self, tiles, seed, team)

    monkeypatch.setattr(KCenter, "prepare", noting)
    x = mixture(N, D, 1)
    given = k_center(x.bfloat16(), 30)
    assert {t.stored["embedding"].dtype for t in held} == {torch.bfloat16}
    assert sum(t.stored["embedding"].nbytes for t in held) == 2 * D * sum(len(t.keys) for t in held)
    held.clear()
    assert np.array_equal(k_center(x.bfloat16(), 30, precision="fp32"), given)
    assert {t.stored["embedding"].dtype for t in held} == {torch.float32}
    held.clear()
    assert np.array_equal(k_center(x, 30, precision="bf16"), given)
    assert {t.stored["embedding"].dtype for t in held} == {torch.bfloat16}


def test_probabilities_and_residuals_stay_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Tile] = []
    begin = KMeansPP.begin

    def noting(self: KMeansPP, tile: Tile, seed: int) -> None:
        held.append(tile)
        begin(self, tile, seed)

    monkeypatch.setattr(KMeansPP, "begin", noting)
    a, h = residuals(N, 4, 2), mixture(N, D, 2)
    picks = kmeans_plus_plus(a, h, 20, precision="bf16")
    assert np.array_equal(picks, kmeans_plus_plus(a, h.bfloat16(), 20))
    for tile in held:
        assert tile.stored["residual"].dtype == torch.float32
        assert tile.stored["embedding"].dtype == torch.bfloat16


def test_rounding_is_named() -> None:
    columns: dict[str, Any] = {"log_probs": log_probabilities(500, 4, 0)}
    columns["embedding"] = mixture(500, D, 0)
    made = rayal.select("badge", columns, 10, precision="bf16")
    assert made.approximation == {"precision": "bf16", "candidates": 500, "of": 500}
    both = rayal.select("coreset", columns, 10, precision="bf16", params={"candidates": 100})
    assert both.approximation is not None
    assert both.approximation["precision"] == "bf16" and both.approximation["candidates"] < 200
    assert rayal.select("badge", columns, 10).approximation is None
    assert rayal.select("margin", columns, 10, precision="bf16").approximation is None
    given = {**columns, "embedding": columns["embedding"].bfloat16()}
    assert rayal.select("badge", given, 10).ids == made.ids


def test_unknown_precisions_are_refused() -> None:
    x: npt.NDArray[np.float32] = np.eye(4, dtype=np.float32)
    with pytest.raises(SettingsError, match="precision 'fp16' does not exist"):
        k_center(x, 2, precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="precision 'half' does not exist"):
        select_rows(TopK(), {"score": x[0]}, 2, precision="half")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_radius_moves_by_at_most_two_in_a_thousand(seed: int) -> None:
    x = mixture(20_000, 128, seed)
    keys = np.arange(len(x), dtype=np.uint64)
    tiles = cut_tiles(keys, {"embedding": x})
    radius = {}
    for precision in ("fp32", "bf16"):
        picks = k_center(x, 200, seed=seed, precision=precision)
        radius[precision] = covering_radius(tiles, "embedding", x.numpy()[picks])
    assert radius["bf16"] == pytest.approx(radius["fp32"], rel=2e-3)
