"""The kernels on anyone's arrays: no Ray, no project, numpy arrays and torch tensors alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.errors import BudgetError, NeedsError, SettingsError, nearest
from rayal.selection.arrays import Array, as_tensor, checked_keys, checked_numbers
from rayal.selection.devices import Precision, checked_device, checked_precision, to_host
from rayal.selection.greedy import LocalShards, Shard, choose
from rayal.selection.joint_entropy import JointEntropy
from rayal.selection.kcenter import KCenter
from rayal.selection.kcenter_tworound import TwoRoundKCenter
from rayal.selection.kmeans import First, KMeansPP
from rayal.selection.kmeans_parallel import KMeansParallel
from rayal.selection.objective import Objective
from rayal.selection.sampling import candidates_of, share_of, wider
from rayal.selection.tiles import Tile, cut_tiles
from rayal.selection.topk import TopK
from rayal.types import Selection, id_keys

Positions = npt.NDArray[np.int64]
KCenterMethod = Literal["exact", "two_round"]
KMeansMethod = Literal["exact", "kmeans||"]


def top_k(scores: Array, k: int, *, ids: Sequence[str] | None = None, shards: int = 1) -> Positions:
    """Return the positions of the k largest scores, best first; ties go to the smaller id key.

    Args:
        scores: ``[N]``.
        k: number of picks, at most N.
        ids: N distinct ids; without them a row's key is its position.
        shards: number of shards in this process; the result does not depend on it.

    Raises:
        ScoreError: a score is NaN.
        BudgetError: k is negative or larger than N.
    """
    return select_rows(TopK(), {"score": scores}, k, ids=ids, shards=shards).positions


def k_center(
    embeddings: Array,
    k: int,
    *,
    labeled: Array | None = None,
    method: KCenterMethod = "exact",
    candidates: int | None = None,
    precision: Precision | None = None,
    device: str = "cpu",
    ids: Sequence[str] | None = None,
    seed: int = 0,
    shards: int = 1,
) -> Positions:
    """Return k positions by farthest-first traversal (Gonzalez 1985), in pick order.

    Args:
        embeddings: ``[N, D]``.
        k: number of picks.
        labeled: ``[L, D]``, centres that are there already; without them the first centre is a
            uniform draw by the seed.
        method: exact (a 2-approximation of the smallest covering radius), or two_round: greedy in
            every run of a sixteenth of the rows (4,096 to 16,384), greedy on the union (Malkomes
            et al. 2015), within 4 times.
        candidates: None for all rows, else about how many, drawn uniformly, may be picked.
        precision: of the embeddings while they are held, see ``select_rows``.
        device: cpu or cuda.
        ids: N distinct ids, which break ties; rows are sorted by their keys inside.
        seed: seeds the first centre.
        shards: number of shards in this process; the result does not depend on it.
    """
    context = None if labeled is None else {"embedding": labeled}
    columns = {"embedding": embeddings}
    _known("method", method, get_args(KCenterMethod))
    kind = KCenter if method == "exact" else TwoRoundKCenter
    objective = kind(share=share_of(candidates, _length(embeddings), k))
    how: Any = {"precision": precision, "device": device}
    return select_rows(
        objective, columns, k, context=context, ids=ids, seed=seed, shards=shards, **how
    ).positions


def kmeans_plus_plus(
    residuals: Array,
    embeddings: Array,
    k: int,
    *,
    first: First = "norm",
    method: KMeansMethod = "exact",
    rounds: int = 5,
    oversampling: float = 2.0,
    candidates: int | None = None,
    precision: Precision | None = None,
    device: str = "cpu",
    ids: Sequence[str] | None = None,
    seed: int = 0,
    shards: int = 1,
) -> Positions:
    """Return k positions by k-means++ draws on residual ⊗ embedding rows (BADGE, Ash et al. 2020).

    Args:
        residuals: ``[N, C]``, p - e_y of each row.
        embeddings: ``[N, D]``.
        k: number of picks.
        first: the first centre: in proportion to the squared norm, uniform, or the largest norm.
        method: exact in law, or kmeans|| (Bahmani et al. 2012): few passes, another law.
        rounds: passes of kmeans|| that draw.
        oversampling: rows that such a pass draws, as a multiple of k.
        candidates: None for all rows, else about how many, drawn uniformly, may be picked.
        precision: of the embeddings while they are held, see ``select_rows``.
        device: cpu or cuda.
        ids: N distinct ids; draws are functions of (seed, key).
        seed: seeds the draws.
        shards: number of shards in this process; the result does not depend on it.
    """
    columns = {"residual": residuals, "embedding": embeddings}
    _known("method", method, get_args(KMeansMethod))
    share = share_of(candidates, _length(embeddings), k)
    objective = KMeansPP(first=first, share=share)
    if method == "kmeans||":
        objective = KMeansParallel(
            first=first, share=share, rounds=rounds, oversampling=oversampling
        )
    how: Any = {"precision": precision, "device": device}
    return select_rows(objective, columns, k, ids=ids, seed=seed, shards=shards, **how).positions


def joint_entropy(
    member_log_probs: Array,
    k: int,
    *,
    draws: int = 10_000,
    candidates: int | None = None,
    device: str = "cpu",
    ids: Sequence[str] | None = None,
    seed: int = 0,
    shards: int = 1,
) -> Positions:
    """Return k positions by greedy joint mutual information (BatchBALD, Kirsch et al. 2019).

    Args:
        member_log_probs: ``[N, S, C]``, the same S members for every row.
        k: number of picks.
        draws: most label configurations held; up to that many the result is exact.
        candidates: None for all rows, else about how many, drawn uniformly, may be picked.
        device: cpu or cuda.
        ids: N distinct ids, which break ties.
        seed: seeds the sampled configurations.
        shards: number of shards in this process; the result does not depend on it.
    """
    columns = {"member_log_probs": member_log_probs}
    share = share_of(candidates, _length(member_log_probs), k)
    objective = JointEntropy(draws=draws, share=share)
    return select_rows(
        objective, columns, k, ids=ids, seed=seed, shards=shards, device=device
    ).positions


def select_rows(
    objective: Objective,
    columns: Mapping[str, Array],
    k: int,
    *,
    context: Mapping[str, Array] | None = None,
    precision: Precision | None = None,
    device: str = "cpu",
    ids: Sequence[str] | None = None,
    seed: int = 0,
    shards: int = 1,
) -> Selection:
    """Run an objective over arrays ``[N, …]`` and return positions, ids and scores in pick order.

    Args:
        objective: how rows are chosen together.
        columns: what it needs.
        k: number of picks.
        context: columns of labeled rows, ``[L, …]``.
        precision: how columns are held that the objective compares by distances and forms (its
            ``narrow``), the same columns of labeled rows included: bf16 rounds them to 8 bits and
            is named as an approximation; fp32 widens; None leaves bf16 tensors as they are.
            Arithmetic is in float32 and float64 whichever it is.
        device: where the columns are held and products are made: cpu or cuda. Other devices round
            products otherwise, so that near ties may fall otherwise.
        ids: N distinct ids.
        seed: seeds every draw.
        shards: number of shards in this process; the result does not depend on it.

    Raises:
        SettingsError: the precision or device does not exist, or the device is not there.
        ScoreError: a column holds NaN, or +inf; the message names column and row.
        BudgetError: k is negative or larger than N.
        ValueError: lengths differ, or ids are not distinct.
    """
    there, width_of = checked_device(device), partial(_held, objective, precision)
    tensors = {n: as_tensor(n, a, bf16=width_of(n), device=there) for n, a in columns.items()}
    n = len(next(iter(tensors.values())))
    names, keys = checked_keys(ids, n)
    if not 0 <= k <= n:
        raise BudgetError(f"k = {k} of {n} rows asked for; k must lie between 0 and {n}")
    for name, tensor in tensors.items():
        if len(tensor) != n:
            raise ValueError(f"column {name!r} has {len(tensor)} rows, others have {n}")
        checked_numbers(name, tensor, names)
    order = None if ids is None else np.argsort(keys, kind="stable")
    if order is not None:
        index = torch.from_numpy(order).to(there)
        keys, tensors = keys[order], {m: t[index] for m, t in tensors.items()}
    objective, mask = _sampled(objective, keys, k, seed)
    index = torch.from_numpy(np.flatnonzero(mask)).to(there)
    sampled = tensors if mask.all() else {m: t[index] for m, t in tensors.items()}
    parts = _dealt(cut_tiles(keys[mask], sampled), shards, grouped=objective.grouped)
    known = _context(
        {n: as_tensor(n, a, bf16=width_of(n)) for n, a in (context or {}).items()}, tensors
    )
    threads = torch.get_num_threads()
    local = LocalShards([Shard(objective, part, seed, threads=threads) for part in parts])
    with closing(local):
        chosen = choose(objective, local, k, seed=seed, context=known, runners_up=0)
    rows = np.searchsorted(keys, chosen.keys)
    positions = rows if order is None else order[rows]
    rounded = precision == "bf16" and any(name in objective.narrow for name in columns)
    approximation = {
        **(objective.approximation() or {}),
        **({"precision": "bf16"} if rounded else {}),
    }
    return Selection(
        positions.astype(np.int64),
        tuple(str(names[p]) for p in positions),
        chosen.scores,
        {**approximation, "candidates": int(mask.sum()), "of": n} if approximation else None,
    )


def _held(objective: Objective, precision: Precision | None, name: str) -> bool | None:
    """Return whether a column is held in bf16; None where that is as it was given."""
    if precision is not None:
        checked_precision(precision)
    if name not in objective.narrow:
        return False
    return None if precision is None else precision == "bf16"


def _sampled(
    objective: Objective, keys: npt.NDArray[np.uint64], k: int, seed: int
) -> tuple[Objective, npt.NDArray[np.bool_]]:
    """Return which rows are candidates, and the objective whose share gave at least k of them."""
    while objective.share < 1.0:
        mask = candidates_of(keys, objective.share, seed)
        if np.count_nonzero(mask) >= k:
            return objective, mask
        objective = wider(objective)
    return objective, np.ones(len(keys), dtype=bool)


def _dealt(tiles: Sequence[Tile], shards: int, *, grouped: bool) -> list[list[Tile]]:
    """Deal tiles, or whole groups of them, to shards; shards without any are left out."""
    units: dict[int, list[Tile]] = {}
    for tile in tiles:
        units.setdefault(tile.group if grouped else tile.name, []).append(tile)
    dealt = [list(units.values())[s::shards] for s in range(shards)]
    return [[tile for unit in part for tile in unit] for part in dealt if part]


def _known(name: str, given: str, allowed: Sequence[str]) -> None:
    if given not in allowed:
        raise SettingsError(f"{name} {given!r} does not exist; {nearest(given, allowed)}")


def _length(array: Array) -> int:
    return len(array) if isinstance(array, Tensor) else len(np.asarray(array))


def _context(known: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the context's rows in an order of their own, so that the given one never matters."""
    for name, tensor in known.items():
        checked_numbers(name, tensor, range(len(tensor)))
        wanted = columns[name].shape[1:] if name in columns else tensor.shape[1:]
        if tensor.shape[1:] != wanted:
            raise NeedsError(
                f"labeled column {name!r} has rows of shape {list(tensor.shape[1:])}, the pool's "
                f"have {list(wanted)}; give the same column of labeled rows"
            )
    if not known:
        return {}
    arrays = {name: to_host(tensor) for name, tensor in known.items()}
    if len({len(array) for array in arrays.values()}) > 1:
        raise NeedsError(
            f"labeled columns have { ({n: len(a) for n, a in arrays.items()}) } rows; give all "
            "columns of the same labeled rows"
        )
    rows = zip(*arrays.values(), strict=True)
    digests = ("".join(part.tobytes().hex() for part in row) for row in rows)
    order = np.argsort(id_keys(digests), kind="stable")
    return {name: array[order] for name, array in arrays.items()}
