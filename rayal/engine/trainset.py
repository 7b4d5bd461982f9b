"""The training set of a round: labeled rows, and everything else that its committee learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayal.engine.pool_rows import PoolRows
from rayal.engine.pretrain import Pretraining, member_store
from rayal.engine.remember import attached_rows, columns_read, hash_read
from rayal.engine.train import FolderStore, TrainRequest, is_final
from rayal.engine.workspace import Inputs, Workspace
from rayal.labels import Label
from rayal.learners.base import LabeledRows, TensorRows, TrainData, Weights
from rayal.learners.feeds import FROM_POOL
from rayal.pool.reader import Pool
from rayal.types import Columns, Keys, id_keys


@dataclass(frozen=True)
class Training:
    """The training set of a round, sorted by id, and the committee that is asked for.

    Attributes:
        workspace: of the project whose round it is.
        request: everything that the committee's weights depend on.
        ids: labeled pool items, sorted.
        data: decoded rows and targets.
        pretraining: what all members start from; None where they start afresh.
    """

    workspace: Workspace
    request: TrainRequest
    ids: tuple[str, ...]
    data: TrainData
    pretraining: Pretraining | None = None

    @classmethod
    def of(cls, workspace: Workspace, labels: Mapping[str, Label], round: int) -> Training:
        """Read the labeled pool items back by id; labels of test items are left out."""
        inputs, spec = workspace.inputs, workspace.spec
        test = np.isin(id_keys(labels), keys_of_tests(inputs.pool))
        kept = {i: labels[i] for i, out in zip(labels, test, strict=True) if not out}
        ids = tuple(sorted(kept))
        table = inputs.pool.take(ids)
        contents = dict(zip(ids, table.column("content_hash").to_pylist(), strict=True))
        rows = LabeledRows(
            TensorRows(ids, inputs.task.decode(table)), inputs.task.targets([kept[i] for i in ids])
        )
        unlabeled = _unlabeled(workspace, set(ids))
        attached, names = attached_rows(workspace, round, kept)
        pretraining = Pretraining.of(workspace)
        request = TrainRequest(
            learner=spec.learner,
            network=spec.network,
            task=inputs.task,
            labels={i: [label, contents[i]] for i, label in kept.items()},
            members=spec.committee_size,
            seed=spec.seeds.model,
            round=round,
            threads_per_model=spec.threads_per_model,
            unlabeled=None if unlabeled is None else unlabeled.fingerprint,
            attached=names,
            reads=hash_read(workspace, round),
            pretrained=None if pretraining is None else pretraining.hash,
            device=spec.scan.device,
        )
        return cls(workspace, request, ids, TrainData(rows, unlabeled, attached), pretraining)

    def columns(self) -> Columns | None:
        """Return what the learner reads of the last round's scan; None where there is nothing."""
        return columns_read(self.workspace, self.request.reads, set(self.ids))

    @property
    def record(self) -> dict[str, Any]:
        """The prepare stage's record of it."""
        reads = {"reads": self.request.reads} if self.request.learner.reads() else {}
        return {"labels": len(self.ids), **reads}

    def store(self, member: int) -> FolderStore:
        """Return a member's checkpoints."""
        return member_store(self.workspace, self.request.round, self.request.hash, member)

    def weights(self) -> Weights | None:
        """Return what members start from, where the learner is pre-trained and one is waiting."""
        if self.pretraining is None:
            return None
        if all(is_final(self.store(member)) for member in range(self.request.members)):
            return None
        return self.pretraining.weights(self.request.round)


def _unlabeled(workspace: Workspace, labeled: set[str]) -> PoolRows | None:
    """Return the pool's other items where the learner trains on them."""
    wanted = {stream.source for stream in workspace.spec.learner.streams()}
    if not wanted & set(FROM_POOL):
        return None
    inputs: Inputs = workspace.inputs
    ids = tuple(sorted(i for i in inputs.pool.ids("pool") if i not in labeled))
    return PoolRows(inputs.pool, inputs.task, ids)


def keys_of_tests(pool: Pool) -> Keys:
    """Return the id keys of the test items."""
    parts = [pool.read(part).column("key").to_numpy() for part in pool.parts_of("test")]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)
