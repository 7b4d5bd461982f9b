"""A project's spec: one frozen value, made of settings, and kept in the ledger as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from rayal.errors import SettingsError, nearest
from rayal.learners.base import Learner
from rayal.models import build_network
from rayal.models.backbone import BackboneSpec
from rayal.models.base import TaskNet
from rayal.models.moments import ConstantNoise
from rayal.models.weights import weights_digest
from rayal.registry import Table, learners, strategies
from rayal.selection.tiles import PAD
from rayal.settings.parameters import build
from rayal.settings.run import Cell, LearnerSettings, ModelSettings, ProjectSettings
from rayal.strategies.base import Strategy
from rayal.tasks.base import Task
from rayal.types import Seeds, digest, later_fields, stated


@dataclass(frozen=True)
class ScanOptions:
    """Options of a network's run over the pool; part of the columns' hash where it changes bits.

    Args:
        batch: rows per forward pass. Every pass is padded to one number of rows, a multiple of
            64, so that the columns' bits do not depend on it.
        precision: fp32, or bf16 (autocast), whose scores differ in the third digit.
        device: where the network runs.
        compile: compile the network's stages for each committee: seconds first, then faster;
            columns differ from the eager ones in the last digits.
    """

    batch: int = 64
    precision: str = "fp32"
    device: str = "cpu"
    compile: bool = False

    @property
    def width(self) -> int:
        """Rows of a padded pass."""
        return -(-self.batch // PAD) * PAD


@dataclass(frozen=True)
class SelectionOptions:
    """Options of the columns that a joint choice compares.

    Args:
        precision: fp32, or bf16: embeddings are stored and held in half the bytes, rounded to 8
            bits (a relative error up to 2^-9), and computed with in float32 all the same.
        device: where shards hold their columns and make products: cpu or cuda.
    """

    precision: str = "fp32"
    device: str = "cpu"


def options_record(options: ScanOptions) -> dict[str, Any]:
    """Return the options as they stand in a round's record, with the tolerance they promise."""
    tolerance = 1e-2 if options.precision != "fp32" else 1e-5 if options.compile else 0.0
    return {**stated(options), "tolerance": tolerance}


@dataclass(frozen=True)
class NetworkSpec:
    """A network by name.

    Args:
        name: its registered name, or ``module:factory``.
        params: keyword arguments of its factory.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        """Name and parameters; of a file of weights its contents, wherever it lies."""
        named: dict[str, Any] = stated(self)
        weights = self.params.get("weights")
        if isinstance(weights, str) and Path(weights).is_file():
            named["params"] = {**self.params, "weights": weights_digest(weights)}
        return named

    def build(self, task: Task, device: torch.device, seed: int) -> TaskNet:
        """Return a freshly initialised network for a task."""
        net = build_network(
            self.name,
            self.params,
            input_shape=task.input_shape,
            n_outputs=task.n_outputs,
            seed=seed,
            vocabulary=task.vocabulary,
        )
        if task.target == "number" and not net.has_moments:
            net.link = ConstantNoise()
        return net.to(device)


@dataclass(frozen=True)
class Initial:
    """The first labeled set.

    Args:
        count: items.
        strategy: a strategy that needs no model.
        balanced: the same number of each class, which only a simulated annotator can give.
    """

    count: int = 100
    strategy: str = "random"
    balanced: bool = False


@dataclass(frozen=True)
class ProjectSpec:
    """Everything that decides what a project's rounds do.

    Args:
        network: the network's registered name and parameters.
        learner: how a member is trained.
        strategy: how items are chosen.
        task: settings of the task (kind, classes, size, …).
        members: committee size; the strategy may ask for more.
        quorum: members that suffice where others are lost with their workers; None: all.
        threads_per_model: torch threads per model, the same on every executor.
        initial: the first labeled set.
        batch: items per query.
        rounds: queries; None goes on for as long as there are candidates.
        seeds: the three sources of chance.
        scan: how the network is run over the pool.
        selection: how a joint choice holds the columns.
        shards: holders of the columns in this process.
        backbone: the frozen network whose embeddings ``network`` is then a head of.
        keep: which columns and checkpoints stay: those of the last round, all, or picks (no
            columns, but where the next round's training reads them).
    """

    network: NetworkSpec
    learner: Learner
    strategy: Strategy
    task: Mapping[str, Any] = field(default_factory=dict)
    members: int = 1
    quorum: int | None = None
    threads_per_model: int = 1
    initial: Initial = field(default_factory=Initial)
    batch: int = 100
    rounds: int | None = None
    seeds: Seeds = field(default_factory=Seeds)
    scan: ScanOptions = field(default_factory=ScanOptions)
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    shards: int = 1
    backbone: BackboneSpec | None = None
    keep: str = "last"

    def __post_init__(self) -> None:
        if self.keep == "picks" and self.learner.reads():
            object.__setattr__(self, "keep", "last")

    @property
    def committee_size(self) -> int:
        """The larger of what the model has and what the strategy asks for."""
        return max(self.members, self.strategy.members)

    def query_seed(self, round: int) -> int:
        """Return the seed of one round's draws; the initial choice (-1) follows the pool seed."""
        source = self.seeds.pool if round < 0 else self.seeds.query
        return int(digest(["query", source, round]), 16) >> 1

    def to_json(self) -> dict[str, Any]:
        """Return the form that is stored with the project."""
        return {
            "network": {"name": self.network.name, "params": dict(self.network.params)},
            "learner": _named(learners, self.learner),
            "strategy": _named(strategies, self.strategy),
            "task": dict(self.task),
            **{
                name: getattr(self, name)
                for name in ("members", "threads_per_model", "batch", "rounds", "shards", "keep")
            },
            **({} if self.backbone is None else {"backbone": self.backbone.to_json()}),
            **({} if self.quorum is None else {"quorum": self.quorum}),
            **({"selection": stated(self.selection)} if self.selection != _PLAIN else {}),
            **{name: stated(getattr(self, name)) for name in ("initial", "seeds", "scan")},
            **{name: stated(getattr(self, name)) for name in later_fields(self)},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> ProjectSpec:
        """Return the value that ``to_json`` described."""
        values = {f.name: stored[f.name] for f in fields(cls) if f.name in stored}
        values["network"] = NetworkSpec(**stored["network"])
        if "backbone" in stored:
            values["backbone"] = BackboneSpec(**stored["backbone"])
        values["learner"] = _built(learners, stored["learner"])
        values["strategy"] = _built(strategies, stored["strategy"])
        values["initial"] = Initial(**stored["initial"])
        values["seeds"] = Seeds(**stored["seeds"])
        values["scan"] = ScanOptions(**stored["scan"])
        values["selection"] = SelectionOptions(**stored.get("selection", {}))
        return cls(**values)


def spec_from(settings: ProjectSettings, cell: Cell) -> ProjectSpec:
    """Return the spec that settings make of a project: for runs, their plans, and the service.

    Args:
        settings: those of a run, or of a client's request.
        cell: the project's strategy and seeds.

    Raises:
        SettingsError: a strategy, a learner or a preset does not exist, or a hyperparameter of one
            is unknown or out of bounds.
    """
    model = settings.model
    where = f"strategy {cell.name!r}"
    strategy: Strategy = build(strategies[cell.name], cell.params, where=where)
    options = settings.task_options()
    return ProjectSpec(
        network=_network(model, options.get("kind")),
        backbone=_backbone(model),
        learner=strategy.trained_by(_learner(settings.learner)),
        strategy=strategy,
        task=options,
        members=model.members,
        quorum=model.quorum,
        threads_per_model=model.threads_per_model,
        initial=Initial(**settings.initial.model_dump()),
        batch=settings.batch,
        rounds=settings.rounds,
        seeds=cell.seeds,
        scan=ScanOptions(**settings.scan.model_dump()),
        selection=SelectionOptions(**settings.selection.model_dump()),
        shards=settings.shards,
        keep=settings.keep,
    )


_DEFAULTS = {"image": "small_cnn", "table": "mlp", "text": "kim_cnn"}  # networks, by task.kind
_HEADS: dict[str, dict[str, Any]] = {
    "linear": {"widths": []},
    "mlp": {"widths": [256], "dropout": 0.5},  # dropout, which some strategies ask for
}


def _network(model: ModelSettings, kind: str | None) -> NetworkSpec:
    """Return the network that is trained: the chosen one, or the head of a backbone."""
    if model.backbone is not None:
        return NetworkSpec("mlp", _HEADS[model.head or "linear"])
    return NetworkSpec(model.network or _DEFAULTS[kind or "image"], model.params)


def _backbone(model: ModelSettings) -> BackboneSpec | None:
    if model.backbone is None or model.weights is None:
        return None
    return BackboneSpec(model.backbone, model.weights, model.params)


def _learner(settings: LearnerSettings) -> Learner:
    cls, preset = learners[settings.name], settings.preset
    if preset is not None and preset not in cls.presets:
        raise SettingsError(
            f"learner {settings.name!r} has no preset {preset!r}; {nearest(preset, cls.presets)}"
        )
    recipe = {} if preset is None else dict(cls.presets[preset])
    where = f"learner {settings.name!r}"
    learner: Learner = build(cls, recipe | settings.params, where=where)
    return learner


_PLAIN = SelectionOptions()


def _named(table: Table[Any], value: Any) -> dict[str, Any]:
    for name in table:
        if table[name] is type(value):
            return {"name": name, "params": stated(value)}
    raise TypeError(f"{type(value).__name__} is not a registered {table.kind}")


def _built(table: Table[Any], stored: Mapping[str, Any]) -> Any:
    where = f"{table.kind} {stored['name']!r}"
    return build(table[stored["name"]], dict(stored["params"]), where=where)
