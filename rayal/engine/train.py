"""Training of a committee: each member once, epoch by epoch, into checkpoints that count.

Nothing here knows where members train: in this process, or in actors elsewhere. A member is a
pure function of its ``TrainRequest``, so what is committed under a hash is never trained
again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from rayal.engine.spec import NetworkSpec
from rayal.errors import StorageError, WorkerError
from rayal.failpoints import failpoint
from rayal.learners.base import Learner, ScanRows, TrainContext, TrainData, Weights
from rayal.learners.checkpoint import CheckpointStore, checkpoint_kind, latest_of, read_checkpoint
from rayal.learners.loop import Progress, fit_unless_done, keyed
from rayal.models.committee import Committee, home_of
from rayal.pool.storage import write_durably
from rayal.registry import hashed_name
from rayal.selection.threads import torch_threads
from rayal.tasks.base import Task
from rayal.types import FORMAT_VERSION, Columns, digest, stated


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


def _hashed(
    encode: Callable[[Any], Any] = lambda value: value,
    *,
    name: str | None = None,
    absent: Any = MISSING,
    **options: Any,
) -> Any:
    """Return a field of ``TrainRequest`` that enters its hash.

    Args:
        encode: value -> what is digested of it.
        name: under which word; by default the field's.
        absent: the value at which the field stays out of the hash, as fields of later versions do.
        **options: of ``dataclasses.field``.
    """
    return field(metadata={"hash": (name, encode, absent)}, **options)


@dataclass(frozen=True)
class TrainRequest:
    """A committee to train: everything that its weights depend on, and nothing else.

    Its hash is made of its fields: one that does not say how it enters is an error, so none can be
    forgotten.

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

    learner: Learner = _hashed(lambda learner: [*hashed_name(learner), stated(learner)])
    network: NetworkSpec = _hashed(lambda network: network.identity)
    task: Task = _hashed(lambda task: task.to_json())
    labels: Mapping[str, Any] = _hashed(lambda labels: sorted(labels.items()))
    members: int = _hashed()
    seed: int = _hashed()
    round: int = _hashed()
    threads_per_model: int = _hashed(name="threads", default=1)
    unlabeled: tuple[int, int] | None = _hashed(default=None)
    attached: Sequence[Any] | None = _hashed(absent=None, default=None)
    reads: str | None = _hashed(absent=None, default=None)
    pretrained: str | None = _hashed(absent=None, default=None)
    device: str = _hashed(absent="cpu", default="cpu")

    @cached_property
    def hash(self) -> str:
        """The digest of everything that the committee's weights depend on."""
        contents: dict[str, Any] = {"version": FORMAT_VERSION}
        for entry in fields(self):
            name, encode, absent = entry.metadata["hash"]
            value = getattr(self, entry.name)
            if value != absent:
                contents[name or entry.name] = encode(value)
        return digest(contents)

    def context(self, labels: int, *, device: str | None = None) -> TrainContext:
        """Return the context of member 0; the others differ in their number.

        Args:
            labels: labeled rows that it is trained on.
            device: where networks are; by default where they train.
        """
        place = self.device if device is None else device
        seeds = {"seed": self.seed, "round": self.round}
        return context(self.learner, self.network, self.task, labels, device=place, **seeds)


@dataclass(frozen=True)
class Fit:
    """The training of a committee's members, as far as they have it in common.

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


def train_committee(
    request: TrainRequest,
    data: TrainData,
    store: Callable[[int], CheckpointStore],
    *,
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
        request: the committee that is asked for.
        data: labeled rows in id order, and what else the learner wants.
        store: member -> its checkpoints.
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
    members = request.members
    stores = {member: store(member) for member in (range(members) if used is None else used)}
    waiting = [member for member in stores if not is_final(stores[member])]
    lost: Sequence[int] = ()
    if waiting:
        ctx = _fitted(request, data, columns=columns, scan=scan, weights=weights)
        fit = Fit(request.learner, data, ctx, members, request.threads_per_model)
        needed = min(quorum or members, len(stores))
        lost = train(fit, waiting, stores, quorum=needed, progress=progress)
        if len(stores) - len(lost) < needed:
            raise WorkerError(
                f"members {sorted(lost)} of {members} were lost with their workers, and {needed} "
                "are needed; look at the memory of the nodes, run the same command again (it goes "
                "on from the last epochs), or set model.quorum lower"
            )
    kept = {member: at for member, at in stores.items() if member not in lost}
    home = request.context(len(data.labeled), device=home_of(request.device))
    hash = committee_hash(request.hash, list(kept), members)
    return load_committee(request.learner, home, kept, hash)


def _fitted(
    request: TrainRequest,
    data: TrainData,
    *,
    columns: Columns | None,
    scan: ScanRows | None,
    weights: Weights | None,
) -> TrainContext:
    """Return the context of member 0, with statistics of the labeled rows and first weights."""
    task, labeled = request.task, data.labeled
    everything = labeled.rows.take(torch.arange(len(labeled)))
    statistics = task.fit(everything) | task.fit_targets(labeled.targets)
    ctx = replace(request.context(len(labeled)), statistics=statistics, columns=columns, scan=scan)
    if weights is None:
        with torch_threads(request.threads_per_model):
            weights = request.learner.prepare(ctx, data)
    return replace(ctx, weights=weights)


def committee_hash(hash: str, used: Sequence[int], members: int) -> str:
    """Return the hash of a committee; one of some members only has a hash of its own."""
    return hash if len(used) == members else digest([hash, list(used)])


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


def load_committee(
    learner: Learner, ctx: TrainContext, stores: Mapping[int, CheckpointStore], hash: str
) -> Committee:
    """Return a trained committee.

    Args:
        learner: how it was trained.
        ctx: the context of member 0, on the device where the committee goes.
        stores: member -> its checkpoints, of all that make it up.
        hash: the committee's hash.

    Raises:
        StorageError: a member is not trained to its end.
    """
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
