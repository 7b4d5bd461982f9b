"""One member's training, wherever it runs: in this process, or in an actor elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rayal.failpoints import failpoint
from rayal.learners.base import Learner, TrainContext, TrainData
from rayal.learners.checkpoint import CheckpointStore, checkpoint_kind, latest_of
from rayal.learners.loop import Progress, fit_unless_done
from rayal.selection.threads import torch_threads


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
