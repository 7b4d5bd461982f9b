"""Pre-training: what a learner trains on the whole pool first, once, for all rounds.

It is trained as a member is: on the executor, from its last checkpoint on, and never again where
its hash is known. Strategies and projects of a storage root share it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from rayal.engine.pool_rows import EveryRow
from rayal.engine.spec import ProjectSpec
from rayal.engine.train import Fit, FolderStore, context, is_final
from rayal.engine.workspace import Workspace
from rayal.errors import StorageError, WorkerError
from rayal.learners.base import Learner, TrainContext, Weights
from rayal.learners.checkpoint import latest_of, read_checkpoint
from rayal.learners.data import PoolData
from rayal.models.committee import home_of
from rayal.registry import hashed_name
from rayal.tasks import Task
from rayal.types import FORMAT_VERSION, digest, stated

STAGE = "pretrain"


@dataclass(frozen=True)
class Pretraining:
    """The training that comes before that of a round's members.

    Attributes:
        workspace: of the project.
        learner: how it is trained.
        ctx: of its only member; the same for all rounds.
        rows: what it is trained on.
        hash: digest of everything its weights depend on.
    """

    workspace: Workspace
    learner: Learner
    ctx: TrainContext
    rows: EveryRow
    hash: str

    @classmethod
    def of(cls, workspace: Workspace) -> Pretraining | None:
        """Return the pre-training that a project's learner wants; None where it wants none."""
        spec, task = workspace.spec, workspace.inputs.task
        learner = pretraining_of(spec, task)
        if learner is None:
            return None
        seed, device = spec.seeds.model, spec.scan.device
        ctx = context(learner, spec.network, task, seed=seed, device=device)
        rows = EveryRow(workspace.inputs)
        hash = digest(
            {
                "version": FORMAT_VERSION,
                "pretraining": [*hashed_name(learner, of=spec.learner), stated(learner)],
                "network": stated(spec.network),
                "task": task.to_json(),
                "rows": rows.parts,
                "seed": seed,
                "threads": spec.threads_per_model,
                **({} if device == "cpu" else {"device": device}),
            }
        )
        return cls(workspace, learner, ctx, rows, hash)

    def weights(self, round: int) -> Weights:
        """Return its weights: read as far as they are committed, else trained.

        Raises:
            WorkerError: its worker was lost again and again.
        """
        workspace, started = self.workspace, time.perf_counter()
        store = member_store(workspace, round, self.hash, 0)
        cached = is_final(store)
        if not cached:
            self._train(store)
        weights = _read(store)
        if workspace.stage(round, STAGE) is None:
            counts = {"rows": len(self.rows), "steps": 0 if cached else self.learner.steps}
            workspace.finish(round, STAGE, {"model": self.hash, **counts}, started=started)
        return weights

    def _train(self, store: FolderStore) -> None:
        report = self.workspace.report
        fit = Fit(
            self.learner, PoolData(unlabeled=self.rows), self.ctx, 1,
            self.workspace.spec.threads_per_model,
        )  # fmt: skip
        lost = self.workspace.executor.train_members(
            fit,
            [0],
            {0: store},
            quorum=1,
            progress=lambda _, done, total: report(STAGE, done, total),
        )
        if lost:
            raise WorkerError(
                "the pre-training was lost with its workers; look at the memory of the nodes, and "
                "run the same command again: it goes on from its last checkpoint"
            )


def pretraining_of(spec: ProjectSpec, task: Task) -> Learner | None:
    """Return the pre-training that a learner wants for a network; None where it wants none."""
    place = home_of(spec.scan.device)
    return spec.learner.pretraining(context(spec.learner, spec.network, task, device=place))


def member_store(workspace: Workspace, round: int, hash: str, member: int) -> FolderStore:
    """Return a member's checkpoints; an epoch's file goes when a later one is recorded.

    Another process may train the same member. What comes behind that which it has recorded goes
    too, and who wrote it goes on with the other's file.
    """
    ledger, root = workspace.ledger, workspace.root

    def committed() -> tuple[int, str] | None:
        row = ledger.checkpoint(hash, member)
        return None if row is None else (row.epoch, row.file)

    def commit(epoch: int, file: str, final: bool) -> None:
        last = ledger.commit_checkpoint(
            workspace.name, round, model=hash, member=member, epoch=epoch, file=file, final=final
        )
        rows = ledger.checkpoints(hash, member)
        behind = [row.file for row in rows if row.epoch < last.epoch]
        if behind:
            ledger.forget_files(behind)
        for spent in {*behind, file} - {last.file}:
            (root / spent).unlink(missing_ok=True)

    return FolderStore(root, "models", hash, member, committed, commit)


def _read(store: FolderStore) -> Weights:
    stored = latest_of(store, read_checkpoint)
    if stored is None or stored.kind != "predictor":
        raise StorageError(
            f"pre-training {store.model} is not there to its end; run the same command again"
        )
    nets = stored.tree["nets"]
    return {f"{net}.{name}": t for net, tensors in nets.items() for name, t in tensors.items()}
