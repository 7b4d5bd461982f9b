"""Every registered learner fulfils the contract; and the contract notices who does not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from rayal.engine.spec import NetworkSpec
from rayal.learners import Batches, Supervised, TrainContext, TrainData, TrainState
from rayal.registry import learners
from rayal.testing import LEARNER_CHECKS, Trial

SHIPPED = [name for name in learners if learners[name].__module__.startswith("rayal.")]
SHORT: dict[str, dict[str, Any]] = {"layerwise_pretrained": {"pretrain_steps": 12}}
TRIALS: dict[str, Trial] = {
    "pbp": Trial(NetworkSpec("pbp", {"hidden": (6,)}), refused=NetworkSpec("mlp")),
}


@pytest.mark.parametrize("check", LEARNER_CHECKS)
@pytest.mark.parametrize("name", SHIPPED)
def test_contract(name: str, check: str) -> None:
    LEARNER_CHECKS[check](learners[name](**SHORT.get(name, {})), TRIALS.get(name, Trial()))


def test_a_learner_that_wants_another_network_is_told_what_to_give() -> None:
    with pytest.raises(AssertionError, match=r"does not train the trial's network 'mlp'.*trial="):
        LEARNER_CHECKS["resumes"](learners["pbp"]())


# ---- learners with a mistake each ----------------------------------------------------------------


@dataclass(frozen=True)
class Forgetful(Supervised):
    """Keeps a running loss outside of the state."""

    seen: ClassVar[list[float]] = []
    source: ClassVar[str] = "a made-up mistake"

    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        self.seen.clear()
        return super().begin(ctx, data)

    def joined(self, loss: Any, *more: Any) -> Any:
        self.seen.append(loss.item())
        return super().joined(loss * len(self.seen), *more)


@dataclass(frozen=True)
class Curious(Supervised):
    """Looks for labels of the unlabeled rows."""

    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        state = super().begin(ctx, data)
        if (known := getattr(data.unlabeled, "targets", None)) is not None:
            state.scalars["known"] = float(len(known))
        return state


@dataclass(frozen=True)
class Unseeded(Supervised):
    """Draws from a generator of its own."""

    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        with torch.no_grad():
            chance = torch.Generator()
            chance.seed()
            for weight in state.networks["task"].parameters():
                weight.add_(1e-3 * torch.rand(weight.shape, generator=chance))
        return super().step(state, batches, ctx)


@dataclass(frozen=True)
class Alike(Supervised):
    """Starts every member from the same weights, and does not train them."""

    def networks(self, ctx: TrainContext) -> Any:
        return super().networks(_first(ctx))

    def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
        return {}


def _first(ctx: TrainContext) -> TrainContext:
    return replace(ctx, seed=0, round=0, member=0)


@dataclass(frozen=True)
class Untold(Supervised):
    """Does not say what its parameter is."""

    strength: float = 1.0


MISTAKES: dict[str, tuple[type[Supervised], str]] = {
    "resumes": (Forgetful, "ends with other bits"),
    "hidden_labels": (Curious, "asked unlabeled rows for their targets"),
    "same_seed": (Unseeded, "the same seed gave other weights"),
    "stated": (Untold, "does not describe strength"),
}


@pytest.mark.parametrize("check", MISTAKES)
def test_the_contract_notices(check: str) -> None:
    cls, says = MISTAKES[check]
    with pytest.raises(AssertionError, match=says):
        LEARNER_CHECKS[check](cls())


def test_the_contract_notices_a_network_that_is_not_refused() -> None:
    with pytest.raises(AssertionError, match="Supervised does not refuse network mlp"):
        LEARNER_CHECKS["unfit"](Supervised(), Trial(refused=Trial().network))


def test_a_learner_that_is_not_registered_is_told_how() -> None:
    with pytest.raises(AssertionError, match=r"no registered learner.*@learners\.register"):
        LEARNER_CHECKS["ids_not_positions"](Alike())


def test_the_contract_notices_members_that_are_all_alike() -> None:
    with pytest.raises(AssertionError, match="another seed gave the same weights"):
        LEARNER_CHECKS["same_seed"](Alike())


class Local(Supervised):
    """A class that pickle does not find again."""

    __qualname__ = "somewhere.Local"


def test_the_contract_notices_what_does_not_travel() -> None:
    with pytest.raises(Exception, match="somewhere"):
        LEARNER_CHECKS["pickles"](Local())


class Counting(Supervised):
    """Lets decide how many trainings there were before, as another order of rows would."""

    begun: ClassVar[Iterator[int]] = itertools.count(1)

    def begin(self, ctx: TrainContext, data: TrainData) -> TrainState:
        state = super().begin(ctx, data)
        with torch.no_grad():
            for weight in state.networks["task"].parameters():
                weight.add_(next(self.begun))
        return state


@pytest.mark.parametrize(
    ("check", "says"),
    [("ids_not_positions", "the order of the source"), ("hidden_labels", "other hidden labels")],
)
def test_the_contract_notices_what_hangs_on_more_than_labeled_rows(
    check: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(learners._rows, "counting", Counting)
    with pytest.raises(AssertionError, match=says):
        LEARNER_CHECKS[check](Counting())
