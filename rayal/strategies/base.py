"""The base of strategies: questions to the model, the score of an item, the joint choice of k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar

import numpy.typing as npt
from annotated_types import Ge
from torch import Tensor

from rayal.errors import NeedsError
from rayal.learners.base import Learner
from rayal.models.committee import Committee
from rayal.selection.objective import Objective
from rayal.selection.sampling import share_of
from rayal.selection.topk import TopK
from rayal.signals.base import Signal
from rayal.types import Columns

Memory = Mapping[str, Any]  # nested dictionaries and lists of tensors, numbers and text
TAXONOMY = ("baseline", "informativeness", "representativeness", "learn to score", "unlabeled")


@dataclass(frozen=True)
class Ctx:
    """Facts of the round that the joint choice may use besides the columns on the shards.

    Attributes:
        round: the round that selects; -1 for the initial choice.
        k: items to choose.
        seed: the query seed of this round.
        n_candidates: items that may be chosen.
        labels: item id to label, of everything labeled.
        context: the strategy's context columns of labeled and pending rows, ``[L, …]``.
        memory: result of ``Strategy.remember`` for the rounds before; empty in the first one.
    """

    round: int
    k: int
    seed: int
    n_candidates: int
    labels: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    memory: Memory = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A round's picks with their labels and predictions, from which a strategy learns later.

    Attributes:
        round: the round that chose them.
        seed: its query seed.
        ids: the k picks, in pick order.
        labeled: bool ``[k]``, whether the model that is now there was trained on their label.
        targets: ``[k]``, their labels as the task encodes them; 0 where there is none.
        before: columns of the picks by the committee that chose them.
        after: the same columns by the committee that is now there.
        notes: notes of the objective on its choice, by name.
    """

    round: int
    seed: int
    ids: Sequence[str]
    labeled: Tensor
    targets: Tensor
    before: Columns
    after: Columns
    notes: Mapping[str, Tensor]


@dataclass(frozen=True)
class Strategy:
    """Base of all strategies: frozen, without learned state, the same object on every worker.

    A field is a hyperparameter; its annotation carries the bounds.

    Args:
        members: committee size that the strategy asks for; the model may have more.
    """

    members: Annotated[int, Ge(1)] = 1

    #: learner that the method itself prescribes; None leaves it to the settings
    learner: ClassVar[Learner | None] = None
    #: columns that the joint choice needs; they stay on the shards
    carry: ClassVar[tuple[str, ...]] = ()
    #: columns that it needs of labeled and of pending items
    context: ClassVar[tuple[str, ...]] = ()
    taxonomy: ClassVar[str]
    source: ClassVar[str]
    departures: ClassVar[str] = "none"
    #: parameters that trade exactness for memory or round trips, with what was measured of them
    approximations: ClassVar[str] = "none"

    @property
    def prescribed(self) -> Learner | None:
        """The learner that the method with these hyperparameters prescribes; None for any."""
        return self.learner

    def trained_by(self, chosen: Learner) -> Learner:
        """Return the learner that trains the committee, of the one that the settings chose.

        A method that prescribes its own takes from ``chosen`` what both of them have, such as the
        number of steps; where ``chosen`` is of its kind already, all is as chosen.
        """
        own = self.prescribed
        if own is None or isinstance(chosen, type(own)):
            return chosen
        names = {f.name for f in fields(chosen)}
        return replace(
            own, **{f.name: getattr(chosen, f.name) for f in fields(own) if f.name in names}
        )

    def signals(self) -> tuple[Signal, ...]:
        """Return the signals that the scan must compute, each at most once."""
        return ()

    def check(self, committee: Committee) -> None:
        """Raise NeedsError, with a remedy, if the method does not hold for such a committee.

        Signals are asked on their own. Nothing has started yet: the networks are untrained.
        """

    def score(self, s: Columns) -> Tensor | None:
        """Return ``[N]``, or ``[N, 1 + T]`` with T tie-breakers behind the score.

        None means that single items are not ranked.
        """
        return None

    def objective(self, ctx: Ctx) -> Objective:
        """Return the objective that chooses k items together; by default the k largest scores."""
        return TopK()

    def attach(self, committee: Committee, x: Tensor, ids: Sequence[str]) -> Columns:
        """Return columns of the picks that are stored with the round; by default none.

        A column ``x`` holds decoded rows that are trained on under the picks' labels, from the
        next round on.

        Args:
            committee: committee that chose, in eval mode, with the networks of the scan.
            x: decoded rows of the picks, ``[k, …]``.
            ids: their ids, in pick order.
        """
        return Columns({}, ids)

    def recalls(self) -> tuple[Signal, ...]:
        """Return the signals of a round's picks that ``remember`` wants, before and after."""
        return self.signals()

    def remember(self, memory: Memory, outcome: Outcome) -> Memory:
        """Return the memory with which the next batch is chosen; by default there is none.

        A pure function, called once a round from the second one on; what it returns is stored
        with the round's picks. It is called neither after a change of the strategy nor of the
        classes: the memory is empty then.

        Args:
            memory: with which the last batch was chosen; empty for the first one.
            outcome: labels and predictions of that batch.
        """
        return {}


def check_softmax(strategy: Strategy, committee: Committee) -> None:
    """Raise NeedsError unless probabilities are a softmax of the last linear layer of member 0.

    Gradients of the loss with respect to that layer are (p - e_y) ⊗ h only then.
    """
    net = committee.net(0)
    if not net.ends_linear:
        behind = type(net).__name__ if net.link is None else type(net.link).__name__
        raise NeedsError(
            f"{type(strategy).__name__} differentiates a softmax of the last linear layer in "
            f"closed form, and this learner's probabilities are another function of it ({behind}); "
            "use the learner supervised, or a strategy that asks for probabilities or embedding "
            "alone, such as margin, entropy or coreset"
        )


@dataclass(frozen=True)
class Joint(Strategy):
    """Base of strategies that choose jointly and may do so among a sample of the rows.

    Args:
        members: committee size that the strategy asks for.
        candidates: None runs the joint choice over all rows. A number runs it over about so many,
            drawn uniformly by item and seed: only they are kept in memory. The record then states
            the cost.
    """

    candidates: Annotated[int, Ge(1)] | None = None

    def share(self, ctx: Ctx) -> float:
        """Return the chance of an item to be a candidate; 1 without ``candidates``.

        Raises:
            BudgetError: there are fewer candidates than picks.
        """
        return share_of(self.candidates, ctx.n_candidates, ctx.k)
