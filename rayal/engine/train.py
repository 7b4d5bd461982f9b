"""Training of a committee: each member once, epoch by epoch, into checkpoints that count.

Nothing here knows where members train: in this process, or in actors elsewhere. A member is a
pure function of what ``model_hash`` digests, so what is committed under a hash is never trained
again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from rayal.errors import StorageError, WorkerError
from rayal.failpoints import failpoint
from rayal.learners.base import Learner, ScanRows, TrainContext, TrainData, Weights
from rayal.learners.checkpoint import CheckpointStore, checkpoint_kind, latest_of, read_checkpoint
from rayal.learners.loop import Progress, fit_unless_done, keyed
from rayal.models import build_network
from rayal.models.committee import Committee, home_of
from rayal.models.moments import ConstantNoise
from rayal.models.weights import weights_digest
from rayal.pool.storage import write_durably
from rayal.registry import hashed_name
from rayal.selection.threads import torch_threads
from rayal.types import FORMAT_VERSION, Columns, digest, stated

if TYPE_CHECKING:
    from rayal.learners.base import Learner
    from rayal.models.base import TaskNet
    from rayal.tasks.base import Task


@dataclass(frozen=True)
class FolderStore:
    """Checkpoints of one member as files of a storage root, which count by somebody's record.

    Args:
        root: the storage root.
        folder: where the files go, relative to the root, such as ``projects/NAME/models``.
        model: the committee's hash.
        member: the member.
        committed: () -> the last recorded epoch and its file, relative to the root.
        commit: (epoch, file, final) -> nothing; records a file that is complete and durable.
    """

    root: Path
    folder: str
    model: str
    member: int
    committed: Callable[[], tuple[int, str] | None]
    commit: Callable[[int, str, bool], None]

    def unrecorded(self) -> FolderStore:
        """Return the same files without the record, for a process that does not keep it."""
        return replace(self, committed=_nothing, commit=_nowhere)

    def recorded_by(
        self,
        committed: Callable[[], tuple[int, str] | None],
        commit: Callable[[int, str, bool], None],
    ) -> FolderStore:
        """Return the same files with another record."""
        return replace(self, committed=committed, commit=commit)

    def latest(self) -> tuple[int, Path] | None:
        """Return the last recorded epoch and its file."""
        row = self.committed()
        return None if row is None else (row[0], self.root / row[1])

    def save(self, epoch: int, write: Callable[[Path], None], final: bool) -> None:
        """Write a file under a unique name, durably, then record it."""
        name = f"{self.model}-{self.member}-{epoch}-{uuid4().hex}.safetensors"
        write_durably(self.root / self.folder / name, write)
        failpoint("train.epoch")
        self.commit(epoch, f"{self.folder}/{name}", final)


def _nothing() -> None:
    return None


def _nowhere(epoch: int, file: str, final: bool) -> None:
    raise RuntimeError(f"epoch {epoch} has no record to go to")


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
    attached: Sequence[Any] | None = None,
    reads: str | None = None,
    pretrained: str | None = None,
    device: str = "cpu",
) -> str:
    """Return the digest of everything that a committee's weights depend on.

    Args:
        learner: with its hyperparameters.
        network: with its parameters.
        task: with its target and input shape.
        labels: the labeled items: id -> label and hash of the content, in any order.
        members: committee size.
        seed: the model seed.
        round: the round.
        threads_per_model: torch threads, which decide the order of sums.
        unlabeled: (rows, digest) of the unlabeled rows, where the learner reads them.
        attached: what names the rows that strategies attached to labeled items; None without any.
        reads: hash of the columns that the learner reads; None without any.
        pretrained: hash of the pre-training that members start from; None without one.
        device: type of the device, whose sums differ.
    """
    return digest(
        {
            "version": FORMAT_VERSION,
            "learner": [*hashed_name(learner), stated(learner)],
            "network": network.identity,
            "task": task.to_json(),
            "labels": sorted(labels.items()),
            "members": members,
            "seed": seed,
            "round": round,
            "threads": threads_per_model,
            "unlabeled": unlabeled,
            **({} if attached is None else {"attached": attached}),
            **({} if reads is None else {"reads": reads}),
            **({} if pretrained is None else {"pretrained": pretrained}),
            **({} if device == "cpu" else {"device": device}),
        }
    )


@dataclass(frozen=True)
class Fit:
    """What the members of a committee have in common while they train.

    Args:
        learner: how a member is trained.
        data: labeled rows in id order, and what else the learner wants.
        ctx: the context of member 0; the others differ in their number.
        members: committee size.
        threads: torch threads.
    """

    learner: Learner
    data: TrainData
    ctx: TrainContext
    members: int
    threads: int

    def train(self, member: int, store: CheckpointStore, progress: Progress | None = None) -> None:
        """Train a member from its last committed epoch to its end, unless somebody has done so."""
        if not is_final(store):
            failpoint("train.begin")
            with torch_threads(self.threads):
                ctx = replace(self.ctx, member=member)
                fit_unless_done(self.learner, self.data, ctx, checkpoint=store, progress=progress)


def train_members(
    fit: Fit,
    members: Sequence[int],
    stores: Mapping[int, CheckpointStore],
    *,
    quorum: int,
    progress: Progress | None = None,
) -> tuple[int, ...]:
    """Train members one after the other in this process; return those that were lost: none.

    Args:
        fit: what they have in common.
        members: those to train.
        stores: member to its checkpoints.
        quorum: members that suffice; nothing is lost here but with the process itself.
        progress: called with ("train", steps done, steps of all members).
    """
    for member in members:
        fit.train(member, stores[member], _of_all(progress, member, fit.members))
    return ()


def is_final(store: CheckpointStore) -> bool:
    """Return whether a member is trained to its end."""
    return latest_of(store, checkpoint_kind) == "predictor"


def _of_all(progress: Progress | None, member: int, members: int) -> Progress | None:
    """Return a progress that counts the steps of all members."""
    if progress is None:
        return None

    def report(stage: str, done: int, total: int) -> None:
        progress(stage, member * total + done, members * total)

    return report


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
    weights: Weights | None = None,
    progress: Progress | None = None,
    train: Callable[..., Sequence[int]] = train_members,
    quorum: int | None = None,
    used: Sequence[int] | None = None,
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
        weights: what the learner's pre-training left; None asks its ``prepare``.
        progress: called with ("train", steps done, steps of all members).
        train: the executor's ``train_members``; it returns the members whose workers were lost
            again and again.
        quorum: members that suffice when others are lost; by default all are needed.
        used: the members that make it up, where a round went on without the others.

    Raises:
        WorkerError: fewer members than the quorum could be trained.
    """
    stores = {member: store(member) for member in (range(members) if used is None else used)}
    labels = len(data.labeled)
    ctx = context(learner, network, task, labels, seed=seed, round=round, device=device)
    waiting = [member for member in stores if not is_final(stores[member])]
    lost: Sequence[int] = ()
    if waiting:
        everything = data.labeled.rows.take(torch.arange(len(data.labeled)))
        statistics = task.fit(everything) | task.fit_targets(data.labeled.targets)
        ctx = replace(ctx, statistics=statistics, columns=columns, scan=scan)
        if weights is None:
            with torch_threads(threads_per_model):
                weights = learner.prepare(ctx, data)
        ctx = replace(ctx, weights=weights)
        fit = Fit(learner, data, ctx, members, threads_per_model)
        needed = min(quorum or members, len(stores))
        lost = train(fit, waiting, stores, quorum=needed, progress=progress)
        if len(stores) - len(lost) < needed:
            raise WorkerError(
                f"members {sorted(lost)} of {members} were lost with their workers, and {needed} "
                "are needed; look at the memory of the nodes, run the same command again (it goes "
                "on from the last epochs), or set model.quorum lower"
            )
    kept = {member: at for member, at in stores.items() if member not in lost}
    home = context(learner, network, task, labels, seed=seed, round=round, device=home_of(device))
    return _collect(learner, home, kept, committee_hash(hash, list(kept), members))


def committee_hash(hash: str, used: Sequence[int], members: int) -> str:
    """Return the hash of a committee; one of some members only has a hash of its own."""
    return hash if len(used) == members else digest([hash, list(used)])


def load_committee(
    *,
    learner: Learner,
    network: NetworkSpec,
    task: Task,
    labels: int,
    seed: int,
    round: int,
    stores: Mapping[int, CheckpointStore],
    hash: str,
    device: str = "cpu",
) -> Committee:
    """Return a trained committee.

    Args:
        learner: how it was trained.
        network: what was trained.
        task: what a row was then.
        labels: labeled rows that it was trained on.
        seed: the model seed.
        round: the round.
        stores: member -> its checkpoints, of all that make it up.
        hash: the committee's hash.
        device: where it goes.

    Raises:
        StorageError: a member is not trained to its end.
    """
    ctx = context(learner, network, task, labels, seed=seed, round=round, device=device)
    return _collect(learner, ctx, stores, hash)


def context(
    learner: Learner,
    network: NetworkSpec,
    task: Task,
    labels: int = 0,
    *,
    seed: int = 0,
    round: int = 0,
    device: str = "cpu",
) -> TrainContext:
    """Return the context of member 0; the others differ in their number.

    Args:
        learner: how it is trained.
        network: what is trained.
        task: what a row is.
        labels: labeled rows that it is trained on; 0 where nothing will be trained.
        seed: the model seed.
        round: the round.
        device: where networks are.
    """
    place = torch.device(device)
    return TrainContext(
        task=task,
        statistics={},
        n_labeled=labels,
        n_outputs=task.n_outputs,
        steps=learner.steps,
        seed=seed,
        round=round,
        member=0,
        build=partial(network.build, task, place),
        device=place,
    )


def _collect(
    learner: Learner, ctx: TrainContext, stores: Mapping[int, CheckpointStore], hash: str
) -> Committee:
    nets, statistics = [], {}
    for member, store in stores.items():
        stored = latest_of(store, partial(read_checkpoint, device=ctx.device))
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
        members=tuple(stores),
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
