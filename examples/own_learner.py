"""A learner of your own, in its contract and in a short run: python examples/own_learner.py."""

from dataclasses import dataclass

import torch

from rayal.evaluation.protocol import run
from rayal.learners import Batches, Learner, TrainContext, TrainData, TrainState
from rayal.registry import learners
from rayal.settings.run import load
from rayal.testing import LEARNER_CHECKS


@learners.register("mixup")
@dataclass(frozen=True)
class Mixup(Learner):
    """Train on rows that are mixed by pairs, under labels that are mixed alike."""

    taxonomy = "baseline"
    source = "Zhang, Cissé, Dauphin & Lopez-Paz, ICLR 2018, equation 1, with α = 0.2"

    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        nets = self.networks(ctx)
        return TrainState(nets, {"task": torch.optim.Adam(nets["task"].parameters(), lr=1e-3)})

    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        x, y = batches["labeled"].x, torch.eye(ctx.n_outputs)[batches["labeled"].y]
        share, other = torch.distributions.Beta(0.2, 0.2).sample(), torch.randperm(len(x))
        logits = state.networks["task"](torch.lerp(x[other], x, share))  # chance is seeded outside
        loss = torch.nn.functional.cross_entropy(logits, torch.lerp(y[other], y, share))
        state.descend("task", loss)
        return {"loss": loss.item()}


if __name__ == "__main__":
    for name, check in LEARNER_CHECKS.items():
        print("contract:", name, check(Mixup()) or "holds")
    settings = {"pool": {"source": "digits"}, "rounds": 0, "learner": {"name": "mixup"}}
    print(run(load(settings)).points[-1].metrics)
