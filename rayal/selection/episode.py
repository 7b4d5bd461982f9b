"""Items chosen one after the other by a policy, among a few that lead a ranking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from annotated_types import Ge

from rayal.selection.draws import uniform
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.progress import Commit, Progress
from rayal.selection.tiles import Proposal
from rayal.selection.topk import TopK
from rayal.types import TILE_ROWS

_ACTION = 401  # salt of the draws
Floats32 = npt.NDArray[np.float32]


class Policy(Protocol):
    """A policy, which says which of some candidates to take."""

    def __call__(self, mean: Floats32, variance: Floats32) -> npt.NDArray[np.float64]:
        """Return the log-probability ``[M]`` of taking each candidate, of moments ``[M, C]``."""


@dataclass(slots=True)
class EpisodeRun:
    """The record of an episode.

    Attributes:
        slots: int64 ``[k]``, each pick's place among its candidates.
        table: columns of all rows that were proposed, in their order.
    """

    slots: npt.NDArray[np.int64]
    table: Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Episode(TopK):
    """k items one by one: of the rows that lead the ranking, every ``stride``-th is a candidate.

    A policy gives each candidate its probability, and one is drawn; it leaves the ranking, the rows
    behind it move up, and candidates are taken anew. Without a policy the first one is taken, which
    is the ranking itself. Scores are those of the ranking.

    Args:
        leading: rows of the ranking that candidates come from.
        stride: of candidates among them.
        policy: None takes the first candidate.
        mean: column ``[N, C]`` that the policy reads.
        variance: column ``[N, C]`` that it reads as well.
    """

    title: ClassVar[str] = "the policy's choice"

    leading: Annotated[int, Ge(1)] = 1000
    stride: Annotated[int, Ge(1)] = 20
    policy: Policy | None = None
    mean: str = "logit_mean"
    variance: str = "logit_variance"

    @property
    def needs(self) -> tuple[str, ...]:
        """The score, and what the policy reads."""
        return (self.column, *self.sends)

    @property
    def sends(self) -> tuple[str, ...]:
        """The policy works on the driver."""
        return () if self.policy is None else (self.mean, self.variance)

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return the proposals of tiles and parts, and the candidates on the driver."""
        m, wide = self.leading + k, width(shapes, *self.sends)
        row = 40 + 4 * wide
        return Footprint(
            tile=min(m, TILE_ROWS) * 40,
            part=min(m, rows) * row,
            transient=TILE_ROWS * 48,
            driver=2 * m * row,
            read=8.0 * rows,
        )

    def block(self, progress: Progress) -> int:
        """Return the rows of the whole episode: those that lead, and one for each pick."""
        return self.leading + progress.left

    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Take k rows one by one."""
        if len(proposal) == 0:
            return None
        rest = list(range(len(proposal)))
        taken: list[int] = []
        slots: list[int] = []
        while rest and len(taken) < progress.left:
            candidate_rows = candidates(rest, self.leading, self.stride)
            slot = self._action(proposal, candidate_rows, progress, len(taken))
            slots.append(slot)
            taken.append(candidate_rows[slot])
            del rest[slot * self.stride]
        table = {n: np.asarray(proposal.columns[n]) for n in self.sends}
        progress.state = EpisodeRun(np.array(slots, dtype=np.int64), table)
        return Commit(proposal.keys[taken], proposal.priority[taken, 0])

    def notes(self, progress: Progress) -> dict[str, npt.NDArray[Any]]:
        """Return the slot ``[k]`` of each pick among its candidates, and the moments of all rows.

        ``replay`` tells the candidates of each step from them.
        """
        if self.policy is None or progress.state is None:
            return {}
        run = progress.state_as(EpisodeRun)
        moments = {"mean": run.table[self.mean], "variance": run.table[self.variance]}
        return {"slots": run.slots, **moments}

    def _action(self, proposal: Proposal, found: list[int], progress: Progress, step: int) -> int:
        if self.policy is None:
            return 0
        mean, variance = (np.asarray(proposal.columns[name])[found] for name in self.sends)
        weight = np.cumsum(np.exp(self.policy(mean, variance)))
        drawn = uniform(progress.seed, step, _ACTION) * weight[-1]
        return min(int(np.searchsorted(weight, drawn, side="right")), len(found) - 1)


def candidates(rest: list[int], leading: int, stride: int) -> list[int]:
    """Return every ``stride``-th of the first ``leading`` rows that are left."""
    return rest[:leading:stride]


def replay(rows: int, slots: npt.NDArray[np.int64], leading: int, stride: int) -> list[list[int]]:
    """Return the candidates of each step of an episode, as rows of its ranking.

    Args:
        rows: of the ranking.
        slots: ``[k]``, which candidate was taken at each step.
        leading: rows of the ranking that candidates came from.
        stride: of candidates among them.
    """
    rest, steps = list(range(rows)), []
    for slot in slots.tolist():
        steps.append(candidates(rest, leading, stride))
        del rest[slot * stride]
    return steps
