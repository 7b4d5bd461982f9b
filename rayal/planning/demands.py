"""The arithmetic of memory and disk: what each stage of a round holds, derived from its code.

Counted is private memory. Pool parts and columns are memory-mapped: their pages are the system's
page cache, which it may drop, and are stated apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import torch

from rayal.engine.embed import embedding_hash
from rayal.engine.scan import DECODED_BYTES, NO_POOL, Scan
from rayal.engine.spec import ProjectSpec, ScanOptions
from rayal.planning.sizes import ITEM, NetworkShape, PoolShape, output_bytes
from rayal.selection.footprint import Footprint, width
from rayal.selection.objective import Objective
from rayal.selection.quality import SAMPLE_ROWS
from rayal.selection.tiles import PAD
from rayal.strategies.base import Ctx
from rayal.tasks import Task
from rayal.types import TILE_ROWS

INDEXED = 345  # bytes of a row in ingest: id, keys, digests, label, and the copies that sort them
LEDGER = 2_048  # bytes of a label on the driver: states, leases and labels as Python objects
ENTRY = 1_500  # bytes of a pick with its lease and label in the ledger: rows, events, indices
LEDGER_FILE = 160_000  # bytes of a ledger without rows
OUTPUTS = 100_000  # bytes of curve.png and the tables
ORDERS = 8  # passes over a stream whose order the training loop keeps
HELD = 17  # bytes of a row in a shard: its key, whether it is eligible, and the mask's source


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


def pretraining(net: NetworkShape, rows: int) -> int:
    """Return the bytes of a pre-training on all rows of the pool; 0 without one.

    A row has a key and a position, and one more position in the order of each of the last passes.
    A step holds what one of ``training`` does.
    """
    steps, batch = net.pretrained
    if not steps:
        return 0
    passes = min(ORDERS, math.ceil(steps * batch / max(rows, 1)))
    return rows * 8 * (2 + passes) + 7 * net.weights + batch * (2 * net.activations + 3 * net.row)


def scanning(spec: ProjectSpec, net: NetworkShape, rows: int) -> int:
    """Return the bytes of scanning a part of so many rows.

    All signals but borrowed ones stay with the score, tile by tile, and are joined at the end, so
    they are there twice. A tile's signals are collected by batches and joined, and scored in
    float64, with three arrays of their size. Rows are decoded some batches at a time, with one
    copy; a batch has them padded, transformed and copied for the network, and two activations.
    Signals that differentiate keep all activations of 64 rows, with gradients, and sums of them.
    """
    if not net.signals:
        return 0
    signals = net.size(list(net.signals))
    step = max(1, DECODED_BYTES // (net.row * spec.scan.batch)) * spec.scan.batch
    decoded = min(step, rows, TILE_ROWS) * net.row
    batch = 2 * decoded + spec.scan.width * (3 * net.row + 2 * net.widest + 4 * signals)
    if any(signal.differentiates for signal in spec.strategy.signals()):
        batch += PAD * 6 * net.activations
    tile = min(rows, TILE_ROWS) * 6 * signals
    joined = rows * (8 + net.written(list(net.signals)))
    return joined + max(joined, batch, tile)


def evaluating(pool: PoolShape, spec: ProjectSpec, net: NetworkShape) -> int:
    """Return the bytes of evaluation: the test's predictions, joined, and in float64."""
    classes = len(pool.classes) or 3  # or the moments of a number
    batch = spec.scan.width * (4 * net.row + 2 * net.widest)
    return pool.tests * (classes * (4 + 4 + 3 * 8) + 200) + batch


def footprint_of(objective: Objective, net: NetworkShape, rows: int, k: int) -> Footprint:
    """Return what a joint choice takes; a thread has a tile of bf16 columns in float32 besides."""
    footprint = objective.footprint(net.shapes(), rows, k)
    narrow = [name for name in objective.needs if name in net.narrow]
    wide = width(net.shapes(), *narrow)
    return replace(footprint, transient=footprint.transient + TILE_ROWS * 4 * wide)


def selecting(made: Footprint, rows: int, parts: int, *, threads: int, copied: int = 0) -> int:
    """Return the bytes of one shard, its mapped columns apart.

    Args:
        made: the footprint of its objective.
        rows: the rows that it holds.
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
    exact = objective.exact()
    if objective.approximation() is None or exact is None:
        return 0
    sample = min(rows, SAMPLE_ROWS)
    footprint = footprint_of(exact, net, sample, k)
    size = net.stored(exact.needs)
    choice = selecting(footprint, sample, 1, threads=1, copied=size)
    return sample * size + choice + footprint.driver


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
    scan = Scan(NO_POOL, NO_POOL, spec.strategy, spec.learner, spec.scan)
    written = [name for name in scan.kept if name not in net.borrowed]
    return rows * (16 + net.stored(written)) if net.signals else 0


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
    kept = min(rounds, 1 if spec.keep == "picks" else 2) * columns
    return kept + min(rounds + 1, 3) * committee, min(rounds + 1, 2) * committee


@dataclass(frozen=True)
class EmbeddingShape:
    """Bytes of a backbone, and of what it makes of one row.

    Attributes:
        width: columns of the embedding, D.
        weights: bytes of the backbone.
        widest: bytes of the two largest outputs of its layers for one row.
        row: bytes of one decoded row.
        rows: items of pool and test.
        missing: those that are not embedded yet.
    """

    width: int
    weights: int
    widest: int
    row: int
    rows: int
    missing: int

    @property
    def disk(self) -> int:
        """Bytes of all embeddings, with the id, key and content hash of their rows."""
        return self.rows * (4 * self.width + ITEM)


def embedding_shape(
    spec: ProjectSpec, items: Task, pool: PoolShape, embedded: Callable[[str], int]
) -> EmbeddingShape | None:
    """Return the sizes of a project's embeddings by one pass of one row; None without a backbone.

    Args:
        spec: the spec of its project.
        items: how the pool's rows are decoded.
        pool: its items.
        embedded: hash of the embeddings to the items that are embedded already.
    """
    if spec.backbone is None:
        return None
    rows = pool.rows + pool.tests
    backbone = spec.backbone.network(items.input_shape)
    tensors = [*backbone.parameters(), *backbone.buffers()]
    x = torch.zeros((1, *items.input_shape))
    outputs = output_bytes(backbone, x)
    return EmbeddingShape(
        width=backbone(x).shape[1],
        weights=sum(t.numel() * t.element_size() for t in tensors),
        widest=sum(sorted(outputs)[-2:]),
        row=4 * prod(items.input_shape),
        rows=rows,
        missing=max(0, rows - embedded(embedding_hash(spec, items))),
    )


def embedding_bytes(shape: EmbeddingShape, options: ScanOptions, part_rows: int) -> int:
    """Return the private bytes of embedding one part; 0 where nothing is missing.

    The weights are read beside the network that takes them. A batch holds its decoded rows three
    times (as decoded, in three channels, channels last) and two activations; a part's embeddings
    stay until they are written.
    """
    if not shape.missing:
        return 0
    batch = options.width * (3 * 3 * shape.row + 2 * shape.widest)
    return 2 * shape.weights + batch + part_rows * 4 * shape.width
