"""What a round trains on, and whether network and learner give what a strategy asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rayal.engine.embed import head_task
from rayal.engine.pool_rows import PoolRows
from rayal.engine.pretrain import Pretraining, member_store
from rayal.engine.remember import attached_rows, columns_read, hash_read
from rayal.engine.scan import NO_POOL, Scan
from rayal.engine.spec import ProjectSpec
from rayal.engine.train import FolderStore, context, is_final, model_hash
from rayal.engine.vocabularies import vocabulary_of
from rayal.errors import BudgetError, LabelError, NeedsError, SettingsError
from rayal.labels import Label, NumberLabel
from rayal.learners.base import LabeledRows, Learner, TensorRows, TrainData, Weights
from rayal.learners.feeds import FROM_POOL
from rayal.models.build import weights_of
from rayal.models.committee import Committee, home_of
from rayal.models.weights import RANDOM
from rayal.pool.reader import Pool
from rayal.registry import learners, strategies
from rayal.strategies.base import Strategy
from rayal.tasks import Task, Vocabulary, task_for
from rayal.tasks.text import SIZE
from rayal.types import Columns, Keys, id_keys

if TYPE_CHECKING:
    from rayal.engine.driver import Project


def number_of(settings: Mapping[str, Any], known: str | None) -> NumberLabel | None:
    """Return the number that is predicted, with its bounds; None where classes are.

    Args:
        settings: of the task.
        known: what the known labels of the pool are: class | number; None without labels.

    Raises:
        SettingsError: bounds of a number are given, and classes are predicted.
    """
    target = settings.get("target")
    low, high = settings.get("low"), settings.get("high")
    if target is None:
        target = "number" if known == "number" and not settings.get("classes") else "class"
    if target == "number":
        return NumberLabel(-math.inf if low is None else low, math.inf if high is None else high)
    if low is not None or high is not None:
        raise SettingsError(
            "task.low and task.high bound a number, and classes are predicted; leave them out, or "
            "set task.target to number"
        )
    return None


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


def task_of(pool: Pool, settings: Mapping[str, Any]) -> Task:
    """Return the task of a pool's items.

    Raises:
        SettingsError: the pool has no classes and none are given, or kind or target do not fit.
    """
    given = dict(settings)
    kind = given.pop("kind", None)
    number = number_of(given, pool.info.get("label_kind"))
    classes = given.pop("classes", None) or pool.classes or ()
    for name in ("target", "low", "high"):
        given.pop(name, None)
    if not classes and number is None:
        raise SettingsError(
            f"pool {pool.name!r} has no known classes; name them: task: {{classes: [cat, dog]}}, "
            "or predict a number: task: {target: number}"
        )
    payload = pool.payload
    if payload.get("encoding") == "file" and "size" not in given:
        given["example"] = pool.read(pool.parts[0]).slice(0, 1)
    if payload["kind"] == "text":
        given["words"] = vocabulary_of(pool, given)
    return task_for(payload, kind=kind, classes=tuple(classes), number=number, **given)


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


def untrained(spec: ProjectSpec, task: Task) -> Committee:
    """Return a committee of the learner's fresh networks, which stand for every member."""
    place = torch.device(home_of(spec.scan.device))
    made = spec.learner.networks(context(spec.learner, spec.network, task, device=str(place)))
    statistics = task.fit(torch.zeros((1, *task.input_shape)))
    statistics |= task.fit_targets(torch.zeros(1))
    nets = (made,) * spec.committee_size
    return Committee(nets, task, statistics, "", 0, 0, spec.learner.extras)


@dataclass(frozen=True)
class Training:
    """The training set of a round, sorted by id, and what names the committee trained on it.

    Attributes:
        project: whose round it is.
        round: its number.
        ids: labeled pool items, sorted.
        hash: digest of everything the weights depend on.
        data: decoded rows and targets.
        reads: hash of the columns of the last round's scan that the learner reads.
        pretraining: what all members start from; None where they start afresh.
    """

    project: Project
    round: int
    ids: tuple[str, ...]
    hash: str
    data: TrainData
    reads: str | None = None
    pretraining: Pretraining | None = None

    @classmethod
    def of(cls, project: Project, labels: Mapping[str, Label], round: int) -> Training:
        """Read the labeled pool items back by id; labels of test items are left out."""
        pool, task, spec = project.inputs.pool, project.inputs.task, project.spec
        keys = id_keys(labels)
        test = np.isin(keys, keys_of_tests(pool))
        kept = {i: labels[i] for i, out in zip(labels, test, strict=True) if not out}
        ids = tuple(sorted(kept))
        table = pool.take(ids)
        rows = TensorRows(ids, task.decode(table))
        contents = dict(zip(ids, table.column("content_hash").to_pylist(), strict=True))
        targets = task.targets([kept[i] for i in ids])
        unlabeled = _unlabeled(project, set(ids))
        attached, named = attached_rows(project, round, kept)
        reads = hash_read(project, round)
        pretraining = Pretraining.of(project)
        hash = model_hash(
            learner=spec.learner,
            network=spec.network,
            task=task,
            labels={i: [label, contents[i]] for i, label in kept.items()},
            members=spec.committee_size,
            seed=spec.seeds.model,
            round=round,
            threads_per_model=spec.threads_per_model,
            unlabeled=None if unlabeled is None else unlabeled.fingerprint,
            attached=named,
            reads=reads,
            pretrained=None if pretraining is None else pretraining.hash,
            device=spec.scan.device,
        )
        data = TrainData(LabeledRows(rows, targets), unlabeled, attached)
        return cls(project, round, ids, hash, data, reads, pretraining)

    def columns(self) -> Columns | None:
        """Return what the learner reads of the last round's scan; None where there is nothing."""
        return columns_read(self.project, self.reads, set(self.ids))

    @property
    def noted(self) -> dict[str, Any]:
        """What the prepare stage tells of it."""
        told = {"reads": self.reads} if self.project.spec.learner.reads() else {}
        return {"labels": len(self.ids), **told}

    def arguments(self) -> dict[str, Any]:
        """Return what ``train_committee`` takes."""
        spec = self.project.spec
        return {
            "learner": spec.learner,
            "network": spec.network,
            "task": self.project.inputs.task,
            "data": self.data,
            "seed": spec.seeds.model,
            "round": self.round,
            "members": spec.committee_size,
            "hash": self.hash,
            "store": self.store,
            "device": spec.scan.device,
        }

    def store(self, member: int) -> FolderStore:
        """Return a member's checkpoints."""
        return member_store(self.project, self.round, self.hash, member)

    def weights(self) -> Weights | None:
        """Return what members start from, where the learner is pre-trained and one is waiting."""
        if self.pretraining is None:
            return None
        members = range(self.project.spec.committee_size)
        if all(is_final(self.store(member)) for member in members):
            return None
        return self.pretraining.weights(self.round)


def _unlabeled(project: Project, labeled: set[str]) -> PoolRows | None:
    """Return the pool's other items where the learner trains on them."""
    wanted = {stream.source for stream in project.spec.learner.streams()}
    if not wanted & set(FROM_POOL):
        return None
    inputs = project.inputs
    ids = tuple(sorted(i for i in inputs.pool.ids("pool") if i not in labeled))
    return PoolRows(inputs.pool, inputs.task, ids)


def keys_of_tests(pool: Pool) -> Keys:
    """Return the id keys of the test items."""
    parts = [pool.read(part).column("key").to_numpy() for part in pool.parts_of("test")]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)
