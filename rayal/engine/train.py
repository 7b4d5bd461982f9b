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

import torch
from torch import Tensor, nn

from rayal.engine.member import Fit, is_final, train_members
from rayal.errors import StorageError, WorkerError
from rayal.learners.base import Learner, ScanRows, TrainContext, TrainData, Weights
from rayal.learners.checkpoint import CheckpointStore, latest_of, read_checkpoint
from rayal.learners.loop import Progress, keyed
from rayal.models import build_network
from rayal.models.committee import Committee, home_of
from rayal.models.noise import ConstantNoise
from rayal.models.weights import weights_digest
from rayal.selection.threads import torch_threads
from rayal.types import Columns, digest, stated

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
