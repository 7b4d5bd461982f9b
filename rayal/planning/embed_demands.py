"""What a frozen backbone's embeddings take: memory of the stage that computes them, and disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch

from rayal.engine.embed import embedding_hash
from rayal.engine.scan_options import ScanOptions
from rayal.engine.spec import ProjectSpec
from rayal.planning.sizes import ITEM, PoolShape, output_bytes
from rayal.tasks import Task


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
        spec: what its rounds do.
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
