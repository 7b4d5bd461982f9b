"""Items chosen one by one: the k largest scores, or a uniform draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayal.selection.draws import keyed_uniform
from rayal.selection.objective import (
    Commit,
    Floats,
    Objective,
    Progress,
    Proposal,
    Tile,
)


@dataclass(frozen=True)
class TopK(Objective):
    """The k largest scores; ties go to the tie-breakers behind the score, then to the id key.

    Args:
        column: the score ``[N]``, or ``[N, 1 + T]`` with T tie-breakers.
    """

    column: str = "score"

    @property
    def needs(self) -> tuple[str, ...]:
        """The score."""
        return (self.column,)

    def gain(self, tile: Tile) -> Floats:
        """Return the scores."""
        return np.asarray(tile.columns[self.column].double().numpy())

    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Take every proposed row."""
        if len(proposal) == 0:
            return None
        return Commit(proposal.keys, proposal.priority[:, 0])


@dataclass(frozen=True)
class UniformDraw(TopK):
    """k items uniformly without replacement: the k largest keyed uniforms."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def begin(self, tile: Tile, seed: int) -> None:
        """Draw one uniform per row, a function of the seed and the row's key."""
        tile.state["uniform"] = keyed_uniform(tile.keys, seed)

    def gain(self, tile: Tile) -> Floats:
        """Return the drawn uniforms."""
        return np.asarray(tile.state["uniform"])
