"""The contract of learners: a member is a function of its rows, its labels and its seed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from functools import partial, wraps
from typing import Any

import numpy as np
import torch

from rayal.engine.checks import check_targets
from rayal.engine.spec import NetworkSpec
from rayal.engine.train import context
from rayal.errors import RayalError
from rayal.learners import (
    Learner,
    TensorRows,
    TrainContext,
    TrainData,
    fit,
)
from rayal.learners.feeds import FROM_POOL
from rayal.registry import strategies
from rayal.selection.threads import torch_threads
from rayal.settings.parameters import build, parameters
from rayal.strategies.base import TAXONOMY
from rayal.testing.trials import (
    LABELED,
    MLP,
    UNLABELED,
    Stopped,
    Trial,
    all_rows,
    answer,
    check_network,
    committees,
    context_of,
    data_of,
    pretraining_of,
    same,
    store_of,
    task_of,
    trained,
)


def resumes(learner: Learner, trial: Trial = MLP) -> None:
    """Killed behind any epoch, a training goes on to the bits of an unbroken one."""
    learner = trial.short(learner)
    data = data_of(learner)
    trainings: list[tuple[Learner, TrainData, TrainContext]] = []
    if (first := pretraining_of(learner, trial)) is not None:
        trainings.append((first[0], all_rows(), first[1]))
    trainings.append((learner, data, context_of(learner, trial, data)))
    for one, rows, ctx in trainings:
        whole = trained(one, rows, ctx)
        assert whole.epoch > 1, f"{type(one).__name__} ends after its first epoch; give more steps"
        for epoch in range(1, whole.epoch):
            with store_of(stop=epoch) as store:
                try:
                    fit(one, rows, ctx, checkpoint=store)
                except Stopped:
                    torch.rand(epoch)  # other draws of the process must not matter
                state = fit(one, rows, ctx, checkpoint=store)
            assert same(state.state_dict(), whole.state_dict()), (
                f"{type(one).__name__} killed behind epoch {epoch} ends with other bits: all that "
                "changes while training belongs into the TrainState"
            )
            assert same(answer(one, state), answer(one, whole)), "the weights that answer differ"


def hidden_labels(learner: Learner, trial: Trial = MLP) -> None:
    """Labels that the pool knows of rows that nobody has labeled are not asked for, nor felt."""
    learner = trial.short(learner)
    data = data_of(learner)
    unlabeled = data.unlabeled
    assert isinstance(unlabeled, TensorRows)
    poisoned = replace(data, unlabeled=_Poisoned(unlabeled.ids, unlabeled.x))
    trained(learner, poisoned, context_of(learner, trial, data))
    true = list(range(LABELED + UNLABELED))
    plain = committees(learner, trial, order=true, hidden=true)
    wrong = committees(learner, trial, order=true, hidden=true[1:] + true[:1])
    assert len(plain) == 2 and same(plain, wrong), "other hidden labels gave other weights"


class _Poisoned(TensorRows):
    """Unlabeled rows that tell on who looks for their labels."""

    def __getattr__(self, name: str) -> Any:
        if name in ("y", "label", "labels", "target", "targets", "weights"):
            raise AssertionError(f"the learner asked unlabeled rows for their {name}")
        raise AttributeError(name)


def same_seed(learner: Learner, trial: Trial = MLP) -> None:
    """The same seed gives the same weights, another seed, round or member others."""
    learner = trial.short(learner)
    data = data_of(learner)
    ctx = context_of(learner, trial, data)
    state = torch.get_rng_state()
    once = answer(learner, trained(learner, data, ctx))
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator was used up"
    torch.rand(3)
    again = answer(learner, trained(learner, data, ctx))
    assert same(once, again), (
        "the same seed gave other weights; draw by ctx.generator or ctx.chance"
    )
    changes: tuple[dict[str, Any], ...] = ({"seed": 2}, {"round": 1}, {"member": 1})
    for change in changes:
        other = answer(learner, trained(learner, data, replace(ctx, **change)))
        assert not same(once, other), f"another {next(iter(change))} gave the same weights"


def ids_not_positions(learner: Learner, trial: Trial = MLP) -> None:
    """Rows that lie in another order in their source give the same bits, in all rounds."""
    learner = trial.short(learner)
    true = list(range(LABELED + UNLABELED))
    shuffled = np.random.default_rng(5).permutation(len(true)).tolist()
    first = committees(learner, trial, order=true, hidden=true)
    other = committees(learner, trial, order=shuffled, hidden=true)
    assert len(first) == 2 and same(first, other), "the order of the source decided"


def pickles(learner: Learner, trial: Trial = MLP) -> None:
    """Learner, rows and context travel to another process, and train the same bits there."""
    copy = pickle.loads(pickle.dumps(learner))
    assert copy == learner, "a pickled copy differs"
    short = trial.short(learner)
    data = data_of(short)
    ctx = context_of(short, trial, data)
    there = pickle.loads(pickle.dumps((short, data, ctx)))
    here = answer(short, trained(short, data, ctx))
    assert same(here, answer(short, trained(*there))), "a pickled copy trained other weights"


def unfit(learner: Learner, trial: Trial = MLP) -> None:
    """Settings out of bounds, unknown ones, targets and networks that do not fit are refused."""
    cls = type(learner)
    cases: list[tuple[str, Callable[[], object]]] = [
        (
            "the setting no_such_setting",
            partial(build, cls, {"no_such_setting": 1}, where="learner"),
        )
    ]
    for info in parameters(cls):
        for bound in info.bounds:
            setting = {info.name: _beyond(bound)}
            cases.append((f"{setting}", partial(build, cls, setting, where="learner")))
    for target in {"class", "number"} - set(learner.targets):
        cases.append(
            (f"target {target}", partial(check_targets, strategies["random"](), learner, target))
        )
    if trial.refused is not None:
        network = trial.refused
        cases.append((f"network {network.name}", partial(_checked, learner, network)))
    for what, ask in cases:
        try:
            ask()
        except RayalError as error:
            assert len(str(error).split()) > 5, f"{what} is refused without a sentence: {error}"
        else:
            raise AssertionError(f"{cls.__name__} does not refuse {what}")


def _beyond(bound: str) -> float:
    """Return a number that a bound such as ``≥ 2`` excludes."""
    sign, _, number = bound.partition(" ")
    shift = {">": 0.0, "<": 0.0, "≥": -1.0, "≤": 1.0}[sign]
    value = float(number) + shift
    return int(value) if value.is_integer() else value


def _checked(learner: Learner, network: NetworkSpec) -> None:
    """Do what a project does with learner and network before anything starts."""
    task = task_of(learner)
    ctx = context(learner, network, task)
    learner.pretraining(ctx)
    learner.check(task, learner.networks(ctx))


def stated(learner: Learner, trial: Trial = MLP) -> None:
    """Source, taxonomy, departures and docstring with all parameters; the learner is frozen."""
    cls = type(learner)
    try:
        learner.steps = 2  # type: ignore[misc]
    except FrozenInstanceError:
        pass
    else:
        raise AssertionError("must be a frozen dataclass")
    assert getattr(cls, "taxonomy", None) in TAXONOMY, f"taxonomy is none of {TAXONOMY}"
    assert len(getattr(cls, "source", "")) > 10 and cls.departures, "state source and departures"
    assert cls.__doc__ and not cls.__doc__.startswith(cls.__name__ + "("), "a docstring is missing"
    own = [f.name for f in fields(cls) if f.name in vars(cls).get("__annotations__", {})]
    untold = [name for name in own if f"{name}:" not in cls.__doc__]
    assert not untold, f"the docstring does not describe {', '.join(untold)}"
    strange = [
        s.name for s in learner.streams() if s.source not in (*FROM_POOL, "labeled", "attached")
    ]
    assert not strange, f"streams {strange} come from nowhere"
    assert {t for t in learner.targets} <= {"class", "number"} and learner.targets


def _on_one_thread(check: Callable[..., None]) -> Callable[..., None]:
    """Return the check as it runs with one torch thread, as members are trained."""

    @wraps(check)
    def run(learner: Learner, trial: Trial = MLP) -> None:
        with torch_threads(1):
            check_network(learner, trial)
            check(learner, trial)

    return run


LEARNER_CHECKS: dict[str, Callable[..., None]] = {
    check.__name__: _on_one_thread(check)
    for check in (
        resumes,
        hidden_labels,
        same_seed,
        ids_not_positions,
        pickles,
        unfit,
        stated,
    )
}
