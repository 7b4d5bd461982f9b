"""The embeddings of a frozen backbone: computed once per part, and from then on the pool's rows.

A part's embeddings are committed in the ledger like the columns of a scan, under the hash of what
they depend on. So all strategies, seeds and rounds of a storage root share them, a pool that has
grown embeds its new parts alone, and a run that was killed goes on.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from rayal.engine.columns import column_array
from rayal.engine.scan import ScannedPart, commit_parts, padded_rows
from rayal.engine.spec import ProjectSpec, ScanOptions
from rayal.engine.workspace import Inputs, Workspace
from rayal.errors import ScoreError
from rayal.failpoints import failpoint
from rayal.ledger.records import Snapshot
from rayal.pool.reader import Part, Pool
from rayal.pool.storage import read_mapped, write_part
from rayal.tasks import FeaturesTask, Task
from rayal.types import FORMAT_VERSION, digest, key_sum

_COPIED = ("id", "key", "content_hash")  # columns of the pool's parts that embedded parts have too


@dataclass(frozen=True, eq=False)
class Embed:
    """The work of embedding one part.

    Args:
        pool: the pool's snapshot.
        task: how items are decoded.
        backbone: the frozen network, with its weights.
        hash: of everything that the embeddings' bits depend on.
        options: how the network is run.
    """

    pool: Pool
    task: Task
    backbone: nn.Module
    hash: str
    options: ScanOptions

    def columns_hash(self) -> str:
        """Return the hash under which the ledger knows the embeddings."""
        return self.hash

    def part(self, part: Part, report: Callable[[int], None] | None = None) -> ScannedPart:
        """Embed one part and write it; retry-safe, since the name is unique."""
        table = self.pool.read(part)
        embedding = self._embeddings(table, report)
        columns = {name: table.column(name) for name in _COPIED}
        unique = uuid.uuid4().hex[:8]
        file = f"columns/{self.pool.name}/{part.part}.{self.hash}.{unique}.arrow"
        failpoint("embed.write")
        metadata = {"part": part.part, "columns": self.hash}
        whole = pa.table({**columns, "embedding": column_array(embedding)})
        write_part(Path(self.pool.root) / file, whole, metadata)
        keys, none = table.column("key").to_numpy(), float("nan")
        return ScannedPart(part.part, file, len(keys), key_sum(keys), none, none)

    def _embeddings(self, table: pa.Table, report: Callable[[int], None] | None) -> Tensor:
        """Return float32 ``[N, D]``, from passes of one padded number of rows."""
        device = torch.device(self.options.device)
        backbone, bf16 = self.backbone.to(device), self.options.precision == "bf16"
        embeddings: Tensor | None = None
        for start in range(0, table.num_rows, self.options.batch):
            raw = self.task.decode(table.slice(start, self.options.batch))
            x = padded_rows(raw, self.options.width).to(device)
            with (
                torch.inference_mode(),
                torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16),
            ):
                rows = backbone(x)[: len(raw)].float().cpu()
            if embeddings is None:
                embeddings = torch.empty((table.num_rows, rows.shape[1]))
            embeddings[start : start + len(raw)] = rows
            _check_finite(rows, table, start)
            if report is not None:
                report(len(raw))
        assert embeddings is not None  # a part has rows
        return embeddings


def embedding_hash(spec: ProjectSpec, task: Task) -> str:
    """Return the hash of everything that embeddings depend on: classes are not among it."""
    assert spec.backbone is not None
    decoded = {k: v for k, v in task.to_json().items() if k not in ("labels", "flip")}
    return digest(
        {
            "version": FORMAT_VERSION,
            "backbone": spec.backbone.hash,
            "rows": decoded,
            "precision": spec.scan.precision,
            "device": torch.device(spec.scan.device).type,
            "threads": spec.threads_per_model,
        }
    )


def head_task(spec: ProjectSpec, task: Task) -> Task:
    """Return the task of the networks that are trained: that of the embeddings, if there are any.

    Raises:
        SettingsError: the backbone's weights or the rows do not fit it.
    """
    if spec.backbone is None:
        return task
    tokens = None if task.vocabulary is None else task.vocabulary.size
    width = spec.backbone.width(task.input_shape, tokens=tokens)
    return FeaturesTask(task.labels, width, embedding_hash(spec, task))


def embedded(workspace: Workspace, round: int) -> Workspace:
    """Embed what is not embedded yet of the snapshot's parts, of both roles.

    Returns:
        The workspace whose networks see the embeddings.
    """
    backbone, ledger, pool = workspace.spec.backbone, workspace.ledger, workspace.pool
    assert backbone is not None
    started = time.perf_counter()
    hash, parts = embedding_hash(workspace.spec, workspace.task), pool.parts
    done = ledger.columns(hash)
    missing = [part for part in parts if part.part not in done]
    if missing:
        network = backbone.network(workspace.task.input_shape)
        job = Embed(pool, workspace.task, network, hash, workspace.spec.scan)
        for _ in commit_parts(workspace, round, "embed", job, missing=missing, parts=parts):
            pass
        done = ledger.columns(hash)
    if workspace.stage(round, "embed") is None:
        counts = {n: sum(p.rows for p in of) for n, of in (("rows", parts), ("embedded", missing))}
        output = {"backbone": backbone.hash, "columns": hash, **counts}
        workspace.finish(round, "embed", output, started=started)
    files = {name: row.file for name, row in done.items()}
    return replace(workspace, inputs=_inputs(pool, workspace.task, hash, files))


def _inputs(pool: Pool, task: Task, hash: str, files: dict[str, str]) -> Inputs:
    """Return the pool of embeddings, whose parts have the names, rows and keys of the pool's."""
    root = Path(pool.root)
    parts = tuple(
        replace(part, file=files[part.part], bytes=(root / files[part.part]).stat().st_size)
        for part in pool.parts
    )
    first = read_mapped(root / parts[0].file)
    width = first.schema.field("embedding").type.list_size
    info = {k: v for k, v in pool.info.items() if k != "labels"}  # what is known stays hidden
    info["payload"] = {"kind": FeaturesTask.kind, "width": width}
    record = Snapshot(pool.name, pool.snapshot, parts, info, 0.0)
    return Inputs(Pool(root, record), FeaturesTask(task.labels, width, hash))


def _check_finite(rows: Tensor, table: pa.Table, start: int) -> None:
    bad = ~np.isfinite(rows.numpy()).all(axis=1)
    if bad.any():
        item = table.column("id")[start + int(bad.argmax())].as_py()
        raise ScoreError(
            f"the backbone's embedding of item {item!r} is not finite; look at the item, and at "
            "the weights; with precision bf16 try fp32"
        )
