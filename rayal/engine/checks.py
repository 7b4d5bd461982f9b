"""Checks of a specification: whether the pool is large enough and everything asked for is given."""

from __future__ import annotations

from typing import Any

import torch

from rayal.engine.embed import head_task
from rayal.engine.scan import NO_POOL, Scan
from rayal.engine.spec import ProjectSpec
from rayal.engine.tasks import task_of
from rayal.engine.train import context
from rayal.errors import BudgetError, LabelError, NeedsError, SettingsError
from rayal.learners.base import Learner
from rayal.models.build import weights_of
from rayal.models.committee import Committee, home_of
from rayal.models.weights import RANDOM
from rayal.pool.reader import Pool
from rayal.registry import learners, strategies
from rayal.strategies.base import Strategy
from rayal.tasks import Task, Vocabulary
from rayal.tasks.text import SIZE


def check_spec(pool: Pool, spec: ProjectSpec) -> None:
    """Check that a pool has enough items, and that the strategy gets what it asks for.

    Raises:
        BudgetError: the rounds would label more items than the pool has.
        NeedsError: the strategy asks for what network and learner do not give, or the initial
            strategy asks a model.
        LabelError: a known label of the pool is not among the given classes.
    """
    check_initial(spec)
    wanted = spec.initial.count + spec.batch * (spec.rounds or 0)
    if wanted > len(pool):
        raise BudgetError(
            f"{wanted} labels are asked for ({spec.initial.count} at first, then "
            f"{spec.rounds or 0} x {spec.batch}), but pool {pool.name!r} has {len(pool)} "
            "items; lower initial.count, batch or rounds"
        )
    check_needs(pool, spec)


def check_initial(spec: ProjectSpec) -> None:
    """Raise NeedsError where the initial strategy asks a model."""
    initial = strategies[spec.initial.strategy]()
    if initial.signals():
        raise NeedsError(
            f"initial.strategy {spec.initial.strategy!r} asks a model that is not trained yet; "
            "use random"
        )


def check_needs(pool: Pool, spec: ProjectSpec) -> None:
    """Build the network once and ask every signal whether it can be computed.

    Raises:
        NeedsError: the strategy asks for what network and learner do not give.
        SettingsError: the network does not exist, or its parameters do not fit.
        LabelError: a known label is not among the given classes.
    """
    items = task_of(pool, spec.task)
    classes = items.classes
    strange = [c for c in pool.classes or () if c not in classes]
    if strange and items.target == "class":
        raise LabelError(
            f"label {strange[0]!r} of pool {pool.name!r} is not among the {len(classes)} classes "
            f"{list(classes)[:20]}; name all of them in task.classes, or leave it out"
        )
    check_fits(items, spec)


def check_fits(items: Task, spec: ProjectSpec) -> None:
    """Raise NeedsError or SettingsError where network, learner and strategy do not fit the rows."""
    task = head_task(spec, items)
    check_targets(spec.strategy, spec.learner, task.target)
    committee = untrained(spec, task)
    spec.learner.check(task, committee.nets[0])
    Scan(NO_POOL, committee, spec.strategy, spec.learner, spec.scan).check()
    if not task.has_views:
        _check_views(spec)


def _check_views(spec: ProjectSpec) -> None:
    """Raise NeedsError where augmented views are asked for, which not all rows have."""
    views = {view for stream in spec.learner.streams() for view in stream.views}
    names = {name for signal in spec.strategy.signals() for name in signal.names()}
    if "weak" in views or "view_log_probs" in names:
        raise NeedsError(
            "texts, and the embeddings of a frozen backbone, have no augmented views, which "
            f"{'the learner' if 'weak' in views else type(spec.strategy).__name__} asks for; set "
            "learner.augment to false, or choose another strategy"
        )


def check_targets(strategy: Strategy, learner: Learner, target: str) -> None:
    """Raise NeedsError, naming what would work, unless strategy and learner predict the target.

    Args:
        strategy: whose signals are asked for.
        learner: that trains the committee.
        target: what the task predicts: class | number.
    """
    noun = {"class": "a class", "number": "a number"}[target]
    if not _suits(strategy, target):
        wrong = [n for s in strategy.signals() if target not in s.targets for n in s.names()]
        asked = f"asks for {', '.join(wrong)}" if wrong else "has a learner of its own"
        fitting = [name for name in strategies if _suits(strategies[name](), target)]
        raise NeedsError(
            f"strategy {_name(strategies, strategy)} {asked}, and the task predicts {noun} "
            f"(task.target); strategies for it: {', '.join(fitting)}"
        )
    if target not in learner.targets:
        fitting = [name for name in learners if target in learners[name].targets]
        raise NeedsError(
            f"learner {_name(learners, learner)} does not learn to predict {noun}, which the task "
            f"wants (task.target); learners for it: {', '.join(fitting)}"
        )


def _suits(strategy: Strategy, target: str) -> bool:
    own = strategy.learner
    asked = all(target in signal.targets for signal in strategy.signals())
    return asked and (own is None or target in own.targets)


def _name(table: Any, value: object) -> str:
    names = [name for name in table if table[name] is type(value)]
    return repr(names[0]) if names else type(value).__name__


def refuse_large(spec: ProjectSpec, task: Task, *, most: int) -> None:
    """Raise SettingsError where a committee would have too many weights, or read a file.

    No weight is allocated.

    Args:
        spec: with the network and the committee's size.
        task: of its rows; its tokeniser may grow with the pool, to the size that is set.
        most: weights of all members.
    """
    network, words = spec.network, task.vocabulary
    if network.params.get("weights", RANDOM) != RANDOM:
        raise SettingsError(
            "model.params.weights names a file of the service's host, which no client may read; "
            "leave it out, or make the project on the command line"
        )
    if words is not None:
        words = Vocabulary.imagined(max(words.size, spec.task.get("vocabulary", SIZE)))
    weights = spec.committee_size * weights_of(
        network.name,
        network.params,
        input_shape=task.input_shape,
        n_outputs=task.n_outputs,
        vocabulary=words,
    )
    if weights > most:
        raise SettingsError(
            f"{spec.committee_size} x network {network.name!r} would have {weights} weights, at "
            f"most {most} are allowed; give smaller params, or fewer members"
        )


def untrained(spec: ProjectSpec, task: Task) -> Committee:
    """Return a committee of the learner's fresh networks, which stand for every member."""
    place = torch.device(home_of(spec.scan.device))
    networks = spec.learner.networks(context(spec.learner, spec.network, task, device=str(place)))
    statistics = task.fit(torch.zeros((1, *task.input_shape)))
    statistics |= task.fit_targets(torch.zeros(1))
    nets = (networks,) * spec.committee_size
    return Committee(nets, task, statistics, "", 0, 0, spec.learner.extras)
