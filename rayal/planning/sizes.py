"""Sizes that a plan starts from: of a pool, and of a network with what it makes of a row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayal.engine.pretrain import pretraining_of
from rayal.engine.scan import NO_POOL, Scan
from rayal.engine.spec import ProjectSpec, SelectionOptions
from rayal.models.committee import Committee
from rayal.selection.footprint import Shapes
from rayal.signals import Forward, compute
from rayal.tasks import Task
from rayal.types import PART_BYTES, TILE_ROWS, part_rows

ITEM = 64  # bytes beside an item's payload in a part: id of 12 letters, key, content hash, offsets
KNOWN = 28  # bytes of a row of the file of known labels: such an id, and a label


@dataclass(frozen=True)
class PoolShape:
    """The sizes of a pool that a plan uses, whether the pool was ingested or not.

    Attributes:
        rows: items to choose from.
        tests: items of the test.
        item: bytes of an item's payload.
        payload: the encoding of a row's bytes, as ingest records it.
        classes: names of the classes; none where a number is predicted.
        disk: bytes of the pool's files, where they are there; None counts them.
        ingested: whether the pool was ingested.
        resident: bytes that its source holds in memory while it is ingested.
    """

    rows: int
    tests: int
    item: float
    payload: Mapping[str, Any]
    classes: tuple[str, ...]
    disk: int | None = None
    ingested: bool = False
    resident: int = 0

    @property
    def part_rows(self) -> int:
        """Rows of a full part, as ingest cuts them."""
        fits = max(1, int(PART_BYTES / max(self.item, 1)))
        fits = fits - fits % TILE_ROWS if fits > TILE_ROWS else fits
        return max(1, min(self.rows, part_rows(self.rows), fits))

    @property
    def parts(self) -> int:
        """Parts of the items to choose from."""
        return math.ceil(self.rows / self.part_rows)

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of the parts and of the known labels."""
        if self.disk is not None:
            return self.disk
        return int((self.rows + self.tests) * (self.item + ITEM + KNOWN))


@dataclass(frozen=True)
class NetworkShape:
    """Bytes of a network, and of what it makes of one row.

    Attributes:
        weights: parameters and buffers.
        activations: outputs of all layers for one row, which training keeps.
        widest: the two largest of them, which inference holds.
        row: one decoded row.
        signals: the scan's columns, name to (shape, bytes) of one row.
        borrowed: those that the pool's parts hold already.
        narrow: those that are stored in bf16.
        rounding: those that ``selection.precision`` bf16 would store so.
        pretrained: steps and batch of a pre-training on the pool; (0, 0) without one.
    """

    weights: int
    activations: int
    widest: int
    row: int
    signals: Mapping[str, tuple[tuple[int, ...], int]]
    borrowed: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ()
    rounding: tuple[str, ...] = ()
    pretrained: tuple[int, int] = (0, 0)

    def under(self, options: SelectionOptions) -> NetworkShape:
        """Return the sizes where a joint choice holds its columns so."""
        narrow = self.rounding if options.precision == "bf16" else ()
        borrowed = tuple(n for n in self.borrowed if n not in narrow)
        return replace(self, narrow=narrow, borrowed=borrowed)

    def shapes(self) -> Shapes:
        """Return the shape of one row of each column; that of the score is a number."""
        return {"score": (), **{name: shape for name, (shape, _) in self.signals.items()}}

    def size(self, names: Sequence[str]) -> int:
        """Return the bytes of one row of columns."""
        return sum(8 if name == "score" else self.signals[name][1] for name in names)

    def stored(self, names: Sequence[str]) -> int:
        """Return the bytes of one row of columns as they are stored and held by shards."""
        return self.size(names) - 2 * sum(
            prod(self.signals[n][0]) for n in names if n in self.narrow
        )

    def written(self, names: Sequence[str]) -> int:
        """Return the bytes of one row of columns, without those that are borrowed."""
        return self.size([name for name in names if name not in self.borrowed])


def network_shape(
    spec: ProjectSpec, task: Task, committee: Committee, *, width: int | None = None
) -> NetworkShape:
    """Return a network's sizes by one forward pass of one row, and one of every signal.

    Args:
        spec: the spec of the project.
        task: the task, which tells what a row is.
        committee: untrained networks.
        width: columns of the embedding, where another network is meant.
    """
    net = committee.net(0)
    x = torch.zeros((1, *task.input_shape))
    outputs = output_bytes(net, x)
    scan = Scan(NO_POOL, committee, spec.strategy, spec.learner, spec.scan)
    rounding = replace(scan, stored="bf16").narrow
    columns: Mapping[str, Tensor] = {}
    if scan.signals:
        columns = compute(scan.signals, Forward(committee, x, ["0"], np.zeros(1, np.uint64), raw=x))
    signals = {n: (tuple(c.shape[1:]), c.numel() * c.element_size()) for n, c in columns.items()}
    if width is not None and "embedding" in signals:
        signals["embedding"] = ((width,), 4 * width)
    nets = committee.nets[0]
    tensors = [*nets.parameters(), *nets.buffers()]
    before = pretraining_of(spec, task)
    return NetworkShape(
        weights=sum(t.numel() * t.element_size() for t in tensors),
        activations=sum(outputs),
        widest=sum(sorted(outputs)[-2:]),
        row=4 * prod(task.input_shape),
        signals=signals,
        borrowed=scan.borrowed,
        rounding=rounding,
        pretrained=(0, 0) if before is None else (before.steps, before.batch),
    )


def output_bytes(net: nn.Module, x: Tensor) -> list[int]:
    """Return the bytes of every layer's output for one row ``[1, …]``, in eval mode."""
    sizes: list[int] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    hooks = [m.register_forward_hook(note) for m in net.modules() if not list(m.children())]
    mode = net.training
    try:
        with torch.no_grad():
            net.eval()(x)
    finally:
        net.train(mode)
        for hook in hooks:
            hook.remove()
    return sizes or [x.numel() * x.element_size()]
