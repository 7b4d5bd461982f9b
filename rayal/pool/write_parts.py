"""The second pass of ingest: rows in id-key order, cut into parts that are named by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayal.failpoints import failpoint
from rayal.ledger.records import PoolPart
from rayal.pool.gather import Index, Integers, Spill
from rayal.pool.source import ROLES
from rayal.pool.storage import write_part
from rayal.types import PART_BYTES, TILE_ROWS, key_sum, part_rows


def place(
    index: Index,
    spill: Spill,
    *,
    root: Path,
    pool: str,
    payload: Mapping[str, Any],
    held: Collection[str] | None = None,
) -> list[PoolPart]:
    """Write rows as parts; one part at a time is in memory.

    Args:
        index: rows in id-key order.
        spill: their payloads.
        root: the storage root.
        pool: name of the pool.
        payload: description of a row's bytes.
        held: parts that the ledger holds; a file of another name was left by a killed run and
            is written again. None: there are no such files.
    """
    parts = []
    for number, role in enumerate(ROLES):
        rows = index.take(index.roles == number)
        metadata = {"pool": pool, "role": role, "payload": json.dumps(payload, sort_keys=True)}
        for start, stop in cuts(rows.sizes):
            piece = rows.take(np.arange(start, stop))
            part = f"{role}-{_name(piece, metadata)}"
            file = f"pools/{pool}/{part}.arrow"
            if held is not None and part not in held:
                (root / file).unlink(missing_ok=True)
            write_part(root / file, _table(piece, spill, payload), metadata)
            size = (root / file).stat().st_size
            parts.append(PoolPart(part, file, role, len(piece), key_sum(piece.keys), size))
            failpoint("ingest.part")
    return parts


def cuts(
    sizes: Integers, *, tile: int = TILE_ROWS, rows: int | None = None, size: int = PART_BYTES
) -> Iterator[tuple[int, int]]:
    """Yield start and stop of each part.

    A part has at most ``rows`` rows, by default as suits a pool of so many, and ``size`` bytes. It
    ends with a whole tile, unless its first tile alone is larger; it has one row at least.
    """
    ends = np.cumsum(sizes)
    start, count = 0, len(sizes)
    rows = part_rows(count) if rows is None else rows
    while start < count:
        fits = int(np.searchsorted(ends, ends[start] - sizes[start] + size, side="right"))
        stop = min(max(fits, start + 1), start + rows)
        if stop < count and stop - start > tile:
            stop -= (stop - start) % tile
        yield start, stop
        start = stop


def _name(rows: Index, metadata: Mapping[str, str]) -> str:
    name = hashlib.blake2b(json.dumps(metadata, sort_keys=True).encode(), digest_size=8)
    name.update(json.dumps(rows.ids.to_pylist()).encode())
    name.update(rows.digests.tobytes())
    return name.hexdigest()


def _table(rows: Index, spill: Spill, payload: Mapping[str, Any]) -> pa.Table:
    data = pa.py_buffer(spill.read(rows.offsets, rows.sizes))
    hashes = [rows.content_hash(row) for row in range(len(rows))]
    columns = {
        "id": rows.ids.cast(pa.string()),
        "key": pa.array(rows.keys),
        "content_hash": pa.array(hashes, pa.string()),
    }
    if payload["kind"] == "table":
        values = pa.array(np.frombuffer(data, "<f8"))
        columns["features"] = pa.FixedSizeListArray.from_arrays(values, len(payload["features"]))
    else:
        ends = np.concatenate([[0], np.cumsum(rows.sizes)]).astype(np.int32)
        buffers = [None, pa.py_buffer(ends), data]
        columns["data"] = pa.Array.from_buffers(pa.binary(), len(rows), buffers)
    return pa.table(columns)
