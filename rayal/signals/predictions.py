"""Predictions of members: log-probabilities, and statistics over members and dropout masks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rayal.acquisition import probability_entropy
from rayal.errors import NeedsError
from rayal.models.committee import Committee
from rayal.models.dropout import maskable_modules
from rayal.signals.base import Forward, Signal

LEAST_LOG = -100.0  # a log-probability below it says no more


@dataclass(frozen=True)
class LogProbs(Signal):
    """Log-probabilities ``[N, C]``: of one member, or the log of the members' mean.

    Args:
        member: the member that predicts; None for the mean over all members.
    """

    member: int | None = None

    def names(self) -> tuple[str, ...]:
        """Return ``log_probs``, or ``log_probs.M`` of member M."""
        return ("log_probs",) if self.member is None else (f"log_probs.{self.member}",)

    def check(self, committee: Committee) -> None:
        """Raise NeedsError if there is no such member."""
        if self.member is not None:
            check_member(self.member, committee)

    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return log of the mean probability, by logsumexp in float64 rounded to float32."""
        (name,) = self.names()
        if self.member is not None:
            return {name: f.log_probs(self.member).float()}
        return {name: log_mean([f.log_probs(m) for m in range(f.committee.size)])}


@dataclass(frozen=True)
class MemberStats(Signal):
    """Statistics over M = members x max(passes, 1) predictions, in memory of O(N C).

    ``member_stats.mean`` [N, C] is the mean probability, ``member_stats.entropy`` [N] the mean of
    the predictions' entropies in nats, ``member_stats.votes`` [N, C] the share of predictions whose
    largest class it is, ``member_stats.variance`` [N, C] the population variance of the
    probabilities.

    Probabilities are rounded to float32 once; all else is float64, summed as differences to the
    first prediction, and mean and entropy stay float64. So equal predictions give variance 0, and
    an entropy that equals the entropy of the mean bit for bit: mutual information is exactly 0; and
    predictions that are nearly equal give what little they have, not the rounding of their mean.

    Args:
        passes: dropout masks per member; 0 uses the members as they are.
    """

    passes: int = 0

    def names(self) -> tuple[str, ...]:
        """Return the four columns."""
        kinds = ("mean", "entropy", "votes", "variance")
        return tuple(f"member_stats.{kind}" for kind in kinds)

    def check(self, committee: Committee) -> None:
        """Raise NeedsError unless there are two predictions that can differ."""
        check_members(committee, self.passes)

    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return the four columns."""
        first: Tensor | None = None  # [N, C], and its entropy [N]
        sums: list[Tensor | float] = [0.0] * 4  # of differences, their squares, entropies, votes
        count = 0
        for log_probs in members(f, self.passes):  # [P, N, C]
            probs = log_probs.double().exp().float().double()
            entropy = probability_entropy(probs)  # [P, N]
            if first is None:
                first, base = probs[0].clone(), entropy[0].clone()
            votes = F.one_hot(probs.argmax(dim=-1), probs.shape[-1])
            shift = probs.sub_(first)
            terms = (shift, shift * shift, entropy - base, votes)
            sums = [total + new.sum(dim=0) for total, new in zip(sums, terms, strict=True)]
            count += len(probs)
        assert first is not None
        shift, squares, change, votes = (torch.as_tensor(total) / count for total in sums)
        variance = (squares - shift * shift).clamp_min_(0.0)
        columns = (first + shift, base + change, votes.float(), variance.float())
        return dict(zip(self.names(), columns, strict=True))


@dataclass(frozen=True)
class MemberLogProbs(Signal):
    """Log-probabilities of every prediction, ``[N, M, C]``, M = members x max(passes, 1).

    Args:
        passes: dropout masks per member; 0 uses the members as they are.
    """

    passes: int = 0

    def names(self) -> tuple[str, ...]:
        """Return ``member_log_probs``."""
        return ("member_log_probs",)

    def check(self, committee: Committee) -> None:
        """Raise NeedsError unless there are two predictions that can differ."""
        check_members(committee, self.passes)

    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return the passes of member 0, then those of member 1, and so on."""
        log_probs = torch.cat(list(members(f, self.passes)))  # [M, N, C]
        return {self.names()[0]: log_probs.transpose(0, 1).float().contiguous()}


@dataclass(frozen=True)
class MemberMoments(Signal):
    """Mean and population variance of the logits over M = members x max(passes, 1) predictions.

    ``logit_mean`` and ``logit_variance`` [N, C]. Softmax leaves a constant of each row open: logits
    are log-probabilities less their mean over the classes.

    Args:
        passes: dropout masks per member; 0 uses the members as they are.
    """

    passes: int = 0

    def names(self) -> tuple[str, ...]:
        """Return both columns."""
        return ("logit_mean", "logit_variance")

    def check(self, committee: Committee) -> None:
        """Raise NeedsError unless there are two predictions that can differ."""
        check_members(committee, self.passes)

    def compute(self, f: Forward) -> dict[str, Tensor]:
        """Return both columns, summed in float64 as differences to the first prediction."""
        first: Tensor | None = None
        total: Tensor | float = 0.0
        squares: Tensor | float = 0.0
        count = 0
        for log_probs in members(f, self.passes):  # [P, N, C]
            logits = log_probs.double().clamp_min(LEAST_LOG)
            logits = logits - logits.mean(dim=-1, keepdim=True)
            first = logits[0] if first is None else first
            shift = logits - first
            total = total + shift.sum(dim=0)
            squares = squares + shift.square().sum(dim=0)
            count += len(logits)
        assert first is not None
        mean = torch.as_tensor(total) / count
        variance = (torch.as_tensor(squares) / count - mean.square()).clamp_min(0.0)
        return {"logit_mean": (first + mean).float(), "logit_variance": variance.float()}


def members(f: Forward, passes: int) -> Iterator[Tensor]:
    """Yield log-probabilities ``[P, N, C]``: each member, or each member's passes."""
    for member in range(f.committee.size):
        if passes:
            yield from f.passes(member, passes)
        else:
            yield f.log_probs(member)[None]


def log_mean(log_probs: list[Tensor]) -> Tensor:
    """Return the log of the mean of M probabilities, float32 ``[N, C]`` of M tensors."""
    if len(log_probs) == 1:
        return log_probs[0].float()
    stacked = torch.stack(log_probs, dim=-1).double()  # [N, C, M]
    return (stacked.logsumexp(dim=-1) - math.log(len(log_probs))).float()


def check_member(member: int, committee: Committee) -> None:
    """Raise NeedsError if there is no such member."""
    if not 0 <= member < committee.size:
        raise NeedsError(
            f"member {member} is asked for, the committee has members 0 to {committee.size - 1}; "
            "set model.members higher"
        )


def check_members(committee: Committee, passes: int) -> None:
    """Raise NeedsError unless members x max(passes, 1) predictions are two that can differ."""
    for member in range(committee.size if passes else 0):
        maskable_modules(committee.net(member))
    count = committee.size * max(passes, 1)
    if passes < 0 or count < 2:
        raise NeedsError(
            f"{committee.size} member(s) with passes={passes} make {count} prediction(s), and "
            "disagreement needs two; set members: 5, or passes: 20 with a network with dropout > 0"
        )
