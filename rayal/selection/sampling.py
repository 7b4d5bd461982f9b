"""Candidates: a joint choice over a uniform sample of the rows, the same for any sharding."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from rayal.errors import BudgetError
from rayal.selection.draws import keyed_uniform
from rayal.selection.objective import Objective
from rayal.types import Keys

_STREAM = 0x5A3D  # keeps these draws apart from those of the objectives
ObjectiveT = TypeVar("ObjectiveT", bound=Objective)


def candidates_of(keys: Keys, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Return which rows are candidates, bool ``[N]``: a function of key, share and seed alone.

    A larger share gives a superset.

    Args:
        keys: uint64 ``[N]``.
        share: chance of each row.
        seed: the query seed.
    """
    return np.asarray(keyed_uniform(keys, seed, _STREAM) < share)


def share_of(candidates: int | None, rows: int, k: int) -> float:
    """Return the chance of a row that gives about so many candidates; 1 where all rows are.

    Args:
        candidates: about how many rows the choice runs over; None for all.
        rows: rows that may be chosen.
        k: picks.

    Raises:
        BudgetError: fewer candidates than picks are asked for.
    """
    if candidates is None or candidates >= rows:
        return 1.0
    if candidates < k:
        raise BudgetError(
            f"candidates = {candidates} for k = {k} picks; give at least k, better 20 times as "
            "many, or none for all rows"
        )
    return candidates / rows


def wider(objective: ObjectiveT) -> ObjectiveT:
    """Return the objective with twice the share: what follows when chance gave fewer than k."""
    return replace(objective, share=min(1.0, 2.0 * objective.share))
