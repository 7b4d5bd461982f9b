"""From streams to batches: which rows a step sees, under which views, and with which targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from rayal.errors import NeedsError, nearest
from rayal.learners.base import (
    LabeledBatch,
    Learner,
    Rows,
    Stream,
    TrainContext,
    TrainData,
    TrainState,
    UnlabeledBatch,
)
from rayal.learners.data import names
from rayal.types import id_keys

View = Callable[[Tensor, TrainContext, torch.Generator], Tensor]


@dataclass(frozen=True)
class Feed:
    """The rows of a stream during one epoch."""

    stream: Stream
    rows: Rows
    chosen: Tensor  # int64 [n], positions in rows
    targets: Tensor | None  # [n]
    weights: Tensor | None  # [n]
    rows_per_step: int
    epoch_start: int
    generator: torch.Generator

    def batch(self, step: int, ctx: TrainContext) -> UnlabeledBatch:
        """Return the batch of a step."""
        here = self._places(step, ctx)
        positions = self.chosen[here]
        ids = names(self.rows, positions)
        raw = self.rows.take(positions).to(ctx.device)
        views = (VIEWS[name](raw, ctx, self.generator) for name in self.stream.views)
        inputs = tuple(moved(view, ctx) for view in views)
        if self.targets is None:
            return UnlabeledBatch(ids, id_keys(ids), inputs)
        y = moved(ctx.task.standardised(self.targets[here], ctx.statistics), ctx)
        weight = None if self.weights is None else moved(self.weights[here], ctx)
        return LabeledBatch(ids, id_keys(ids), inputs, y, weight)

    def _places(self, step: int, ctx: TrainContext) -> Tensor:
        """Return the places, among the chosen rows, that a step sees, int64 ``[rows_per_step]``."""
        n, size, salt = len(self.chosen), self.rows_per_step, 0
        if self.stream.source == "pseudo":  # its rows are those of this epoch
            salt, step = self.epoch_start, step - self.epoch_start
        if self.stream.sampler == "cyclic":
            return torch.arange(step * size, (step + 1) * size) % n
        turn, index = divmod(step, n // size)
        order = _shuffled(n, ctx.chance("batches", self.stream.name, salt, turn))
        return order[index * size : (index + 1) * size]


@lru_cache(maxsize=8)
def _shuffled(rows: int, seed: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed))


def feed_of(
    stream: Stream, learner: Learner, state: TrainState, data: TrainData, ctx: TrainContext
) -> Feed | None:
    """Return the rows of a stream for the epoch that begins; None when it has none."""
    labeled = {"labeled": data.labeled, "attached": data.attached}.get(stream.source)
    rows = labeled.rows if labeled is not None else None
    if stream.source in FROM_POOL:
        rows = data.unlabeled
    if rows is None:
        return None
    everything = torch.arange(0 if stream.source == "pseudo" else len(rows))
    chosen = state.tables.get(f"rows.{stream.name}", everything)
    if not len(chosen):
        return None

    def column(kind: str, known: Tensor | None) -> Tensor | None:
        of_rows = None if known is None else known[chosen]
        return state.tables.get(f"{kind}.{stream.name}", of_rows)

    return Feed(
        stream=stream,
        rows=rows,
        chosen=chosen,
        targets=column("targets", labeled.targets if labeled is not None else None),
        weights=column("weights", labeled.weights if labeled is not None else None),
        rows_per_step=min(max(1, round(stream.ratio * learner.batch)), len(chosen)),
        epoch_start=state.step,
        generator=ctx.generator("views", stream.name, state.epoch),
    )


def check_streams(learner: Learner, data: TrainData) -> None:
    """Raise NeedsError where a learner wants rows or views that are not there."""
    for stream in learner.streams():
        if stream.source in FROM_POOL and data.unlabeled is None:
            raise NeedsError(
                f"{type(learner).__name__} trains on unlabeled rows (stream {stream.name!r}), and "
                "none were given; give the pool's other rows, or use the learner supervised"
            )
        for view in stream.views:
            if view not in VIEWS:
                raise NeedsError(
                    f"stream {stream.name!r}: no view {view!r}; {nearest(view, VIEWS)}"
                )


def _plain(x: Tensor, ctx: TrainContext, generator: torch.Generator) -> Tensor:
    return ctx.task.transform(x, ctx.statistics)


def _weak(x: Tensor, ctx: TrainContext, generator: torch.Generator) -> Tensor:
    return ctx.task.augment(ctx.task.transform(x, ctx.statistics), generator)


FROM_POOL = ("unlabeled", "pseudo")
VIEWS: dict[str, View] = {"raw": lambda x, ctx, generator: x, "plain": _plain, "weak": _weak}


def moved(x: Tensor, ctx: TrainContext) -> Tensor:
    """Return a batch on the member's device, numbers in its type."""
    return x.to(ctx.device, ctx.dtype) if x.is_floating_point() else x.to(ctx.device)
