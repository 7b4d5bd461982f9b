"""Choose rows by a registered strategy, from columns that were computed anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rayal import acquisition
from rayal.errors import NeedsError
from rayal.registry import strategies
from rayal.selection.arrays import Array, as_tensor
from rayal.selection.devices import Precision, widened
from rayal.selection.functions import select_rows
from rayal.settings.parameters import build
from rayal.strategies.base import Ctx, Strategy
from rayal.types import Columns, Selection


def select(
    name: str,
    columns: Mapping[str, Array],
    k: int,
    *,
    ids: Sequence[str] | None = None,
    labeled: Mapping[str, Array] | None = None,
    params: Mapping[str, Any] | None = None,
    precision: Precision | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> Selection:
    """Choose k rows by a registered strategy, from columns computed anywhere.

    There are no rounds here: a strategy that goes by the round's number is in round 0 at every
    call. Such is ``egl_entropy_beta``, whose word gradients weigh most then; ``params`` may give
    its ``weight``.

    Args:
        name: the strategy's registered name.
        columns: the strategy's columns, ``[N, …]``; ``rayal strategies NAME`` lists them.
            ``member_log_probs`` ``[N, M, C]`` serves wherever statistics of members are needed.
        k: number of picks.
        ids: N distinct ids; without them a row's position is its id.
        labeled: the strategy's context columns of labeled rows, ``[L, …]``.
        params: the strategy's hyperparameters.
        precision: bf16 holds embeddings in half the memory, rounded, which the result's
            ``approximation`` names; None leaves bf16 tensors as they are.
        device: where a joint choice computes: cpu or cuda.
        seed: the query seed.

    Returns:
        Positions, ids and scores in pick order.

    Raises:
        UnknownNameError: no strategy has that name.
        NeedsError: a column is missing; the message names it.
        ScoreError: a column or a score is not a number.
        BudgetError: k is negative or larger than N.
    """
    strategy: Strategy = build(strategies[name], dict(params or {}), where=f"strategy {name!r}")
    available = _derived({n: as_tensor(n, a, bf16=None) for n, a in columns.items()})
    names = _needed(strategy)
    rows = {n: _column(name, available, n, names) for n in names}
    count = len(next(iter((rows or available).values()), ()))
    labels = list(ids) if ids is not None else [str(i) for i in range(count)]
    context = {}
    for n in strategy.context if labeled else ():
        if n not in (labeled or {}):
            raise NeedsError(
                f"strategy {name!r} needs column {n!r} of labeled rows, got {sorted(labeled or {})}"
            )
        context[n] = as_tensor(n, (labeled or {})[n]).numpy()
    ctx = Ctx(round=0, k=k, seed=seed, n_candidates=count, context=context)
    objective = strategy.objective(ctx)
    used = {n: rows[n] for n in objective.needs if n in rows}
    if rows and "score" in objective.needs:
        wide = {n: widened(column) for n, column in rows.items()}
        if (score := strategy.score(Columns(wide, labels))) is not None:
            used["score"] = score
    if not used:  # a choice that reads no column, as the uniform draw
        used = {"score": torch.zeros(count, dtype=torch.float64)}
    options: Any = {"precision": precision, "device": device}
    return select_rows(objective, used, k, context=context, ids=ids, seed=seed, **options)


def _needed(strategy: Strategy) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c for s in strategy.signals() for c in s.names()))


def _column(
    strategy: str, available: Mapping[str, torch.Tensor], name: str, needed: Sequence[str]
) -> torch.Tensor:
    for alias in (name, name.removesuffix(".0")):
        if alias in available:
            return available[alias]
    raise NeedsError(
        f"strategy {strategy!r} needs column {name!r}, got {sorted(available)}; give "
        f"{', '.join(n.removesuffix('.0') for n in needed)}"
    )


def _derived(columns: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add the statistics that follow from member_log_probs, where it is given."""
    members = columns.get("member_log_probs")
    if members is None:
        return columns
    if members.ndim != 3:
        raise NeedsError(f"member_log_probs must be [N, M, C], got {tuple(members.shape)}")
    probs = members.double().exp()
    votes = torch.nn.functional.one_hot(probs.argmax(dim=2), probs.shape[2]).double().mean(dim=1)
    derived = {
        "log_probs.0": members[:, 0],
        "log_probs": torch.logsumexp(members.double(), dim=1) - np.log(members.shape[1]),
        "member_stats.mean": probs.mean(dim=1),
        "member_stats.entropy": acquisition.probability_entropy(probs).mean(dim=1),
        "member_stats.votes": votes,
        "member_stats.variance": probs.var(dim=1, correction=0),
    }
    return {**derived, **columns}
