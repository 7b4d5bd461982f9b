"""The neighbour pass: the k nearest items of every item of the pool, part by part.

A part meets every other part block by block; its file is written under a unique name and counts
once the ledger has its row, as a scanned part does. Exact neighbours have the same bits wherever
they are computed. Approximate ones come from an HNSW graph over all rows (Malkov & Yashunin, IEEE
TPAMI 42, 2020), whose distances are computed again exactly.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from rayal.engine.columns import column_array, column_tensor
from rayal.engine.scan import ScannedPart, commit_parts
from rayal.engine.workspace import Workspace
from rayal.errors import NeedsError, SettingsError, UnknownNameError, nearest
from rayal.pool.reader import Part
from rayal.pool.storage import read_mapped, write_part
from rayal.selection.neighbors import ROWS, Block, check_k
from rayal.types import FORMAT_VERSION, Keys, digest, key_sum

Method = Literal["exact", "hnsw"]
_AT_ONCE = 128  # rows searched at once
_SEARCHED = 4  # an approximate search looks at this many times k rows


@dataclass(frozen=True)
class Neighbors:
    """The neighbours of one part's rows among the rows of all parts; a part job, may be repeated.

    Args:
        root: the storage root.
        files: part name to its column file, relative to the root, in the order of names.
        column: the embedding ``[N, D]``.
        k: neighbours of each row.
        name: hash of what is computed.
        index: file of the HNSW graph, relative to the root; None computes exactly.
    """

    root: Path
    files: tuple[tuple[str, str], ...]
    column: str
    k: int
    name: str
    index: str | None = None

    def columns_hash(self) -> str:
        """Return the hash under which the ledger knows the neighbours."""
        return self.name

    def part(self, part: Part, report: Callable[[int], None] | None = None) -> ScannedPart:
        """Write ``neighbors``, uint64 ``[N, k]``, and ``neighbor_distances``, float32."""
        found = self._exact(part, report) if self.index is None else self._near(part, report)
        keys, neighbors, distances = (np.concatenate(c) for c in zip(*found, strict=True))
        flat = pa.array(neighbors.reshape(-1))
        table = pa.table(
            {
                "key": pa.array(keys),
                "neighbors": pa.FixedSizeListArray.from_arrays(flat, self.k),
                "neighbor_distances": column_array(torch.from_numpy(distances)),
            }
        )
        folder = Path(dict(self.files)[part.part]).parent.as_posix()
        file = f"{folder}/{part.part}.{self.name}.{uuid.uuid4().hex[:8]}.arrow"
        metadata = {"version": FORMAT_VERSION, "part": part.part, "columns": self.name}
        write_part(self.root / file, table, metadata)
        return ScannedPart(part.part, file, len(keys), key_sum(keys), float("nan"), float("nan"))

    def _exact(
        self, part: Part, report: Callable[[int], None] | None
    ) -> Iterator[tuple[Keys, Any, Any]]:
        origin = next(self.tiles(self.files[0][1]))[1][:1].clone()
        for keys, rows in self._blocks(part):
            block = Block(keys, rows, self.k)
            for _, file in self.files:
                for others, values in self.tiles(file):
                    block.meet(others, values, origin)
            if report is not None:
                report(len(keys))
            yield keys, block.found, block.distances

    def _near(
        self, part: Part, report: Callable[[int], None] | None
    ) -> Iterator[tuple[Keys, Any, Any]]:
        """Search the graph, then compute the found rows' distances exactly."""
        graph = _faiss().read_index(str(self.root / str(self.index)))
        every = np.concatenate([keys for _, f in self.files for keys, _ in self.tiles(f)])
        wanted = min(len(every), _SEARCHED * self.k + 1)
        graph.hnsw.efSearch = max(graph.hnsw.efSearch, wanted)
        for keys, rows in self._blocks(part):
            block = Block(keys, rows, self.k)
            for start in range(0, len(keys), _AT_ONCE):
                _, at = graph.search(rows[start : start + _AT_ONCE].numpy(), wanted)
                stored = graph.reconstruct_batch(np.maximum(at, 0).ravel())
                here = keys[start : start + _AT_ONCE, None]
                pairs = np.nonzero((at >= 0) & (every[at] != here))
                others = torch.from_numpy(stored).reshape(*at.shape, -1)
                block.compare(pairs[0] + start, every[at][pairs], others[pairs])
            if np.isinf(block.squared).any():
                raise SettingsError(
                    f"the HNSW graph gave fewer than k = {self.k} neighbours of an item of part "
                    f"{part.part}; use method exact"
                )
            if report is not None:
                report(len(keys))
            yield keys, block.found, block.distances

    def _blocks(self, part: Part) -> Iterator[tuple[Keys, Tensor]]:
        for keys, rows in self.tiles(dict(self.files)[part.part]):
            for start in range(0, len(keys), ROWS):
                yield keys[start : start + ROWS], rows[start : start + ROWS]

    def tiles(self, file: str) -> Iterator[tuple[Keys, Tensor]]:
        """Yield keys and rows of a column file, tile by tile, as views of the mapped file."""
        for batch in read_mapped(self.root / file).to_batches():
            keys = np.asarray(batch.column("key").to_numpy(zero_copy_only=True))
            yield keys, column_tensor(batch.column(self.column)).float()


@dataclass(frozen=True)
class NeighborColumns:
    """Files with the neighbours of a pool's items.

    Attributes:
        paths: column parts with key, ``neighbors`` and ``neighbor_distances``, by part name.
        record: what belongs into a stage's output: the columns' hash, rows, k, method, and what
            made them approximate (None when exact).
    """

    paths: tuple[Path, ...]
    record: dict[str, Any]


def neighbors(
    workspace: Workspace,
    round: int,
    source: str,
    column: str,
    *,
    k: int,
    method: Method = "exact",
) -> NeighborColumns:
    """Compute and commit the k nearest other items of every item of the pool, part by part.

    What is committed is not computed again, so the call may be repeated after a failure. The
    exact pass holds blocks only. ``hnsw`` holds the embeddings with their graph in the memory of
    this process and of every worker; its measured loss is the share of the exact neighbours that it
    found (recall), over a few hundred items.

    Args:
        workspace: whose ledger, pool and executor are used.
        round: a round that was begun; the columns are its.
        source: hash of the columns that hold ``column``, as the scan stage recorded it.
        column: the embedding ``[N, D]``.
        k: neighbours of each item.
        method: exact, or hnsw (needs ``pip install 'rayal[ann]'``).

    Raises:
        SettingsError: the method does not exist.
        NeedsError: hnsw is asked for and faiss is not installed.
        BudgetError: the pool has fewer than k + 1 items.
        UnknownNameError: a part has no committed columns, or they have no such column.
    """
    if method not in get_args(Method):
        raise SettingsError(f"method {method!r}; {nearest(method, get_args(Method))}")
    parts, files = workspace.pool.parts_of("pool"), _files(workspace, source, column)
    rows = sum(part.rows for part in parts)
    check_k(k, rows)
    asked = {"neighbors": source, "column": column, "k": k, "method": method, "files": files}
    name = digest(asked)
    job = Neighbors(workspace.root, files, column, k, name)
    done = workspace.ledger.columns(name)
    missing = [part for part in parts if part.part not in done]
    if method == "hnsw" and missing:
        job = replace(job, index=build_graph(job))
    for _ in commit_parts(workspace, round, "neighbors", job, missing=missing, parts=missing):
        pass
    if job.index is not None:
        (job.root / job.index).unlink(missing_ok=True)
    committed = workspace.ledger.columns(name)
    paths = tuple(job.root / committed[part.part].file for part in parts)
    approximation = None
    if method == "hnsw":
        approximation = {"method": method, "loss": _recall(replace(job, index=None), parts, paths)}
    record = {"columns": name, "rows": rows, "k": k, "approximation": approximation}
    return NeighborColumns(paths, record)


def _files(workspace: Workspace, source: str, column: str) -> tuple[tuple[str, str], ...]:
    committed = workspace.ledger.columns(source)
    files = []
    for part in sorted(workspace.pool.parts_of("pool"), key=lambda p: p.part):
        if part.part not in committed:
            raise UnknownNameError(
                f"columns {source!r} of part {part.part!r} are not committed; scan the pool first"
            )
        file = committed[part.part].file
        there = read_mapped(workspace.root / file).column_names
        if column not in there:
            raise UnknownNameError(
                f"columns {source!r} have no {column!r}; {nearest(column, there)}"
            )
        files.append((part.part, file))
    return tuple(files)


def build_graph(job: Neighbors, *, links: int = 32, breadth: int = 80) -> str:
    """Write the HNSW graph of all rows and return its file, relative to the root.

    One thread inserts the rows in key order of each part, so the graph is the same every time.

    Args:
        job: what the graph is for.
        links: links of a row on each level.
        breadth: rows held open while one is inserted.
    """
    faiss = _faiss()
    graph = None
    for _, file in job.files:
        for _, rows in job.tiles(file):
            if graph is None:
                graph = faiss.IndexHNSWFlat(rows.shape[1], links)
                graph.hnsw.efConstruction = breadth
            graph.add(rows.numpy())
    path = f"columns/{job.name}.{uuid.uuid4().hex[:8]}.hnsw"
    faiss.write_index(graph, str(job.root / path))
    return path


def _recall(
    job: Neighbors, parts: Sequence[Part], paths: Sequence[Path], rows: int = 64
) -> dict[str, Any]:
    """Return the share of exact neighbours that were found, over the first rows of some parts."""
    hits = seen = 0
    origin = next(job.tiles(job.files[0][1]))[1][:1].clone()
    for part, path in list(zip(parts, paths, strict=True))[:8]:
        keys, values = next(job.tiles(dict(job.files)[part.part]))
        block = Block(keys[:rows], values[:rows], job.k)
        for _, file in job.files:
            for others, there in job.tiles(file):
                block.meet(others, there, origin)
        batch = read_mapped(path).to_batches()[0]
        near = batch.column("neighbors").flatten().to_numpy().reshape(-1, job.k)[:rows]
        hits += sum(len(np.intersect1d(*pair)) for pair in zip(near, block.found, strict=True))
        seen += near.size
    return {"measure": "recall", "value": hits / seen, "rows": seen // job.k}


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise NeedsError(
            "method hnsw needs faiss, which is not installed; pip install 'rayal[ann]', or use "
            "method exact"
        ) from None
    faiss.omp_set_num_threads(1)
    return faiss
