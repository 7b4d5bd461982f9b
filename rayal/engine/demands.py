"""The arithmetic of memory and disk: what each stage of a round holds, derived from its code.

Counted is private memory. Pool parts and columns are memory-mapped: their pages are the system's
page cache, which it may drop, and are stated apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rayal.engine.scan import DECODED_BYTES, Scan
from rayal.engine.spec import ProjectSpec
from rayal.models.committee import Committee
from rayal.selection.footprint import Footprint, Shapes
from rayal.selection.objective import Objective
from rayal.selection.quality import SAMPLE_ROWS, exact_form
from rayal.signals import Forward, compute
from rayal.strategies.base import Ctx
from rayal.tasks import Task
from rayal.types import PART_BYTES, PART_ROWS, TILE_ROWS

ITEM = 64  # bytes beside an item's payload in a part: id of 12 letters, key, content hash, offsets
KNOWN = 28  # bytes of a row of the file of known labels: such an id, and a label
INDEXED = 320  # bytes of a row in ingest: id, keys, digests, label, and the copies that sort them
LEDGER = 2_048  # bytes of a label on the driver: states, leases and labels as Python objects
ENTRY = 1_500  # bytes of a pick with its lease and label in the ledger: rows, events, indices
LEDGER_FILE = 160_000  # bytes of a ledger without rows
OUTPUTS = 100_000  # bytes of curve.png and the tables
HELD = 17  # bytes of a row in a shard: its key, whether it is eligible, and the mask's source


@dataclass(frozen=True)
class PoolShape:
    """What a plan knows of a pool, whether it is there or not.

    Attributes:
        rows: items to choose from.
        tests: items of the test.
        item: bytes of an item's payload.
        payload: what the bytes of a row are, as ingest records it.
        classes: names of the classes.
        disk: bytes of the pool's files, where they are there; None counts them.
        ingested: whether it is there.
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
        return max(1, min(self.rows, PART_ROWS, fits))

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
    """

    weights: int
    activations: int
    widest: int
    row: int
    signals: Mapping[str, tuple[tuple[int, ...], int]]
    borrowed: tuple[str, ...] = ()

    def shapes(self) -> Shapes:
        """Return the shape of one row of each column; that of the score is a number."""
        return {"score": (), **{name: shape for name, (shape, _) in self.signals.items()}}

    def size(self, names: Sequence[str]) -> int:
        """Return the bytes of one row of columns."""
        return sum(8 if name == "score" else self.signals[name][1] for name in names)

    def written(self, names: Sequence[str]) -> int:
        """Return the bytes of one row of columns, without those that are borrowed."""
        return self.size([name for name in names if name not in self.borrowed])


def network_shape(
    spec: ProjectSpec, task: Task, committee: Committee, *, width: int | None = None
) -> NetworkShape:
    """Return a network's sizes by one forward pass of one row, and one of every signal.

    Args:
        spec: what the project's rounds do.
        task: what a row is.
        committee: untrained networks.
        width: columns of the embedding, where another network is meant.
    """
    net = committee.net(0)
    x = torch.zeros((1, *task.input_shape))
    outputs = output_bytes(net, x)
    scan = Scan(_NO_POOL, committee, spec.strategy, spec.learner, spec.scan)
    made: Mapping[str, Tensor] = {}
    if scan.signals:
        made = compute(scan.signals, Forward(committee, x, ["0"], np.zeros(1, np.uint64), raw=x))
    signals = {n: (tuple(c.shape[1:]), c.numel() * c.element_size()) for n, c in made.items()}
    if width is not None and "embedding" in signals:
        signals["embedding"] = ((width,), 4 * width)
    nets = committee.nets[0]
    tensors = [*nets.parameters(), *nets.buffers()]
    return NetworkShape(
        weights=sum(t.numel() * t.element_size() for t in tensors),
        activations=sum(outputs),
        widest=sum(sorted(outputs)[-2:]),
        row=4 * prod(task.input_shape),
        signals=signals,
        borrowed=scan.borrowed,
    )


_NO_POOL: Any = None  # a scan's signals do not depend on its pool


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


def objective_of(spec: ProjectSpec, rows: int) -> Objective:
    """Return a strategy's joint choice among so many items."""
    return spec.strategy.objective(Ctx(round=0, k=spec.batch, seed=0, n_candidates=rows))


# ---- private memory ------------------------------------------------------------------------------


def ingesting(pool: PoolShape) -> int:
    """Return the bytes of an ingest: an index of all rows, and one part twice while it is written.

    Payloads lie in a file meanwhile; arrays are read whole.
    """
    part = int(pool.part_rows * (pool.item + ITEM))
    return pool.resident + (pool.rows + pool.tests) * INDEXED + 2 * part


def training(spec: ProjectSpec, net: NetworkShape, labels: int) -> int:
    """Return the bytes of one member's training.

    The decoded rows stay; the statistics take a copy and two of float64. A step holds weights,
    gradients, the optimizer's moments, a checkpoint of all that, and the activations with their
    gradients.
    """
    rows = labels * net.row
    moments = 1 if getattr(spec.learner, "optimizer", "adam") == "sgd" else 2
    spare = (getattr(spec.learner, "swa", 0) > 0) + (getattr(spec.learner, "early_stopping", 0) > 0)
    weights = net.weights * (2 * (1 + moments) + 1 + spare)
    step = spec.learner.batch * (2 * net.activations + 3 * net.row)
    return rows + max(5 * rows, weights + step)


def scanning(spec: ProjectSpec, net: NetworkShape, rows: int) -> int:
    """Return the bytes of scanning a part of so many rows.

    All signals but borrowed ones stay with the score, tile by tile, and are joined at the end, so
    they are there twice. A tile's signals are collected by batches and joined, and scored in
    float64, with three arrays of their size. Rows are decoded some batches at a time, with one
    copy; a batch has them padded, transformed and copied for the network, and two activations.
    """
    if not net.signals:
        return 0
    signals = net.size(list(net.signals))
    step = max(1, DECODED_BYTES // (net.row * spec.scan.batch)) * spec.scan.batch
    decoded = min(step, rows, TILE_ROWS) * net.row
    batch = 2 * decoded + spec.scan.width * (3 * net.row + 2 * net.widest + 4 * signals)
    tile = min(rows, TILE_ROWS) * 6 * signals
    joined = rows * (8 + net.written(list(net.signals)))
    return joined + max(joined, batch, tile)


def evaluating(pool: PoolShape, spec: ProjectSpec, net: NetworkShape) -> int:
    """Return the bytes of evaluation: the test's log-probabilities, joined, and in float64."""
    classes = len(pool.classes)
    batch = spec.scan.width * (4 * net.row + 2 * net.widest)
    return pool.tests * (classes * (4 + 4 + 3 * 8) + 200) + batch


def selecting(made: Footprint, rows: int, parts: int, *, threads: int, copied: int = 0) -> int:
    """Return the bytes of one shard, its mapped columns apart.

    Args:
        made: of its objective.
        rows: that it holds.
        parts: that they come from; what these send is there as made and joined.
        threads: tiles that it works on at once.
        copied: bytes of a row that are copied, as candidates' are, where others are mapped.
    """
    tiles = math.ceil(rows / TILE_ROWS)
    kept = rows * (HELD + made.row + copied) + tiles * made.tile + 2 * parts * made.part
    return kept + min(threads, tiles) * made.transient + made.shard


def summing(made: Footprint, rows: int, *, threads: int, copied: int = 0) -> int:
    """Return the bytes of a shard before the first step, while its tiles are summed up."""
    tiles = math.ceil(rows / TILE_ROWS)
    return rows * (HELD + made.row + copied) + min(threads, tiles) * made.summing


def measuring(objective: Objective, net: NetworkShape, rows: int, k: int) -> int:
    """Return the bytes of measuring an approximate choice, on a sample of copied rows; else 0."""
    exact = exact_form(objective)
    if objective.approximation() is None or exact is None:
        return 0
    sample = min(rows, SAMPLE_ROWS)
    made = exact.footprint(net.shapes(), sample, k)
    size = net.size(exact.needs)
    return sample * size + selecting(made, sample, 1, threads=1, copied=size) + made.driver


def driving(pool: PoolShape, spec: ProjectSpec, net: NetworkShape, labels: int) -> int:
    """Return what stays on the driver: keys of all items, labels, context, trained members."""
    context = 3 * labels * net.size(spec.strategy.context)
    keys = 8 * (pool.rows + pool.tests)
    return keys + labels * LEDGER + context + 2 * spec.committee_size * net.weights


def deciding(made: Footprint, parts: int) -> int:
    """Return the driver's bytes of a joint choice; what parts send is there three times."""
    return made.driver + 3 * parts * made.part


# ---- disk ----------------------------------------------------------------------------------------


def columns_on_disk(spec: ProjectSpec, net: NetworkShape, rows: int) -> int:
    """Return the bytes of one round's columns: key, score, and what the joint choice carries."""
    scan = Scan(_NO_POOL, _NO_POOL, spec.strategy, spec.learner, spec.scan)
    return rows * (16 + net.written(scan.kept)) if net.signals else 0


def rounds_on_disk(spec: ProjectSpec, columns: int, weights: int) -> tuple[int, int]:
    """Return the bytes of columns and weights: the most at any time, and once the run has ended.

    Beside what ``keep`` lets stay there are the last round's files until the next one has ended.
    The last round scans nothing; with ``last`` and ``picks`` no columns outlive it. The weights of
    round 0, which strategies share, stay.
    """
    rounds = spec.rounds or 0
    committee = spec.committee_size * weights
    if spec.keep == "all":
        whole = rounds * columns + (rounds + 1) * committee
        return whole, whole
    held = min(rounds, 1 if spec.keep == "picks" else 2) * columns
    return held + min(rounds + 1, 3) * committee, min(rounds + 1, 2) * committee
