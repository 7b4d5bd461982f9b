"""Versions of a project's model: what the ledger must know to have a committee answer again.

A version stands by itself: the settings of its project may change, the committee stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayal.engine.scan import run_signals
from rayal.engine.spec import NetworkSpec, ScanOptions
from rayal.engine.train import committee_hash, context, load_committee
from rayal.engine.workspace import Workspace
from rayal.errors import NeedsError, StorageError
from rayal.labels import Label
from rayal.ledger import Ledger, ModelRow
from rayal.models.committee import Committee
from rayal.registry import learners
from rayal.selection.threads import torch_threads
from rayal.settings.parameters import build
from rayal.signals import prediction_of
from rayal.tasks import task_from_json
from rayal.types import stated

_DIGITS = 6  # of probabilities


@dataclass(frozen=True)
class Answer:
    """The answer of a committee for a row.

    Attributes:
        label: the most probable class, or the mean of the number.
        probs: the probability of each class; none of a number.
        variance: of the number about the mean: that of the model and of the noise; else None.
    """

    label: Label
    probs: tuple[float, ...] = ()
    variance: float | None = None


@dataclass(frozen=True)
class Version:
    """A committee as it was trained, with how it is run.

    Args:
        name: the version.
        committee: its members.
        options: how it is run over rows.
        threads: torch threads.
    """

    name: str
    committee: Committee
    options: ScanOptions
    threads: int

    def answers(self, rows: pa.Table) -> list[Answer]:
        """Return what it says of rows of a pool, in their order."""
        return answers(self.committee, rows, self.options, self.threads)


@dataclass(frozen=True)
class _Kept:
    """The last checkpoint of a member, to read."""

    file: tuple[int, Path] | None

    def latest(self) -> tuple[int, Path] | None:
        return self.file

    def save(self, epoch: int, write: Callable[[Path], None], final: bool) -> None:
        raise StorageError(f"epoch {epoch} of a version that is only read cannot be saved")


def describe(workspace: Workspace, round: int) -> tuple[str, dict[str, Any]]:
    """Return the hash of a trained round's model, and what ``load`` wants to know of it.

    Raises:
        NeedsError: the project has a frozen backbone, which a version does not hold.
    """
    spec, ledger = workspace.spec, workspace.ledger
    if spec.backbone is not None:
        raise NeedsError("versions of models on a frozen backbone are not kept; train a network")
    outputs = {s.stage: s.output for s in ledger.stages(workspace.name) if s.round == round}
    stored = spec.to_json()
    info = {
        **{name: stored[name] for name in ("network", "learner", "strategy", "threads_per_model")},
        "task": workspace.task.to_json(),
        "seed": spec.seeds.model,
        "members": spec.committee_size,
        "used": outputs["train"].get("used"),
        "scan": stated(spec.scan),
        "labels": outputs["prepare"]["labels"],
        "metrics": outputs["evaluate"]["metrics"],
    }
    return str(outputs["train"]["model"]), info


def load(ledger: Ledger, row: ModelRow) -> Version:
    """Return a version of a model, ready to answer.

    Raises:
        StorageError: its weights are gone or damaged.
    """
    info: Mapping[str, Any] = row.info
    used = info["used"] or list(range(info["members"]))
    chosen = info["learner"]
    learner = build(learners[chosen["name"]], chosen["params"], where="learner")
    ctx = context(
        learner,
        NetworkSpec(**info["network"]),
        task_from_json(info["task"]),
        info["labels"],
        seed=info["seed"],
        round=row.round,
    )
    stores = {member: _kept(ledger, row.model, member) for member in used}
    hash = committee_hash(row.model, used, info["members"])
    committee = load_committee(learner, ctx, stores, hash)
    options = ScanOptions(**{**info["scan"], "device": "cpu", "compile": False})
    return Version(row.version, committee, options, info["threads_per_model"])


def answers(
    committee: Committee, rows: pa.Table, options: ScanOptions, threads: int
) -> list[Answer]:
    """Return what a committee says of rows of a pool, in their order."""
    if not rows.num_rows:
        return []
    keys = rows.column("key").to_numpy()
    signal = prediction_of(committee.task.target)
    with torch_threads(threads):
        (predictions,) = run_signals(
            committee, (signal,), rows, keys=keys, options=options
        ).values()
    if committee.task.target == "number":
        return [Answer(mean, variance=v + noise) for mean, v, noise in predictions.tolist()]
    probs = predictions.double().exp()
    classes = committee.task.classes
    best = probs.argmax(dim=1).tolist()
    rounded = [tuple(round(p, _DIGITS) for p in row) for row in probs.tolist()]
    return [Answer(classes[at], row) for at, row in zip(best, rounded, strict=True)]


def _kept(ledger: Ledger, model: str, member: int) -> _Kept:
    row = ledger.checkpoint(model, member)
    return _Kept(None if row is None else (row.epoch, Path(ledger.root) / row.file))
