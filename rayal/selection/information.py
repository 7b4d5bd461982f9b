"""BAIT on anyone's arrays: for classes and for regression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rayal.errors import NeedsError
from rayal.selection.arrays import Array
from rayal.selection.fisher import Fisher, LabeledWeight
from rayal.selection.functions import Positions, select_rows


def bait(
    log_probs: Array,
    embeddings: Array,
    k: int,
    *,
    labeled_log_probs: Array | None = None,
    labeled_embeddings: Array | None = None,
    labeled_weight: LabeledWeight = "release",
    oversample: int = 2,
    ridge: float = 1.0,
    rank: int = 0,
    block_diagonal: bool = False,
    device: str = "cpu",
    ids: Sequence[str] | None = None,
    seed: int = 0,
    shards: int = 1,
) -> Positions:
    """Return k positions by the greedy on tr(M⁻¹ F) (BAIT, Ash et al., NeurIPS 2021, algorithm 1).

    Args:
        log_probs: ``[N, C]``.
        embeddings: ``[N, D]``, the input of the last linear layer.
        k: number of picks.
        labeled_log_probs: ``[L, C]``; given together with labeled_embeddings.
        labeled_embeddings: ``[L, D]``.
        labeled_weight: how labeled rows count in M: sum, mean, or as the authors' code (release).
        oversample: forward picks per item of the batch; the surplus is removed backward.
        ridge: multiple of the identity in M, larger than 0.
        rank: keep the information of this many most probable labels of a row; 0, and C or more,
            keep all.
        block_diagonal: leave out the information between classes: C matrices ``[D, D]`` instead of
            one ``[C·D, C·D]``. Not together with rank.
        device: cpu or cuda.
        ids: N distinct ids, which break ties.
        seed: accepted for uniformity; nothing is drawn.
        shards: number of shards in this process; the result does not depend on it.

    Returns:
        int64 ``[k]`` in the order of the forward pass.

    Raises:
        NeedsError: one of the two labeled columns is missing, or has rows of another shape.
        ScoreError: a column holds NaN or +inf, or a row is -inf for every class.
        BudgetError: k is negative or larger than N.
        ValueError: oversample is less than 1, ridge not positive, or rank negative; as a
            SettingsError, rank is given together with block_diagonal.
    """
    if (labeled_log_probs is None) != (labeled_embeddings is None):
        raise NeedsError(
            "labeled_log_probs and labeled_embeddings belong together, only one was given; give "
            "both or none"
        )
    context: dict[str, Array] = {}
    if labeled_log_probs is not None and labeled_embeddings is not None:
        context = {"log_probs": labeled_log_probs, "embedding": labeled_embeddings}
    _check(oversample, ridge, rank=rank)
    objective = Fisher(
        oversample=oversample,
        ridge=ridge,
        labeled_weight=labeled_weight,
        rank=rank,
        block_diagonal=block_diagonal,
    )
    columns = {"log_probs": log_probs, "embedding": embeddings}
    more: Any = {"ids": ids, "seed": seed, "shards": shards, "device": device}
    return select_rows(objective, columns, k, context=context, **more).positions


def bait_regression(
    embeddings: Array,
    k: int,
    *,
    labeled_embeddings: Array | None = None,
    noise: float = 1.0,
    ridge: float = 1.0,
    oversample: int = 2,
    device: str = "cpu",
    ids: Sequence[str] | None = None,
    seed: int = 0,
    shards: int = 1,
) -> Positions:
    """Return k positions by BAIT for a Gaussian with linear mean, I(x) = h hᵀ / noise².

    All outputs of a network share these D x D matrices, so their number does not matter. Source:
    Ash et al., NeurIPS 2021, section 3 (regression); labeled rows count as candidates do.

    Args:
        embeddings: ``[N, D]``, the input of the last linear layer.
        k: number of picks.
        labeled_embeddings: ``[L, D]``.
        noise: standard deviation of the targets, larger than 0.
        ridge: multiple of the identity in M, larger than 0.
        oversample: forward picks per item of the batch; the surplus is removed backward.
        device: cpu or cuda.
        ids: N distinct ids, which break ties.
        seed: accepted for uniformity; nothing is drawn.
        shards: number of shards in this process; the result does not depend on it.

    Raises:
        NeedsError: labeled rows have another width.
        ScoreError: an embedding is not finite.
        BudgetError: k is negative or larger than N.
        ValueError: oversample is less than 1, or ridge or noise not positive.
    """
    _check(oversample, ridge, noise)
    objective = Fisher(
        log_probs=None, oversample=oversample, ridge=ridge, labeled_weight="sum", noise=noise
    )
    context = {} if labeled_embeddings is None else {"embedding": labeled_embeddings}
    more: Any = {"ids": ids, "seed": seed, "shards": shards, "device": device}
    return select_rows(objective, {"embedding": embeddings}, k, context=context, **more).positions


def _check(oversample: int, ridge: float, noise: float = 1.0, *, rank: int = 0) -> None:
    if oversample < 1 or not ridge > 0 or not noise > 0 or rank < 0:
        raise ValueError(
            f"got {oversample=}, {ridge=}, {noise=}, {rank=}; oversample must be at least 1, ridge "
            "and noise larger than 0, rank at least 0"
        )
