"""Trials for learners: a small table, trainings of it, and rounds of a project."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.engine.project import Project
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec
from rayal.engine.train import context
from rayal.errors import RayalError
from rayal.labels import ClassLabel, Label, NumberLabel
from rayal.learners import (
    LabeledRows,
    Learner,
    TensorRows,
    TrainContext,
    TrainData,
    TrainState,
    fit,
)
from rayal.learners.base import Weights
from rayal.learners.checkpoint import read_checkpoint
from rayal.learners.data import PoolData
from rayal.ledger import Ledger
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.registry import learners, strategies
from rayal.tasks import TableTask, Task
from rayal.testing.strategies import CLASSES, MakeColumns, make_columns
from rayal.types import Columns, Seeds

LABELED, UNLABELED, FEATURES = 24, 36, 5
NAMES = tuple("abcdefgh"[:CLASSES])
HIDDEN = NetworkSpec("mlp", {"widths": (12, 8), "dropout": 0.2})
NORMAL = NetworkSpec("pbp", {"hidden": (4,)})


def certain_columns(rows: int, rng: np.random.Generator) -> Mapping[str, npt.NDArray[Any]]:
    """Return the columns of ``make_columns``, of a committee that is certain of many rows."""
    columns = make_columns(rows, rng)
    probs = rng.dirichlet(np.full(CLASSES, 0.1), size=rows)
    return {**columns, "log_probs": np.log(np.maximum(probs, 1e-30))}


@dataclass(frozen=True)
class Trial:
    """A trial for a learner: a small table, and a network.

    Args:
        network: one that it trains; the default has two hidden layers, and dropout.
        refused: a network that it must refuse; None for a learner that trains all networks.
        columns: its columns from the last round's scan, (rows, generator) -> name to array.
        steps: at most so many are made, an epoch being less than half of them.
    """

    network: NetworkSpec = HIDDEN
    refused: NetworkSpec | None = NORMAL
    columns: MakeColumns = certain_columns
    steps: int = 7

    def short(self, learner: Learner) -> Learner:
        """Return the learner with few steps, in more epochs than two."""
        steps = min(learner.steps, self.steps)
        return replace(
            learner, steps=steps, epoch_steps=max(1, steps // 3 + steps % 3 // 2),
            batch=min(learner.batch, 8),
        )  # fmt: skip


MLP = Trial()


# ---- rows and trainings --------------------------------------------------------------------------


def table() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return rows ``[N, F]`` and classes ``[N]`` that they tell of."""
    rng = np.random.default_rng(0)
    y = np.arange(LABELED + UNLABELED) % CLASSES
    x = rng.normal(size=(len(y), FEATURES))
    return x + 2.0 * np.eye(FEATURES)[y], y


def task_of(learner: Learner) -> Task:
    """Return a task that it learns: of classes where it learns them, else of numbers."""
    labels = ClassLabel(NAMES) if "class" in learner.targets else NumberLabel()
    return TableTask(labels, tuple(f"x{i}" for i in range(FEATURES)))


def labels_of(learner: Learner, y: npt.NDArray[np.int64]) -> list[Label]:
    """Return the labels of rows of these classes, as the task wants them."""
    if "class" in learner.targets:
        return [NAMES[i] for i in y]
    return [10.0 + 3.0 * float(i) for i in y]


def ids_of(n: int) -> list[str]:
    """Return n ids in order."""
    return [f"item/{i:03d}" for i in range(n)]


def data_of(learner: Learner) -> TrainData:
    """Return the first rows with their labels, and the others without."""
    x, y = table()
    ids, rows = ids_of(len(y)), torch.from_numpy(x).float()
    targets = task_of(learner).targets(labels_of(learner, y[:LABELED]))
    return TrainData(
        LabeledRows(TensorRows(ids[:LABELED], rows[:LABELED]), targets),
        unlabeled=TensorRows(ids[LABELED:], rows[LABELED:]),
    )


def context_of(learner: Learner, trial: Trial, data: TrainData, **changes: Any) -> TrainContext:
    """Return the context of a member; with the weights of its pre-training where it wants one."""
    task, labeled = task_of(learner), data.labeled
    everything = labeled.rows.take(torch.arange(len(labeled)))
    statistics = task.fit(everything) | task.fit_targets(labeled.targets)
    ctx = context(learner, trial.network, task, len(labeled), seed=1)
    ctx = replace(ctx, statistics=statistics, columns=columns_of(learner, trial, data), **changes)
    weights = pretrained(learner, trial)
    return replace(ctx, weights=learner.prepare(ctx, data) if weights is None else weights)


def columns_of(learner: Learner, trial: Trial, data: TrainData) -> Columns | None:
    """Return the columns that it reads of unlabeled rows; None if it reads none."""
    names = [name for signal in learner.reads() for name in signal.names()]
    if not names or data.unlabeled is None:
        return None
    ids = tuple(data.unlabeled.ids)
    columns = trial.columns(len(ids), np.random.default_rng(0))
    missing = [name for name in names if name not in columns]
    assert not missing, (
        f"{type(learner).__name__} reads {missing}, which the trial's columns do not hold; give "
        "them: trial=Trial(columns=…)"
    )
    return Columns({n: torch.from_numpy(np.asarray(columns[n], np.float32)) for n in names}, ids)


def pretraining_of(learner: Learner, trial: Trial) -> tuple[Learner, TrainContext] | None:
    """Return the pre-training with its context; None for a learner without one."""
    task = task_of(learner)
    first = learner.pretraining(context(learner, trial.network, task))
    return None if first is None else (first, context(first, trial.network, task, seed=1))


def pretrained(learner: Learner, trial: Trial) -> Weights | None:
    """Return the weights of its pre-training; None for a learner without one."""
    first = pretraining_of(learner, trial)
    if first is None:
        return None
    with store_of() as store:
        fit(first[0], all_rows(), first[1], checkpoint=store)
        nets = read_checkpoint(store.files[max(store.files)]).tree["nets"]
    return {f"{net}.{name}": t for net, weights in nets.items() for name, t in weights.items()}


def all_rows() -> PoolData:
    """Return all rows, without a label."""
    x, _ = table()
    return PoolData(unlabeled=TensorRows(ids_of(len(x)), torch.from_numpy(x).float()))


def check_network(learner: Learner, trial: Trial) -> None:
    """Raise AssertionError, saying what to give, unless a learner trains a trial's network."""
    task = task_of(learner)
    try:
        learner.check(task, learner.networks(context(learner, trial.network, task)))
    except RayalError as error:
        raise AssertionError(
            f"{type(learner).__name__} does not train the trial's network {trial.network.name!r} "
            f"({error}); give one: trial=Trial(network=NetworkSpec(…))"
        ) from error


class Stopped(Exception):
    """Ends a training, as a kill behind a checkpoint would."""


@dataclass
class Files:
    """Checkpoints in a folder; with ``stop`` the training ends behind that epoch, once."""

    folder: Path
    stop: int | None = None
    files: dict[int, Path] = field(default_factory=dict)

    def latest(self) -> tuple[int, Path] | None:
        """Return the last epoch and its file."""
        return (max(self.files), self.files[max(self.files)]) if self.files else None

    def save(self, epoch: int, write: Callable[[Path], None], final: bool) -> None:
        """Write a file; raise Stopped behind the epoch that was asked for."""
        path = self.folder / f"{epoch}.safetensors"
        write(path)
        self.files[epoch] = path
        if epoch == self.stop and not final:
            self.stop = None
            raise Stopped


@contextmanager
def store_of(stop: int | None = None) -> Iterator[Files]:
    """Yield a store in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        yield Files(Path(folder), stop)


def trained(learner: Learner, data: TrainData, ctx: TrainContext) -> TrainState:
    """Train a member without a break."""
    with store_of() as store:
        return fit(learner, data, ctx, checkpoint=store)


def answer(learner: Learner, state: TrainState) -> dict[str, Tensor]:
    """Return the weights that answer, by name."""
    return dict(learner.predictor(state).state_dict())


def same(a: Any, b: Any) -> bool:
    """Return whether two nested states are equal bit by bit."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and bool(a.numpy().tobytes() == b.numpy().tobytes())
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def committees(
    learner: Learner, trial: Trial, *, order: Sequence[int], hidden: Sequence[int]
) -> list[Mapping[str, Tensor]]:
    """Return the weights of two rounds of a project.

    Args:
        learner: learner that trains them.
        trial: trial with the network.
        order: order of the rows in their source.
        hidden: of each row, in id order, the row whose label the pool knows for it.
    """
    assert type(learner) in [learners[name] for name in learners], (
        f"{type(learner).__name__} is no registered learner, so no project can name it; put "
        '@learners.register("…") above it'
    )
    x, y = table()
    ids, known = ids_of(len(y)), labels_of(learner, y[list(hidden)])
    truth = dict(zip(ids, labels_of(learner, y), strict=True))
    source = array_source(
        x[list(order)], [known[i] for i in order], ids=[ids[i] for i in order], role="pool"
    )
    spec = ProjectSpec(
        network=trial.network, learner=learner, strategy=strategies["random"](),
        initial=Initial(count=LABELED), batch=6, rounds=1, seeds=Seeds(),
        task={} if "class" in learner.targets else {"target": "number"},
    )  # fmt: skip
    rounds: list[Mapping[str, Tensor]] = []
    with tempfile.TemporaryDirectory() as root, Ledger(root) as ledger:
        project = Project.create(ledger, "p", Pool.ingest(root, "rows", [source]), spec)
        project.prepare(ids[:LABELED])
        while not project.finished:
            project.tell({lease.item: truth[lease.item] for lease in project.ask(LABELED)})
            number = project.train().round
            nets = project.committee(number).nets[0]
            rounds.append({name: tensor.clone() for name, tensor in nets.state_dict().items()})
    return rounds
