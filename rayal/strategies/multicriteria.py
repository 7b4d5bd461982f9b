"""MCADL: density, similarity, uncertainty and class balance, weighed by how good the model is.

Source: Yuan, Hou, Xiao, Cao, Guan & Nie, Knowledge-Based Systems 172, 2019, "Multi-criteria active
deep learning for image classification". The paper's text was not at hand; its formulas are taken
from two public programs, which differ: one that follows the printed formulas, and the authors'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Le, Lt
from torch import Tensor

from rayal import acquisition
from rayal.learners import Stream, Supervised, TrainContext, TrainData, TrainState
from rayal.learners.base import Batches
from rayal.registry import learners, strategies
from rayal.selection.criteria import MultiCriteria, Weights
from rayal.signals import Embedding, LogProbs, Signal
from rayal.strategies.base import Ctx, Memory, Outcome, Strategy
from rayal.types import Columns

PSEUDO: Literal["pseudo"] = "pseudo"
SHARE = 0.9  # of both adaptive weights where the model is never right
LEAST = 0.05  # accuracy below which a class's weight grows no more
POOR = 0.5  # accuracy of the worst class below which classes that improve are preferred


# ---- learner -------------------------------------------------------------------------------------


@learners.register("certain_pseudo_labels")
@dataclass(frozen=True)
class CertainPseudoLabels(Supervised):
    """Train as ``supervised`` does, and on items of which the last round's committee was certain.

    An item whose predictive entropy lay below the threshold is trained on under its predicted
    class, in this round alone. Such rows weigh as many labeled rows would; in the first round
    there are none.

    Args:
        threshold: threshold of the entropy, in decimal digits, with 100 labeled rows.
        decline: fall of the threshold with each further labeled row; below 0 nothing is certain.
    """

    threshold: Annotated[float, Ge(0)] = 0.3
    decline: Annotated[float, Ge(0)] = 0.0375 / 128

    hashed_as: ClassVar[tuple[str, ...]] = ("rayal.strategies.multicriteria", "CertainPseudoLabels")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = Supervised.presets
    taxonomy: ClassVar[str] = "unlabeled"
    source: ClassVar[str] = "Yuan et al., Knowledge-Based Systems 2019 (pseudo-labels)"
    departures: ClassVar[str] = "the threshold is that of the authors' program for MNIST"

    def reads(self) -> tuple[Signal, ...]:
        """Return the log-probabilities."""
        return (LogProbs(),)

    def streams(self) -> tuple[Stream, ...]:
        """Return the streams of ``supervised``, and the certain items."""
        labeled = super().streams()
        return (*labeled, Stream(PSEUDO, PSEUDO, views=labeled[0].views))

    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        """Return the state with the certain items and their classes in its tables."""
        state = super().begin(ctx, data)
        if ctx.columns is None or data.unlabeled is None:
            return state
        log_probs = ctx.columns["log_probs"]
        digits = acquisition.entropy(log_probs) / math.log(10.0)
        at = {item: row for row, item in enumerate(data.unlabeled.ids)}
        certain = torch.nonzero(digits < self.limit(ctx.n_labeled))[:, 0]
        usable = [i for i in certain.tolist() if ctx.columns.ids[i] in at]
        rows = torch.tensor([at[ctx.columns.ids[i]] for i in usable], dtype=torch.int64)
        state.tables |= {
            f"rows.{PSEUDO}": rows,
            f"targets.{PSEUDO}": log_probs[torch.tensor(usable, dtype=torch.int64)].argmax(dim=1),
        }
        state.scalars[PSEUDO] = len(rows) / (len(rows) + len(data.labeled))
        return state

    def limit(self, labeled: int) -> float:
        """Return the threshold for a number of labeled rows."""
        return self.threshold - self.decline * (labeled - 100)

    def joined(
        self, loss: Tensor, state: TrainState, batches: Batches, ctx: TrainContext
    ) -> Tensor:
        """Return the loss of labeled rows joined by that of certain ones, by their numbers."""
        if PSEUDO in batches:
            share, net = state.scalars[PSEUDO], state.networks["task"]
            done = state.step / ctx.steps
            own = self._losses(net, batches[PSEUDO], done, self.label_smoothing).mean()
            loss = (1.0 - share) * loss + share * own
        return super().joined(loss, state, batches, ctx)


# ---- strategy ------------------------------------------------------------------------------------


@strategies.register("multicriteria")
@dataclass(frozen=True)
class MCADL(Strategy):
    """Label items unlike the labeled ones of their class, uncertain, and of classes in need.

    The score is α (½ density + ½ similarity) + (1 - α) (β uncertainty + (1 - β) w_c) with
    α = β = 0.9 exp(-A), A the model's accuracy; c is the class that most of the nearest labeled
    items are predicted as. Pending items (offered or leased) count as labeled ones: their label is
    on its way, and none is read.

    Accuracies are smoothed over rounds by ``keep``, and a class improves by the difference of two
    smoothed accuracies. Improvements relative to the last accuracy are not included.

    Args:
        members: trained networks; the embedding is that of the first.
        form: the formula: printed, as above | script: (1 - x) uncertainty + x ((1 - x) density + x
            w_c) with the density among labeled items of all classes, x their share of the pool.
        neighbors: labeled items that vote on an item's class.
        alpha: the weight α, or x of the script form; None adapts it.
        beta: the weight β; None adapts it.
        keep: share of their weight that earlier rounds' counts of right predictions keep.
    """

    form: Literal["printed", "script"] = "printed"
    neighbors: Annotated[int, Ge(1)] = 5
    alpha: Annotated[float, Ge(0), Le(1)] | None = None
    beta: Annotated[float, Ge(0), Le(1)] | None = None
    keep: Annotated[float, Ge(0), Lt(1)] = 0.5

    carry: ClassVar[tuple[str, ...]] = ("log_probs", "embedding")
    context: ClassVar[tuple[str, ...]] = ("log_probs", "embedding")
    taxonomy: ClassVar[str] = "informativeness"
    source: ClassVar[str] = "Yuan et al., Knowledge-Based Systems 2019"
    departures: ClassVar[str] = (
        "formulas after public programs, the paper's text was not at hand. Uncertainty is best "
        "versus second best, as in the authors' program: the printed measure is largest for "
        "confident items. Cosines are of embeddings, not of pixels. Accuracies are those of the "
        "committee that chose a batch on that batch's labels, before it was trained on: those of "
        "training rows end at 1, and the authors' validation set of 800 images a class is more "
        "than a project has; they are of uncertain items, so they are low, and labels that "
        "come after the next round has begun do not count. They are smoothed: in each round the "
        "counts of earlier ones keep the share keep, by default 0.5, so that a class's improvement "
        "is the difference of two smoothed accuracies, one round apart, and not of two "
        "measurements; a class that was never chosen has the accuracy of all. In 1 / accuracy, "
        "accuracies below 0.05 would count as 0.05, but that form is used from 0.5 on alone. The "
        "form of the authors' program in which improvements are relative to the last accuracy, of "
        "at least 0.05, is not included. Pseudo-labels, which are optional, are the learner "
        "certain_pseudo_labels"
    )

    def signals(self) -> tuple[Signal, ...]:
        """Return probabilities and embedding."""
        return (LogProbs(), Embedding())

    def recalls(self) -> tuple[Signal, ...]:
        """Return the probabilities alone."""
        return (LogProbs(),)

    def score(self, s: Columns) -> Tensor:
        """Return the uncertainty 1 - (p_1 - p_2), in [0, 1]."""
        return 1.0 + acquisition.margin(s["log_probs"])

    def objective(self, ctx: Ctx) -> MultiCriteria:
        """Return the sum of criteria with the weights of this round."""
        labeled = len(ctx.context.get("embedding", ()))
        share = labeled / max(1, labeled + ctx.n_candidates)
        return MultiCriteria(weights=self.weights(ctx.memory, share), neighbors=self.neighbors)

    def weights(self, memory: Memory, share: float = 0.0) -> Weights:
        """Return the weight of each criterion.

        Args:
            memory: counts of earlier rounds; without them the accuracy is 0, all classes are alike.
            share: labeled share of all items, by which the authors' form weighs.
        """
        classes = tuple(class_weights(memory, self.form).tolist()) if memory else ()
        if self.form == "script":
            x = share if self.alpha is None else self.alpha
            return Weights(x * (1.0 - x), 0.0, 1.0 - x, x * x, classes, among_all=True)
        adaptive = SHARE * math.exp(-overall(memory))
        alpha = adaptive if self.alpha is None else self.alpha
        beta = adaptive if self.beta is None else self.beta
        model = 1.0 - alpha
        return Weights(alpha / 2, alpha / 2, model * beta, model * (1.0 - beta), classes)

    def remember(self, memory: Memory, outcome: Outcome) -> Memory:
        """Return counts ``[C]`` of rows and right predictions, and the accuracies before them."""
        log_probs = outcome.before["log_probs"]
        targets = outcome.targets[outcome.labeled]
        right = (log_probs.argmax(dim=1)[outcome.labeled] == targets).double()
        none = torch.zeros(log_probs.shape[1], dtype=torch.float64)
        counts: dict[str, Any] = {
            "rows": self.keep * memory.get("rows", none)
            + torch.bincount(targets, minlength=len(none)),
            "right": self.keep * memory.get("right", none) + none.index_add(0, targets, right),
        }
        return counts | ({"last": accuracies(memory)} if memory else {})


def overall(memory: Memory) -> float:
    """Return the share of right predictions; 0 where nothing is known."""
    if not memory or not float(memory["rows"].sum()):
        return 0.0
    return float(memory["right"].sum() / memory["rows"].sum())


def accuracies(memory: Memory) -> Tensor:
    """Return the accuracy of each class ``[C]``; of one that was never chosen, the overall one."""
    rows, right = memory["rows"], memory["right"]
    known = right / rows.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.where(rows > 0, known, torch.full_like(rows, overall(memory)))


def class_weights(memory: Memory, form: str = "printed") -> Tensor:
    """Return the weight of each class, ``[C]``, which sums to 1.

    Where a class has an accuracy below 1/2, and in the authors' form always, that is in proportion
    to how much each class has improved; else to 1 / accuracy. Without an improvement all classes
    are alike.
    """
    accuracy = accuracies(memory)
    if form == "printed" and float(accuracy.min()) >= POOR:
        wanted = 1.0 / accuracy.clamp_min(LEAST)
    else:
        wanted = (accuracy - memory.get("last", accuracy)).clamp_min(0.0)
    if not float(wanted.sum()):
        wanted = torch.ones_like(accuracy)
    return wanted / wanted.sum()
