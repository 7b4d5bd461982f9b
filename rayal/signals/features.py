"""Embeddings, and columns of the learner's own heads: signals besides predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rayal.errors import NeedsError, nearest
from rayal.models.committee import Committee
from rayal.signals.base import Forward, Signal, extras_of
from rayal.signals.predictions import check_member


@dataclass(frozen=True)
class Embedding(Signal):
    """The input of a member's last linear layer, ``embedding`` ``[N, D]``.

    Args:
        member: the member whose network is asked.
    """

    targets: ClassVar[tuple[str, ...]] = ("class", "number")
    narrow: ClassVar[bool] = True

    member: int = 0

    def names(self) -> tuple[str, ...]:
        """Return ``embedding``."""
        return ("embedding",)

    def check(self, committee: Committee) -> None:
        """Raise NeedsError if there is no such member, or its network has no embedding."""
        check_member(self.member, committee)
        committee.net(self.member).head  # noqa: B018 - raises, with what to do

    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return the embedding; it shares its forward pass with the member's log_probs."""
        return {"embedding": f.embedding(self.member).float()}


@dataclass(frozen=True)
class Extra(Signal):
    """A column ``[N, …]`` that the learner gives beside the predictions, of member 0.

    Args:
        name: the column.
    """

    targets: ClassVar[tuple[str, ...]] = ("class", "number")

    name: str

    def names(self) -> tuple[str, ...]:
        """Return the learner's name of the column."""
        return (self.name,)

    def check(self, committee: Committee) -> None:
        """Raise NeedsError unless the learner gives the column for a row of zeros."""
        with torch.inference_mode():
            known = extras_of(committee, _row_of_zeros(committee))
        if self.name not in known:
            raise NeedsError(f"the learner gives no {self.name!r}; {nearest(self.name, known)}")

    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return the column."""
        return {self.name: f.extras()[self.name].float()}


def _row_of_zeros(committee: Committee) -> Tensor:
    weight = next(committee.nets[0].parameters())
    return torch.zeros((1, *committee.task.input_shape), device=weight.device)
