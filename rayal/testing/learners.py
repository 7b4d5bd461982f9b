"""The contract of learners: a member is a function of its rows, its labels and its seed."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.engine.arrays import array_source
from rayal.engine.driver import Project
from rayal.engine.pool import Pool
from rayal.engine.spec import Initial, ProjectSpec
from rayal.engine.targets import check_targets
from rayal.engine.train import NetworkSpec, context
from rayal.errors import RayalError
from rayal.labels import ClassLabel, Label, NumberLabel
from rayal.learners import (
    LabeledRows,
    Learner,
    TensorRows,
    TrainContext,
    TrainData,
    TrainState,
    UnlabeledBatch,
    fit,
)
from rayal.learners.base import Batches, Weights
from rayal.learners.checkpoint import read_checkpoint
from rayal.learners.data import PoolData
from rayal.learners.loop import FROM_POOL
from rayal.parameters import build, parameters
from rayal.project import Ledger
from rayal.registry import strategies
from rayal.strategies.base import TAXONOMY
from rayal.tasks import TableTask, Task
from rayal.testing.strategies import CLASSES, MakeColumns, make_columns
from rayal.types import Columns, Seeds

LABELED, UNLABELED, FEATURES = 24, 36, 5
NAMES = tuple("abcdefgh"[:CLASSES])
HIDDEN = NetworkSpec("mlp", {"widths": (12, 8), "dropout": 0.2})
NORMAL = NetworkSpec("pbp", {"hidden": (4,)})


def certain_columns(rows: int, rng: np.random.Generator) -> Mapping[str, npt.NDArray[Any]]:
    """Return the columns of ``make_columns``, of a committee that is certain of many rows."""
    made = make_columns(rows, rng)
    probs = rng.dirichlet(np.full(CLASSES, 0.1), size=rows)
    return {**made, "log_probs": np.log(np.maximum(probs, 1e-30))}


@dataclass(frozen=True)
class Trial:
    """What a learner is tried on: a small table, and a network.

    Args:
        network: one that it trains; the default has two hidden layers, and dropout.
        refused: a network that it must refuse; None for a learner that trains all networks.
        columns: what it reads of the last round's scan, (rows, generator) -> name to array.
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


def _table() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return rows ``[N, F]`` and classes ``[N]`` that they tell of."""
    rng = np.random.default_rng(0)
    y = np.arange(LABELED + UNLABELED) % CLASSES
    x = rng.normal(size=(len(y), FEATURES))
    return x + 2.0 * np.eye(FEATURES)[y], y


def _task(learner: Learner) -> Task:
    labels = ClassLabel(NAMES) if "class" in learner.targets else NumberLabel()
    return TableTask(labels, tuple(f"x{i}" for i in range(FEATURES)))


def _labels(learner: Learner, y: npt.NDArray[np.int64]) -> list[Label]:
    if "class" in learner.targets:
        return [NAMES[i] for i in y]
    return [10.0 + 3.0 * float(i) for i in y]


def _ids(n: int) -> list[str]:
    return [f"item/{i:03d}" for i in range(n)]


def _data(learner: Learner) -> TrainData:
    x, y = _table()
    ids, rows = _ids(len(y)), torch.from_numpy(x).float()
    targets = _task(learner).targets(_labels(learner, y[:LABELED]))
    return TrainData(
        LabeledRows(TensorRows(ids[:LABELED], rows[:LABELED]), targets),
        unlabeled=TensorRows(ids[LABELED:], rows[LABELED:]),
    )


def _context(learner: Learner, trial: Trial, data: TrainData, **changes: Any) -> TrainContext:
    """Return the context of a member; with the weights of its pre-training where it wants one."""
    task, labeled = _task(learner), data.labeled
    everything = labeled.rows.take(torch.arange(len(labeled)))
    statistics = task.fit(everything) | task.fit_targets(labeled.targets)
    ctx = context(learner, trial.network, task, len(labeled), seed=1)
    ctx = replace(ctx, statistics=statistics, columns=_columns(learner, trial, data), **changes)
    weights = _pretrained(learner, trial, data)
    return replace(ctx, weights=learner.prepare(ctx, data) if weights is None else weights)


def _columns(learner: Learner, trial: Trial, data: TrainData) -> Columns | None:
    names = [name for signal in learner.reads() for name in signal.names()]
    if not names or data.unlabeled is None:
        return None
    ids = tuple(data.unlabeled.ids)
    made = trial.columns(len(ids), np.random.default_rng(0))
    missing = [name for name in names if name not in made]
    assert not missing, (
        f"{type(learner).__name__} reads {missing}, which the trial's columns do not hold; give "
        "them: trial=Trial(columns=…)"
    )
    return Columns({n: torch.from_numpy(np.asarray(made[n], np.float32)) for n in names}, ids)


def _pretraining(learner: Learner, trial: Trial) -> tuple[Learner, TrainContext] | None:
    """Return what is trained first, with its context; None for a learner that wants nothing."""
    task = _task(learner)
    first = learner.pretraining(context(learner, trial.network, task))
    return None if first is None else (first, context(first, trial.network, task, seed=1))


def _pretrained(learner: Learner, trial: Trial, data: TrainData) -> Weights | None:
    first = _pretraining(learner, trial)
    if first is None:
        return None
    with _store() as store:
        fit(first[0], _whole(data), first[1], checkpoint=store)
        nets = read_checkpoint(store.files[max(store.files)]).tree["nets"]
    return {f"{net}.{name}": t for net, held in nets.items() for name, t in held.items()}


def _whole(data: TrainData) -> PoolData:
    """Return all rows, without a label."""
    x, _ = _table()
    return PoolData(unlabeled=TensorRows(_ids(len(x)), torch.from_numpy(x).float()))


class _Stopped(Exception):
    """Ends a training, as a kill behind a checkpoint would."""


@dataclass
class _Files:
    """Checkpoints in a folder; with ``stop`` the training ends behind that epoch, once."""

    folder: Path
    stop: int | None = None
    files: dict[int, Path] = field(default_factory=dict)

    def latest(self) -> tuple[int, Path] | None:
        return (max(self.files), self.files[max(self.files)]) if self.files else None

    def save(self, epoch: int, write: Callable[[Path], None], final: bool) -> None:
        path = self.folder / f"{epoch}.safetensors"
        write(path)
        self.files[epoch] = path
        if epoch == self.stop and not final:
            self.stop = None
            raise _Stopped


@contextmanager
def _store(stop: int | None = None) -> Iterator[_Files]:
    with tempfile.TemporaryDirectory() as folder:
        yield _Files(Path(folder), stop)


def _trained(learner: Learner, data: TrainData, ctx: TrainContext) -> TrainState:
    with _store() as store:
        return fit(learner, data, ctx, checkpoint=store)


def _answer(learner: Learner, state: TrainState) -> dict[str, Tensor]:
    """Return the weights that answer, by name."""
    return dict(learner.predictor(state).state_dict())


def _same(a: Any, b: Any) -> bool:
    """Return whether two nested states are equal bit by bit."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def _committee(
    learner: Learner, trial: Trial, *, order: Sequence[int], hidden: Sequence[int]
) -> list[Mapping[str, Tensor]]:
    """Return the weights of two rounds of a project.

    Args:
        learner: that trains them.
        trial: with the network.
        order: of the rows in their source.
        hidden: of each row, in id order, the row whose label the pool knows for it.
    """
    x, y = _table()
    ids, known = _ids(len(y)), _labels(learner, y[list(hidden)])
    told = dict(zip(ids, _labels(learner, y), strict=True))
    source = array_source(
        x[list(order)], [known[i] for i in order], ids=[ids[i] for i in order], role="pool"
    )
    spec = ProjectSpec(
        network=trial.network, learner=learner, strategy=strategies["random"](),
        initial=Initial(count=LABELED), batch=6, rounds=1, seeds=Seeds(),
        task={} if "class" in learner.targets else {"target": "number"},
    )  # fmt: skip
    made: list[Mapping[str, Tensor]] = []
    with tempfile.TemporaryDirectory() as root, Ledger(root) as ledger:
        project = Project.create(ledger, "p", Pool.ingest(root, "rows", [source]), spec)
        project.prepare(ids[:LABELED])
        while not project.finished:
            project.tell({lease.item: told[lease.item] for lease in project.ask(LABELED)})
            number = project.train().round
            nets = project.committee(number).nets[0]
            made.append({name: tensor.clone() for name, tensor in nets.state_dict().items()})
    return made


# ---- the checks ----------------------------------------------------------------------------------


def resumes(learner: Learner, trial: Trial = MLP) -> None:
    """Killed behind any epoch, a training goes on to the bits of an unbroken one."""
    learner = trial.short(learner)
    data = _data(learner)
    trainings: list[tuple[Learner, TrainData, TrainContext]] = []
    if (first := _pretraining(learner, trial)) is not None:
        trainings.append((first[0], _whole(data), first[1]))
    trainings.append((learner, data, _context(learner, trial, data)))
    for one, rows, ctx in trainings:
        whole = _trained(one, rows, ctx)
        assert whole.epoch > 1, f"{type(one).__name__} ends after its first epoch; give more steps"
        for epoch in range(1, whole.epoch):
            with _store(stop=epoch) as store:
                try:
                    fit(one, rows, ctx, checkpoint=store)
                except _Stopped:
                    torch.rand(epoch)  # what else a process draws must not matter
                state = fit(one, rows, ctx, checkpoint=store)
            assert _same(state.state_dict(), whole.state_dict()), (
                f"{type(one).__name__} killed behind epoch {epoch} ends with other bits: all that "
                "changes while training belongs into the TrainState"
            )
            assert _same(_answer(one, state), _answer(one, whole)), "the weights that answer differ"


def hidden_labels(learner: Learner, trial: Trial = MLP) -> None:
    """Labels of rows that nobody has labeled change nothing, and no batch of such rows has one."""
    short = trial.short(learner)
    n = LABELED + UNLABELED
    true = list(range(n))
    plain = _committee(short, trial, order=true, hidden=true)
    wrong = _committee(short, trial, order=true, hidden=true[1:] + true[:1])
    assert _same(plain, wrong), "other hidden labels of the pool gave other weights"

    sources = {stream.name: stream.source for stream in short.streams()}

    class Watched(type(short)):  # type: ignore[misc]
        def step(self, state: TrainState, batches: Batches, ctx: TrainContext) -> dict[str, float]:
            for name, batch in batches.items():
                if sources[name] == "unlabeled":
                    assert type(batch) is UnlabeledBatch, f"batches of stream {name!r} hold labels"
            losses: dict[str, float] = super().step(state, batches, ctx)
            return losses

    values = {f.name: getattr(short, f.name) for f in fields(short)}
    data = _data(short)
    unlabeled = data.unlabeled
    assert isinstance(unlabeled, TensorRows)
    poisoned = replace(data, unlabeled=_Poisoned(unlabeled.ids, unlabeled.x))
    ctx = _context(short, trial, data)
    watched = _trained(Watched(**values), poisoned, ctx)
    assert _same(_answer(short, watched), _answer(short, _trained(short, data, ctx))), (
        "training on rows that hold labels for who looks for them gave other weights"
    )


class _Poisoned(TensorRows):
    """Unlabeled rows under whose usual names for labels there is nothing to be read."""

    def __getattr__(self, name: str) -> Any:
        if name in ("y", "label", "labels", "target", "targets", "weights"):
            raise AssertionError(f"the learner asked unlabeled rows for their {name}")
        raise AttributeError(name)


def same_seed(learner: Learner, trial: Trial = MLP) -> None:
    """The same seed gives the same weights, another seed, round or member others."""
    learner = trial.short(learner)
    data = _data(learner)
    ctx = _context(learner, trial, data)
    state = torch.get_rng_state()
    once = _answer(learner, _trained(learner, data, ctx))
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator was used up"
    torch.rand(3)
    again = _answer(learner, _trained(learner, data, ctx))
    assert _same(once, again), (
        "the same seed gave other weights; draw by ctx.generator or ctx.chance"
    )
    changes: tuple[dict[str, Any], ...] = ({"seed": 2}, {"round": 1}, {"member": 1})
    for change in changes:
        other = _answer(learner, _trained(learner, data, replace(ctx, **change)))
        assert not _same(once, other), f"another {next(iter(change))} gave the same weights"


def ids_not_positions(learner: Learner, trial: Trial = MLP) -> None:
    """Rows that lie in another order in their source give the same bits, in all rounds."""
    learner = trial.short(learner)
    true = list(range(LABELED + UNLABELED))
    shuffled = np.random.default_rng(5).permutation(len(true)).tolist()
    first = _committee(learner, trial, order=true, hidden=true)
    other = _committee(learner, trial, order=shuffled, hidden=true)
    assert len(first) == 2 and _same(first, other), "the order of the source decided"


def pickles(learner: Learner, trial: Trial = MLP) -> None:
    """Learner, rows and context travel to another process, and train the same bits there."""
    copy = pickle.loads(pickle.dumps(learner))
    assert copy == learner, "a pickled copy differs"
    short = trial.short(learner)
    data = _data(short)
    ctx = _context(short, trial, data)
    there = pickle.loads(pickle.dumps((short, data, ctx)))
    here = _answer(short, _trained(short, data, ctx))
    assert _same(here, _answer(short, _trained(*there))), "a pickled copy trained other weights"


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
            given = {info.name: _beyond(bound)}
            cases.append((f"{given}", partial(build, cls, given, where="learner")))
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
    task = _task(learner)
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


LEARNER_CHECKS: dict[str, Callable[..., None]] = {
    check.__name__: check
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
