"""A joint choice of your own, exact on any number of shards: python examples/own_objective.py."""

from dataclasses import dataclass

import numpy as np

from rayal.evaluation.protocol import run
from rayal.registry import strategies
from rayal.selection.objective import Commit, Objective, Progress
from rayal.selection.tiles import Floats, Proposal, Tile
from rayal.settings.run import load
from rayal.signals import Embedding, LogProbs, Signal
from rayal.strategies import Ctx, uncertainty
from rayal.testing import STRATEGY_CHECKS


@dataclass(frozen=True)
class Apart(Objective):
    """Pick by (1 + score) d² / (1 + d²), d to the nearest pick: of each row by itself."""

    needs = ("score", "embedding")
    sends = ("embedding",)

    def begin(self, tile: Tile, seed: int) -> None:
        tile.state = np.ones(len(tile.keys))  # d² / (1 + d²) of each row

    def gain(self, tile: Tile) -> Floats:
        return (1.0 + tile.columns["score"].double().numpy()) * tile.state_as(np.ndarray)

    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        keys, gains = proposal.keys[:1], proposal.priority[:1, 0]
        return Commit(keys, gains, proposal.columns) if len(proposal) else None

    def commit(self, tile: Tile, commit: Commit) -> None:
        gap = tile.columns["embedding"].double().numpy() - commit.columns["embedding"][:1]
        tile.state = np.minimum(tile.state_as(np.ndarray), 1 - 1 / (1 + np.square(gap).sum(1)))


@strategies.register("margin_apart")
@dataclass(frozen=True)
class MarginApart(uncertainty.Margin):
    """Label items of small margins that lie apart from each other."""

    carry = ("embedding",)  # what the objective reads beside the score

    def signals(self) -> tuple[Signal, ...]:
        return (LogProbs(), Embedding())

    def objective(self, ctx: Ctx) -> Objective:
        return Apart()


if __name__ == "__main__":
    for name, check in STRATEGY_CHECKS.items():
        print("contract:", name, check(MarginApart()) or "holds")
    settings = {"pool": {"source": "digits"}, "rounds": 1, "strategies": ["margin_apart"]}
    print(*((p.strategy, p.labels, p.metrics) for p in run(load(settings)).points), sep="\n")
