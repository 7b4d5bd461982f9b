"""Training of a committee: each member once, epoch by epoch, into checkpoints that count.

Nothing here knows who calls: this process, or an actor elsewhere that trains one member with
``train_member``. A member is a pure function of what ``model_hash`` digests, so what is committed
under a hash is never trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rayal.errors import StorageError
from rayal.learners.base import Learner, ScanRows, TrainContext, TrainData
from rayal.learners.checkpoint import CheckpointStore, checkpoint_kind, read_checkpoint
from rayal.learners.loop import Progress, fit, keyed
from rayal.models import build_network
from rayal.models.committee import Committee
from rayal.types import FORMAT_VERSION, Columns, digest

if TYPE_CHECKING:
    from rayal.models.base import TaskNet
    from rayal.tasks.base import Task


@dataclass(frozen=True)
class NetworkSpec:
    """A network by name.

    Args:
        name: its registered name, or ``module:factory``.
        params: keyword arguments of its factory.
    """

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def build(self, task: Task, device: torch.device, seed: int) -> TaskNet:
        """Return a freshly initialised network for a task."""
        net = build_network(
            self.name,
            self.params,
            input_shape=task.input_shape,
            n_outputs=task.n_outputs,
            seed=seed,
        )
        return net.to(device)


def model_hash(
    *,
    learner: Learner,
    network: NetworkSpec,
    task: Task,
    labels: Mapping[str, Any],
    members: int,
    seed: int,
    round: int,
    threads_per_model: int = 1,
    unlabeled: tuple[int, int] | None = None,
) -> str:
    """Return the digest of everything that a committee's weights depend on.

    Args:
        learner: with its hyperparameters.
        network: with its parameters.
        task: with its classes and input shape.
        labels: the labeled items: id -> label and hash of the content, in any order.
        members: committee size.
        seed: the model seed.
        round: the round.
        threads_per_model: torch threads, which decide the order of sums.
        unlabeled: (rows, digest) of the unlabeled rows, where the learner reads them.
    """
    kind = type(learner)
    return digest(
        {
            "version": FORMAT_VERSION,
            "learner": [kind.__module__, kind.__qualname__, asdict(learner)],
            "network": asdict(network),
            "task": task.to_json(),
            "labels": sorted(labels.items()),
            "members": members,
            "seed": seed,
            "round": round,
            "threads": threads_per_model,
            "unlabeled": unlabeled,
        }
    )


def train_committee(
    *,
    learner: Learner,
    network: NetworkSpec,
    task: Task,
    data: TrainData,
    seed: int,
    round: int,
    members: int,
    hash: str,
    store: Callable[[int], CheckpointStore],
    threads_per_model: int = 1,
    device: str = "cpu",
    columns: Columns | None = None,
    scan: ScanRows | None = None,
    progress: Progress | None = None,
) -> Committee:
    """Train what is not committed yet of a committee, and return it.

    Members differ in weights, batch order and augmentation: all are drawn from (seed, round,
    member).

    Args:
        learner: how a member is trained.
        network: what is trained.
        task: what a row is.
        data: labeled rows in id order, and what else the learner wants.
        seed: the model seed.
        round: the round.
        members: committee size.
        hash: ``model_hash`` of all this.
        store: member -> its checkpoints.
        threads_per_model: torch threads while training.
        device: where it trains.
        columns: what the learner ``reads`` of the previous round's scan.
        scan: the learner's way to ask signals of unlabeled rows while training.
        progress: called with ("train", steps done, steps of all members).
    """
    stores = [store(member) for member in range(members)]
    ctx = _context(learner, network, task, data, seed=seed, round=round, device=device)
    waiting = [member for member in range(members) if not _final(stores[member])]
    if waiting:
        everything = data.labeled.rows.take(torch.arange(len(data.labeled)))
        ctx = replace(ctx, statistics=task.fit(everything), columns=columns, scan=scan)
        with torch_threads(threads_per_model):
            ctx = replace(ctx, weights=learner.prepare(ctx, data))
    for member in waiting:
        train_member(
            learner,
            data,
            replace(ctx, member=member),
            stores[member],
            threads_per_model=threads_per_model,
            progress=_of_all(progress, member, members),
        )
    return _collect(learner, ctx, stores, hash)


def train_member(
    learner: Learner,
    data: TrainData,
    ctx: TrainContext,
    store: CheckpointStore,
    *,
    threads_per_model: int,
    progress: Progress | None = None,
) -> None:
    """Train one member to its end; a member that is committed already is left alone."""
    if not _final(store):
        with torch_threads(threads_per_model):
            fit(learner, data, ctx, checkpoint=store, progress=progress)


def load_committee(
    *,
    learner: Learner,
    network: NetworkSpec,
    task: Task,
    data: TrainData,
    seed: int,
    round: int,
    members: int,
    hash: str,
    store: Callable[[int], CheckpointStore],
    device: str = "cpu",
) -> Committee:
    """Return a trained committee; of the data only the number of labeled rows is read.

    Raises:
        StorageError: a member is not trained to its end.
    """
    ctx = _context(learner, network, task, data, seed=seed, round=round, device=device)
    return _collect(learner, ctx, [store(member) for member in range(members)], hash)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use ``count`` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _context(
    learner: Learner,
    network: NetworkSpec,
    task: Task,
    data: TrainData,
    *,
    seed: int,
    round: int,
    device: str,
) -> TrainContext:
    """Return the context of member 0; the others differ in their number."""
    place = torch.device(device)
    return TrainContext(
        task=task,
        statistics={},
        n_labeled=len(data.labeled),
        n_outputs=task.n_outputs,
        steps=learner.steps,
        seed=seed,
        round=round,
        member=0,
        build=partial(network.build, task, place),
        device=place,
    )


def _final(store: CheckpointStore) -> bool:
    latest = store.latest()
    return latest is not None and checkpoint_kind(latest[1]) == "predictor"


def _collect(
    learner: Learner, ctx: TrainContext, stores: Sequence[CheckpointStore], hash: str
) -> Committee:
    nets, statistics = [], {}
    for member, store in enumerate(stores):
        latest = store.latest()
        stored = None if latest is None else read_checkpoint(latest[1], ctx.device)
        if stored is None or stored.kind != "predictor":
            raise StorageError(
                f"member {member} of model {hash} is not trained to its end; train the round first"
            )
        nets.append(_predictor(learner, replace(ctx, member=member), stored.tree["nets"]))
        statistics = stored.tree["statistics"]
    return Committee(
        nets=tuple(nets),
        task=ctx.task,
        statistics=statistics,
        hash=hash,
        seed=ctx.seed,
        round=ctx.round,
        extras=learner.extras,
    )


def _predictor(
    learner: Learner, ctx: TrainContext, weights: Mapping[str, Mapping[str, Tensor]]
) -> nn.ModuleDict:
    with keyed(ctx, "load"):  # initial weights are drawn, and then replaced
        networks = learner.networks(ctx)
    nets = nn.ModuleDict({name: networks[name] for name in weights})
    for name, net in nets.items():
        net.load_state_dict(weights[name])
    return nets.eval()


def _of_all(progress: Progress | None, member: int, members: int) -> Progress | None:
    """Return a progress that counts the steps of all members."""
    if progress is None:
        return None

    def report(stage: str, done: int, total: int) -> None:
        progress(stage, member * total + done, members * total)

    return report
