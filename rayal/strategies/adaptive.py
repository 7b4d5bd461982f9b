"""RAL: a policy, rewarded by what its picks taught the model, chooses among uncertain items.

Source: Haussmann, Hamprecht & Kandemir, IJCAI 2019, "Deep active learning with adaptive
acquisition": a Bayesian network through which moments go in closed form, candidates of large
predictive entropy, and a policy network trained by REINFORCE, once a round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional as F

from rayal import acquisition
from rayal.errors import SettingsError
from rayal.learners import LabeledBatch, Learner, Supervised, TrainContext
from rayal.models.base import TaskNet
from rayal.models.moments import (
    MomentNet,
    NormalLinear,
    log_probit,
    normal_layers,
    one_against_all,
    propagate,
)
from rayal.registry import learners, strategies
from rayal.selection.episode import Episode, Floats32, replay
from rayal.signals import Extra, LogProbs, MemberMoments, Signal
from rayal.strategies.base import Ctx, Memory, Outcome, Strategy
from rayal.types import Columns


class PolicyNet(nn.Module):
    """A network that gives M candidates probabilities: Φ(mean / sqrt(1 + variance)) by their sum.

    Its input is normal: the means and variances of all candidates, one behind the other. Where
    there are fewer than M, the places of the others are zero, and they are never taken.

    Args:
        slots: M.
        classes: C.
        hidden: width of the hidden layer.
        seed: seed of the initial weights.
    """

    def __init__(self, slots: int, classes: int, *, hidden: int, seed: int) -> None:
        super().__init__()
        self.slots, self.classes = slots, classes
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            first, last = nn.Linear(slots * classes, hidden), nn.Linear(hidden, slots)
        self.layers = nn.Sequential(NormalLinear(first), nn.ReLU(), NormalLinear(last))

    def forward(self, mean: Tensor, variance: Tensor, counts: Tensor) -> Tensor:
        """Return log-probabilities ``[B, M]`` of the candidates, float64; -inf behind the last one.

        Args:
            mean: ``[B, M, C]``.
            variance: ``[B, M, C]``.
            counts: int64 ``[B]``, how many candidates there are.
        """
        chances = log_probit(*propagate(self.layers, mean.flatten(1), variance.flatten(1)))
        there = torch.arange(self.slots) < counts[:, None]
        return chances.double().masked_fill(~there, -torch.inf).log_softmax(dim=1)

    def padded(self, moments: Tensor) -> Tensor:
        """Return moments ``[m, C]`` of m candidates with zeros behind them, ``[M, C]``."""
        missing = self.slots - len(moments)
        return torch.cat([moments, moments.new_zeros(missing, self.classes)])

    def divergence(self, precision: float) -> Tensor:
        """Return the sum of both layers' divergences from N(0, 1 / precision)."""
        return torch.stack([layer.divergence(precision) for layer in normal_layers(self)]).sum()


def discounted(rewards: Tensor, gamma: float) -> Tensor:
    """Return R_t = Σ_s gamma^s r_(t+s) of rewards ``[k]``."""
    returns = torch.empty_like(rewards)
    later = rewards.new_zeros(())
    for step in range(len(rewards) - 1, -1, -1):
        later = rewards[step] + gamma * later
        returns[step] = later
    return returns


MEAN, VARIANCE = "logit_mean", "logit_variance"

# ---- learner -------------------------------------------------------------------------------------


@learners.register("moment_propagation")
@dataclass(frozen=True)
class MomentPropagation(Supervised):
    """Train a network with normal weights, through which means and variances go in closed form.

    Args:
        prior: precision of the weights' prior.
        divergence: weight of the Kullback-Leibler term, which is divided by the number of labeled
            rows; 1 is the evidence bound.
    """

    prior: Annotated[float, Gt(0)] = 10.0
    divergence: Annotated[float, Ge(0)] = 0.1

    hashed_as: ClassVar[tuple[str, ...]] = ("rayal.strategies.adaptive", "MomentPropagation")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = Supervised.presets
    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Haussmann, Hamprecht & Kandemir, IJCAI 2019"
    departures: ClassVar[str] = (
        "any network of linear layers, convolutions, ReLU and max-pooling is taken, with its own "
        "initial weights as means; biases are numbers; of a pooling window the largest mean stays, "
        "with its variance; networks start anew in every round, with the optimiser of the "
        "settings, so that the Kullback-Leibler term counts a tenth: with all of it few labels "
        "teach little (60 digits: accuracy 0.12, not 0.29; Fashion-MNIST, 100 labels: 0.724, not "
        "0.742, with nll 0.95, not 1.25); weight_decay acts beside that term, on means and biases "
        "as on any weight and on the logarithms of variances, which it draws towards 0: with 0 the "
        "term is alone"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision != "fp32":
            raise SettingsError(
                f"moment_propagation.precision: {self.precision!r} has too few digits for "
                "variances; use fp32"
            )

    def networks(self, ctx: TrainContext) -> nn.ModuleDict:
        """Return the task's network with normal weights."""
        net = MomentNet(cast(TaskNet, super().networks(ctx)["task"])).to(ctx.device)
        net.rows = ctx.n_labeled
        return nn.ModuleDict({"task": net})

    def _losses(
        self, net: nn.Module, batch: LabeledBatch, done: float, smoothing: float = 0.0
    ) -> Tensor:
        """Return each row's binary cross-entropies of all classes, summed, times its weight."""
        mean, variance = cast(MomentNet, net).moments(batch.x)
        classes = mean.shape[1]
        hot = F.one_hot(batch.y, classes).to(mean.dtype)
        targets = hot * (1.0 - smoothing) + smoothing / classes
        losses = one_against_all(mean, variance, targets).to(mean.dtype)
        return losses if batch.weight is None else losses * batch.weight

    def penalty(self, net: nn.Module) -> Tensor | None:
        """Return the Kullback-Leibler term, divided by the number of labeled rows."""
        normal = cast(MomentNet, net)
        if not self.divergence:
            return None
        return self.divergence / max(1, normal.rows) * normal.divergence(self.prior)

    def extras(self, nets: nn.ModuleDict, x: Tensor) -> Mapping[str, Tensor]:
        """Return ``logit_mean`` and ``logit_variance`` of the last layer, ``[N, C]``."""
        mean, variance = cast(MomentNet, nets["task"]).moments(x)
        return {MEAN: mean, VARIANCE: variance}


# ---- policy --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LearnedPolicy:
    """The policy with the weights of a memory, or with initial ones.

    Args:
        slots: candidates that it can choose among.
        hidden: width of its hidden layer.
        seed: seed of the initial weights.
        weights: weights from the memory; None for initial ones.
    """

    slots: int
    hidden: int
    seed: int
    weights: Mapping[str, Tensor] | None = None
    _known: dict[int, PolicyNet] = field(default_factory=dict, init=False, repr=False)

    def network(self, classes: int) -> PolicyNet:
        """Return the network for that many classes."""
        if classes not in self._known:
            net = PolicyNet(self.slots, classes, hidden=self.hidden, seed=self.seed)
            if self.weights is not None:
                net.load_state_dict(self.weights)
            self._known[classes] = net
        return self._known[classes]

    @torch.no_grad()
    def __call__(self, mean: Floats32, variance: Floats32) -> npt.NDArray[np.float64]:
        """Return the log-probability ``[m]`` of taking each of m candidates, from their moments."""
        net = self.network(mean.shape[1])
        both = (net.padded(torch.from_numpy(x).float())[None] for x in (mean, variance))
        log_chances = net(*both, torch.tensor([len(mean)]))[0, : len(mean)]
        return np.asarray(log_chances.numpy())


def entropies(mean: Tensor, variance: Tensor) -> Tensor:
    """Return Σ_c H(P_c), the entropies of each class against the others in nats, ``[N]``."""
    mean, variance = mean.double(), variance.double()
    yes, no = log_probit(mean, variance), log_probit(-mean, variance)
    return -(yes.exp() * yes + no.exp() * no).sum(dim=1)


def likelihood(moments: Mapping[str, Tensor], targets: Tensor) -> Tensor:
    """Return P_y / Σ_c P_c, the predicted probability of each label, float64 ``[k]``."""
    chances = log_probit(moments[MEAN].double(), moments[VARIANCE].double())
    return chances.log_softmax(dim=1).gather(1, targets[:, None])[:, 0].exp()


# ---- strategy ------------------------------------------------------------------------------------


@strategies.register("adaptive")
@dataclass(frozen=True)
class RAL(Strategy):
    """Label what a policy chooses among uncertain items, rewarded by what its picks taught.

    Picks that stay without a label are left out before rewards are discounted. A policy starts with
    weights drawn from the query seed, and sees zeros in the places of candidates that are missing.

    Args:
        members: trained networks; with moments of the network, those are of the first.
        moments: source of the moments: network (one with normal weights, by the learner
            moment_propagation) | members (mean and variance of the logits over members or dropout
            masks, of any learner).
        passes: dropout masks per member, for moments of members.
        ranking: the uncertainty: one_against_all (entropies of each class against the others) |
            entropy.
        policy: choice among candidates: learned | greedy (the first candidate, always).
        leading: number of the first items of the ranking, among which candidates are.
        stride: step of candidates in the ranking; leading / stride of them are shown to the policy.
        hidden: width of the policy's hidden layer.
        gamma: discount of rewards of later picks.
        diversity: weight of the share of distinct labels, added to the last pick's reward.
        lr: learning rate of the policy, one step of Adam a round.
        prior: precision of the policy's weights.
        divergence: weight of the policy's Kullback-Leibler term per weight.
    """

    moments: Literal["network", "members"] = "network"
    passes: Annotated[int, Ge(0)] = 0
    ranking: Literal["one_against_all", "entropy"] = "one_against_all"
    policy: Literal["learned", "greedy"] = "learned"
    leading: Annotated[int, Ge(1)] = 1000
    stride: Annotated[int, Ge(1)] = 20
    hidden: Annotated[int, Ge(1)] = 256
    gamma: Annotated[float, Ge(0), Le(1)] = 0.95
    diversity: Annotated[float, Ge(0)] = 1.0
    lr: Annotated[float, Gt(0)] = 1e-3
    prior: Annotated[float, Gt(0)] = 100.0
    divergence: Annotated[float, Ge(0)] = 1.0

    learner: ClassVar[Learner | None] = MomentPropagation()
    carry: ClassVar[tuple[str, ...]] = (MEAN, VARIANCE)
    taxonomy: ClassVar[str] = "learn to score"
    source: ClassVar[str] = "Haussmann, Hamprecht & Kandemir, IJCAI 2019"
    departures: ClassVar[str] = (
        "the baseline is the mean of past returns, which it is subtracted from (the authors' "
        "program averages rewards); likelihoods are normalised over the classes; the policy's "
        "Kullback-Leibler term is a mean over weights: as a sum it overrules the rewards (a bandit "
        "of 200 updates puts 0.11 of its probability on the rewarded tenth, not 0.99). As in the "
        "paper, a pick's reward is of an item that the later model was trained on, not of held-out "
        "ones; its diversity is the share of distinct labels among the picks that were labeled, "
        "not among all. Picks without a label are left out before rewards are discounted, so that "
        "gamma counts the labeled picks between two of them, and the diversity goes to the last "
        "labeled one. Labels that come after the next round has begun do not reach the policy. "
        "The policy's weights start with PyTorch's initial weights of linear layers as means and a "
        "variance of exp(-9), and its biases are numbers. Where the ranking has too few rows for "
        "all places, the moments of the missing candidates are zeros, and they are never taken. "
        "That the policy's learning rate is 1e-3 is not confirmed"
    )

    @property
    def prescribed(self) -> Learner | None:
        """The learner whose network gives moments; any where they are measured over members."""
        return self.learner if self.moments == "network" else None

    @property
    def slots(self) -> int:
        """The most candidates that the policy is shown."""
        return math.ceil(self.leading / self.stride)

    def signals(self) -> tuple[Signal, ...]:
        """Return the moments of the logits, and probabilities where these are ranked."""
        ranked = (LogProbs(),) if self.ranking == "entropy" else ()
        if self.moments == "members":
            return (MemberMoments(self.passes), *ranked)
        return (Extra(MEAN), Extra(VARIANCE), *ranked)

    def recalls(self) -> tuple[Signal, ...]:
        """Return the moments."""
        return tuple(signal for signal in self.signals() if signal != LogProbs())

    def score(self, s: Columns) -> Tensor:
        """Return the entropy that the items are ranked by."""
        if self.ranking == "entropy":
            return acquisition.entropy(s["log_probs"])
        return entropies(s[MEAN], s[VARIANCE])

    def objective(self, ctx: Ctx) -> Episode:
        """Return the episode under the policy of the memory."""
        seed = ctx.memory.get("seed", ctx.seed)
        policy = LearnedPolicy(self.slots, self.hidden, seed, ctx.memory.get("policy"))
        chooser = None if self.policy == "greedy" else policy
        return Episode(leading=self.leading, stride=self.stride, policy=chooser)

    def rewards(self, outcome: Outcome) -> Tensor:
        """Return the reward of each labeled pick, in pick order: float64 ``[n]``."""
        labeled, targets = outcome.labeled, outcome.targets[outcome.labeled]
        before, after = (
            likelihood({n: columns[n][labeled] for n in (MEAN, VARIANCE)}, targets)
            for columns in (outcome.before, outcome.after)
        )
        rewards = after - before
        if len(rewards):
            rewards[-1] += self.diversity * len(torch.unique(targets)) / len(targets)
        return rewards

    def remember(self, memory: Memory, outcome: Outcome) -> Memory:
        """Return the policy after one step of REINFORCE, its optimiser, and the returns so far."""
        if self.policy == "greedy" or not bool(outcome.labeled.any()):
            return memory
        seed = memory.get("seed", outcome.seed)
        policy = LearnedPolicy(self.slots, self.hidden, seed, memory.get("policy"))
        net = policy.network(outcome.notes["mean"].shape[1])
        optimizer = torch.optim.Adam(net.parameters(), self.lr)
        if "optimizer" in memory:
            optimizer.load_state_dict(dict(memory["optimizer"]))
        returns = discounted(self.rewards(outcome), self.gamma)
        total, count = memory.get("returns", (0.0, 0))
        baseline = total / count if count else 0.0
        taken = self.log_chances(net, outcome)[outcome.labeled]
        loss = -((returns - baseline) * taken).sum() + self.regularizer(net)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return {
            "seed": seed,
            "policy": dict(net.state_dict()),
            "optimizer": optimizer.state_dict(),
            "returns": (total + float(returns.sum()), count + len(returns)),
        }

    def log_chances(self, net: PolicyNet, outcome: Outcome) -> Tensor:
        """Return the log-probability of every pick under a policy, float64 ``[k]``."""
        slots = outcome.notes["slots"]
        steps = replay(len(outcome.notes["mean"]), slots.numpy(), self.leading, self.stride)
        mean, variance = (
            torch.stack([net.padded(outcome.notes[name][step]) for step in steps])
            for name in ("mean", "variance")
        )
        counts = torch.tensor([len(step) for step in steps])
        log_chances: Tensor = net(mean, variance, counts)
        return log_chances.gather(1, slots[:, None])[:, 0]

    def regularizer(self, net: PolicyNet) -> Tensor:
        """Return the Kullback-Leibler term, per weight."""
        weights = sum(layer.numel() for name, layer in net.named_parameters() if "log_" in name)
        return self.divergence / weights * net.divergence(self.prior)
