"""The kernels on anyone's arrays: no Ray, no project, numpy arrays and torch tensors alike."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.errors import BudgetError, NeedsError, ScoreError
from rayal.selection.greedy import LocalShards, Shard, choose
from rayal.selection.joint_entropy import JointEntropy
from rayal.selection.kcenter import KCenter
from rayal.selection.kmeans import First, KMeansPP
from rayal.selection.objective import Objective, cut_tiles
from rayal.selection.topk import TopK
from rayal.types import Selection, id_keys

Array = npt.ArrayLike | Tensor
Positions = npt.NDArray[np.int64]


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
        ids: N distinct ids, which break ties; rows are sorted by their keys inside.
        seed: seeds the first centre.
        shards: number of shards in this process; the result does not depend on it.
    """
    context = None if labeled is None else {"embedding": labeled}
    columns = {"embedding": embeddings}
    return select_rows(
        KCenter(), columns, k, context=context, ids=ids, seed=seed, shards=shards
    ).positions


def kmeans_plus_plus(
    residuals: Array,
    embeddings: Array,
    k: int,
    *,
    first: First = "norm",
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
        ids: N distinct ids; draws are functions of (seed, key).
        seed: seeds the draws.
        shards: number of shards in this process; the result does not depend on it.
    """
    columns = {"residual": residuals, "embedding": embeddings}
    objective = KMeansPP(first=first)
    return select_rows(objective, columns, k, ids=ids, seed=seed, shards=shards).positions


def joint_entropy(
    member_log_probs: Array,
    k: int,
    *,
    draws: int = 10_000,
    ids: Sequence[str] | None = None,
    seed: int = 0,
    shards: int = 1,
) -> Positions:
    """Return k positions by greedy joint mutual information (BatchBALD, Kirsch et al. 2019).

    Args:
        member_log_probs: ``[N, S, C]``, the same S members for every row.
        k: number of picks.
        draws: most label configurations held; up to that many the result is exact.
        ids: N distinct ids, which break ties.
        seed: seeds the sampled configurations.
        shards: number of shards in this process; the result does not depend on it.
    """
    columns = {"member_log_probs": member_log_probs}
    objective = JointEntropy(draws=draws)
    return select_rows(objective, columns, k, ids=ids, seed=seed, shards=shards).positions


def select_rows(
    objective: Objective,
    columns: Mapping[str, Array],
    k: int,
    *,
    context: Mapping[str, Array] | None = None,
    ids: Sequence[str] | None = None,
    seed: int = 0,
    shards: int = 1,
) -> Selection:
    """Run an objective over arrays ``[N, …]`` and return positions, ids and scores in pick order.

    Raises:
        ScoreError: a column holds NaN, or +inf; the message names column and row.
        BudgetError: k is negative or larger than N.
        ValueError: lengths differ, or ids are not distinct.
    """
    tensors = {name: as_tensor(name, array) for name, array in columns.items()}
    n = len(next(iter(tensors.values())))
    names, keys = _keys(ids, n)
    if not 0 <= k <= n:
        raise BudgetError(f"k = {k} of {n} rows asked for; k must lie between 0 and {n}")
    for name, tensor in tensors.items():
        if len(tensor) != n:
            raise ValueError(f"column {name!r} has {len(tensor)} rows, others have {n}")
        _check_numbers(name, tensor, names)
    order = None if ids is None else np.argsort(keys, kind="stable")
    if order is not None:
        index = torch.from_numpy(order)
        keys, tensors = keys[order], {m: t[index] for m, t in tensors.items()}
    tiles = cut_tiles(keys, tensors)
    held = [tiles[s::shards] for s in range(shards)]
    known, threads = _context(context or {}, tensors), torch.get_num_threads()
    local = LocalShards([Shard(objective, p, seed, threads=threads) for p in held if p])
    with closing(local):
        chosen = choose(objective, local, k, seed=seed, context=known, runners_up=0)
    rows = np.searchsorted(keys, chosen.keys)
    positions = rows if order is None else order[rows]
    return Selection(
        positions.astype(np.int64), tuple(str(names[p]) for p in positions), chosen.scores
    )


def _context(given: Mapping[str, Array], columns: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the context's rows in an order of their own, so that the given one never matters."""
    known = {name: as_tensor(name, array) for name, array in given.items()}
    for name, tensor in known.items():
        _check_numbers(name, tensor, range(len(tensor)))
        wanted = columns[name].shape[1:] if name in columns else tensor.shape[1:]
        if tensor.shape[1:] != wanted:
            raise NeedsError(
                f"labeled column {name!r} has rows of shape {list(tensor.shape[1:])}, the pool's "
                f"have {list(wanted)}; give the same column of labeled rows"
            )
    if not known:
        return {}
    arrays = {name: tensor.numpy() for name, tensor in known.items()}
    if len({len(array) for array in arrays.values()}) > 1:
        raise NeedsError(
            f"labeled columns have { ({n: len(a) for n, a in arrays.items()}) } rows; give all "
            "columns of the same labeled rows"
        )
    rows = zip(*arrays.values(), strict=True)
    digests = ("".join(part.tobytes().hex() for part in row) for row in rows)
    order = np.argsort(id_keys(digests), kind="stable")
    return {name: array[order] for name, array in arrays.items()}


def as_tensor(name: str, array: Array) -> Tensor:
    """Return an array as a contiguous tensor: float64 for scores and scalars, else float32."""
    tensor = array if isinstance(array, Tensor) else _over(np.asarray(array))
    tensor = tensor.detach().cpu()
    if tensor.ndim == 0:
        raise ValueError(f"column {name!r} must have a leading dimension N, got a single number")
    scalar = tensor.ndim == 1 or name == "score"  # a score may have tie-breakers behind it
    return tensor.double() if scalar else tensor.float().contiguous()


def _over(array: npt.NDArray[Any]) -> Tensor:
    """Return a tensor over an array's memory: kernels do not write to their columns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def _check_numbers(name: str, tensor: Tensor, names: Sequence[str] | range) -> None:
    if not len(tensor) or bool(torch.isfinite(tensor.sum())):  # a sum shows NaN and inf
        return
    flat = tensor.reshape(len(tensor), -1)
    log = "log_probs" in name or name == "score" or tensor.ndim == 1  # -inf is legal there
    bad = torch.isnan(flat) | (torch.isposinf(flat) if log else torch.isinf(flat))
    if bad.any():
        row = int(torch.nonzero(bad.any(dim=1))[0])
        raise ScoreError(
            f"column {name!r} of item {names[row]!r} holds {flat[row][bad[row]][0].item()}; "
            "finite numbers are needed: remove the row or mend the model"
        )


def _keys(ids: Sequence[str] | None, n: int) -> tuple[Any, npt.NDArray[np.uint64]]:
    if ids is None:
        return range(n), np.arange(n, dtype=np.uint64)
    names = [str(i) for i in ids]
    keys = id_keys(names)
    if len(names) != n or len(np.unique(keys)) != n:
        raise ValueError(
            f"{n} distinct ids are needed, got {len(names)} ({len(set(names))} distinct)"
        )
    return names, keys
