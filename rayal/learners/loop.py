"""The training loop: steps, epochs, batches and checkpoints of one member, for any learner.

Training is a fixed number of steps. An epoch is a fixed number of steps too, since a hundred
labeled rows are one batch a pass: it is the unit of checkpoints and of a learner's hooks. Every
draw is keyed, so that training killed anywhere goes on from its last checkpoint to the same bits:
the rows of a step are a function of the step, and what torch draws (dropout, augmentation) starts
anew at each epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rayal.errors import ScoreError, StorageError
from rayal.learners.base import (
    Learner,
    Rows,
    TrainContext,
    TrainData,
    TrainState,
)
from rayal.learners.checkpoint import (
    CheckpointStore,
    latest_of,
    read_checkpoint,
    write_checkpoint,
)
from rayal.learners.feeds import check_streams, feed_of, moved

Progress = Callable[[str, int, int], None]


def fit(
    learner: Learner,
    data: TrainData,
    ctx: TrainContext,
    *,
    checkpoint: CheckpointStore,
    progress: Progress | None = None,
) -> TrainState:
    """Train one member, from its last committed epoch on, and leave its predictor in the store.

    Args:
        learner: the learner, which defines a step.
        data: the rows.
        ctx: the member.
        checkpoint: committed epochs; each one is saved there, the last one as the predictor.
        progress: called with ("train", steps done, steps) after every step.

    Raises:
        NeedsError: the learner wants rows or views that are not there.
        ScoreError: a loss is not finite; the message names the step and the term.
        StorageError: the training is finished already, or its checkpoint cannot be read.
    """
    state = fit_unless_done(learner, data, ctx, checkpoint=checkpoint, progress=progress)
    if state is None:
        latest = checkpoint.latest()
        raise StorageError(
            f"{None if latest is None else latest[1]} is the end of a training, from which none "
            "can go on; load its predictor"
        )
    return state


def fit_unless_done(
    learner: Learner,
    data: TrainData,
    ctx: TrainContext,
    *,
    checkpoint: CheckpointStore,
    progress: Progress | None = None,
) -> TrainState | None:
    """Train as ``fit`` does; return None where somebody else has finished the training.

    Several processes may train one member into one store: equal hashes mean equal weights. Who
    finds after an epoch that another is further goes on with the other's.
    """
    check_streams(learner, data)
    state = _begun(learner, data, ctx, checkpoint)
    while state is not None:
        with keyed(ctx, "epoch", state.epoch):
            _epoch(learner, state, data, ctx, progress)
            over = state.stopped or state.step >= ctx.steps
            if over:
                learner.on_end(state, ctx, data)
        write = _write_predictor if over else _write_state
        checkpoint.save(state.epoch, partial(write, learner, state, ctx), over)
        if over:
            break
        latest = checkpoint.latest()
        if latest is not None and latest[0] > state.epoch:
            state = _begun(learner, data, ctx, checkpoint)
    return state


def _epoch(
    learner: Learner,
    state: TrainState,
    data: TrainData,
    ctx: TrainContext,
    progress: Progress | None,
) -> None:
    learner.on_epoch_start(state, ctx, data)
    wanted = (feed_of(stream, learner, state, data, ctx) for stream in learner.streams())
    feeds = [feed for feed in wanted if feed is not None]
    _train_mode(state, single=any(feed.rows_per_step == 1 for feed in feeds))
    for step in range(state.step, min(ctx.steps, state.step + learner.epoch_steps)):
        batches = {feed.stream.name: feed.batch(step, ctx) for feed in feeds}
        check_finite(learner.step(state, batches, ctx), learner, state, ctx)
        state.step = step + 1
        if progress is not None:
            progress("train", state.step, ctx.steps)
    state.epoch += 1
    learner.on_epoch_end(state, ctx, data)


def _train_mode(state: TrainState, *, single: bool) -> None:
    """Set the modes of an epoch; BatchNorm keeps its running statistics for batches of one row.

    One row has no variance: it would be an error, or a signal that is zero everywhere.
    """
    state.averages.eval()
    state.networks.train()
    if single:
        for module in batchnorms(state.networks):
            module.eval()


# ---- chance and checkpoints ----------------------------------------------------------------------


@contextmanager
def keyed(ctx: TrainContext, *parts: str | int) -> Iterator[None]:
    """Seed torch for a while by (seed, round, member, parts), and leave its state as it was."""
    cuda = [ctx.device] if ctx.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(ctx.chance(*parts))
        yield


def _begun(
    learner: Learner, data: TrainData, ctx: TrainContext, checkpoint: CheckpointStore
) -> TrainState | None:
    """Return the state after the last committed epoch; None behind the end of the training."""
    with keyed(ctx, "begin"):
        state = learner.begin(ctx, data)
    # side tables stay on the CPU; weights are copied
    stored = latest_of(checkpoint, read_checkpoint)
    if stored is None:
        return state
    if stored.kind != "state":
        return None
    state.load_state_dict(stored.tree)
    return state


def _write_state(learner: Learner, state: TrainState, ctx: TrainContext, path: Path) -> None:
    write_checkpoint(path, "state", state.state_dict())


def _write_predictor(learner: Learner, state: TrainState, ctx: TrainContext, path: Path) -> None:
    nets = {name: net.state_dict() for name, net in learner.predictor(state).items()}
    write_checkpoint(path, "predictor", {"nets": nets, "statistics": dict(ctx.statistics)})


# ---- for the hooks of learners -------------------------------------------------------------------


def plain_batches(
    rows: Rows, positions: Tensor, ctx: TrainContext, *, size: int
) -> Iterator[Tensor]:
    """Yield rows once, under the eval transform, in batches of nearly equal size.

    Args:
        rows: where they come from.
        positions: int64 ``[n]``; the order of the rows.
        ctx: the member.
        size: the most rows of a batch.
    """
    for part in torch.tensor_split(positions, math.ceil(len(positions) / size)):
        raw = rows.take(part).to(ctx.device)
        yield moved(ctx.task.transform(raw, ctx.statistics), ctx)


def batchnorms(net: nn.Module) -> list[_BatchNorm]:
    """Return the BatchNorm modules of a network."""
    return [m for m in net.modules() if isinstance(m, _BatchNorm)]


def check_finite(
    losses: Mapping[str, float], learner: Learner, state: TrainState, ctx: TrainContext
) -> None:
    """Raise ScoreError naming the step and the first loss term that is not a finite number."""
    for name, value in losses.items():
        if not math.isfinite(value):
            raise ScoreError(
                f"{type(learner).__name__}: loss {name!r} is {value} at step {state.step} of "
                f"{ctx.steps}, round {ctx.round}, member {ctx.member}; {learner.remedy}"
            )
