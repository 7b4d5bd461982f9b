"""Remove the content of forgotten items from the files of a pool.

A part is written anew under a name of its own, with neutral content in the place of what is to be
gone; the ledger then names the new file, and the old one is removed. Killed anywhere, it is done
again from the start: a new file that the ledger does not name, and an old one that it does not name
any more, are both removed then. Rows, ids and keys stay, so that everything that was computed part
by part still fits; a forgotten item's row is read by scans, and never chosen.

Rows that a strategy made of an item, which are as good as its content, become zeros. What else was
computed of it before (columns of scans, models, their tokenisers) is not touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayal.failpoints import failpoint
from rayal.ledger import Ledger
from rayal.ledger.records import PoolPart
from rayal.pixels import blackened
from rayal.pool.ingest import locked
from rayal.pool.lookup import verify
from rayal.pool.storage import (
    ATTACHED,
    read_mapped,
    replace_part,
    successors,
    sync_folder,
    write_part,
)
from rayal.types import Keys, id_keys

TEXT = b"-"  # in the place of a text


def purge(ledger: Ledger, name: str, *, seconds: float = 30.0) -> int:
    """Remove the content of forgotten items from a pool's files; return the number of items.

    Items are those which every project that works on the pool has forgotten. It may be repeated.

    Args:
        ledger: the storage root's ledger.
        name: the pool's name.
        seconds: longest wait for another call that writes to the pool.

    Raises:
        PoolError: another call writes to the pool for too long.
        StorageError: a part is missing or damaged.
    """
    root, count = Path(ledger.root), 0
    with locked(root / "pools" / name, seconds):
        record = ledger.snapshot(name)
        items = ledger.forgotten_items(name)
        keys = id_keys(items)
        for part in record.parts:
            count += _purge_part(ledger, root, part, pool=name, keys=keys)
        for columns in ledger.columns_on(name, ATTACHED):
            _blank(root / columns.file, columns.columns, items)
    return count


def _purge_part(ledger: Ledger, root: Path, part: PoolPart, *, pool: str, keys: Keys) -> int:
    path = root / part.file
    _drop_others(path, part)
    table = read_mapped(path)
    stored = table.column("key").to_numpy()
    verify(part, path, stored)
    payload = ledger.snapshot(pool).info["payload"]
    rows = [row for row in np.flatnonzero(np.isin(stored, keys)).tolist() if _is_there(table, row)]
    if not rows:
        return 0
    purged = pa.concat_tables(_pieces(table, rows, payload))
    file = f"pools/{pool}/{part.part}.purged-{uuid4().hex[:12]}.arrow"
    metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
    write_part(root / file, purged, metadata)
    failpoint("purge.write")
    new = replace(part, file=file, bytes=(root / file).stat().st_size)
    ledger.replace_part(pool, new)
    failpoint("purge.commit")
    _drop_others(root / file, new)
    return len(rows)


def _blank(path: Path, columns: str, items: Sequence[str]) -> None:
    """Put zeros in the place of the rows that a strategy made of some items."""
    table = read_mapped(path).combine_chunks()
    ids = table.column("id").to_numpy()
    rows = np.flatnonzero(np.isin(ids, np.array(items, dtype=object)))
    names = [name for name in table.column_names if name != "id"]
    blanked = {name: _zeroed(table.column(name).chunk(0), rows) for name in names}
    if any(blanked[name] != table.column(name).chunk(0) for name in names):
        replace_part(path, pa.table({"id": table.column("id"), **blanked}), {"columns": columns})


def _zeroed(array: pa.Array, rows: npt.NDArray[np.int64]) -> pa.Array:
    """Return a column of numbers or (nested) fixed-size lists of them with zeros in some rows."""
    sizes, count = [], len(array)
    while pa.types.is_fixed_size_list(array.type):
        sizes.append(array.type.list_size)
        array = array.flatten()
    values = array.to_numpy(zero_copy_only=False).reshape(count, -1).copy()
    values[rows] = 0
    blanked = pa.array(values.reshape(-1), array.type)
    for size in reversed(sizes):
        blanked = pa.FixedSizeListArray.from_arrays(blanked, size)
    return blanked


def _drop_others(path: Path, part: PoolPart) -> None:
    """Remove the files of a part that the ledger does not name: left by a killed run."""
    others = {path.with_name(f"{part.part}.arrow"), *successors(path)} - {path}
    for other in others:
        other.unlink(missing_ok=True)
    sync_folder(path.parent)


def _is_there(table: pa.Table, row: int) -> bool:
    return bool(table.column("content_hash")[row].as_py().strip("0"))


def _pieces(table: pa.Table, rows: Sequence[int], payload: Mapping[str, Any]) -> Iterator[pa.Table]:
    """Yield the table in pieces, with neutral content in some rows."""
    bare = table.replace_schema_metadata(None)
    start = 0
    for row in rows:
        yield bare.slice(start, row - start)
        yield _neutral(bare.slice(row, 1), payload)
        start = row + 1
    yield bare.slice(start)


def _neutral(row: pa.Table, payload: Mapping[str, Any]) -> pa.Table:
    (values,) = row.to_pylist()
    values["content_hash"] = "0" * len(values["content_hash"])
    if payload["kind"] == "table":
        values["features"] = [0.0] * len(values["features"])
    elif payload["kind"] == "text":
        values["data"] = TEXT
    elif payload["encoding"] == "file":
        values["data"] = blackened(values["data"])
    else:
        values["data"] = bytes(len(values["data"]))
    return pa.Table.from_pylist([values], schema=row.schema)
