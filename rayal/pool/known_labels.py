"""Known labels: kept in a file of their own, so that no reader of items meets them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayal.errors import PoolError
from rayal.pool.gather import Index
from rayal.pool.readers.tables import open_csv, open_parquet
from rayal.pool.source import Kind, StrPath, label_texts, written_labels
from rayal.pool.storage import read_mapped, write_part
from rayal.types import digest

_COLUMNS = ["id", "label"]


@dataclass(frozen=True)
class KnownLabels:
    """Labels read from a file: ids, their labels as text, and what these are."""

    ids: pa.Array
    labels: pa.Array
    kind: Kind | None


def read_known(path: StrPath) -> KnownLabels:
    """Return the labels of a CSV or Parquet file with columns ``id`` and ``label``.

    Raises:
        PoolError: the file is missing or of another kind, or gives an item two labels.
    """
    path = Path(path)
    if not path.is_file() or path.suffix not in (".csv", ".parquet"):
        raise PoolError(
            f"labels {path} must be an existing file *.csv or *.parquet with columns id and label"
        )
    table, texts = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    labels, kind = texts(table.column("label").combine_chunks())
    values = pa.array(labels, pa.large_string())
    ids = table.column("id").cast(pa.large_string()).combine_chunks()
    pairs = pa.table({"id": ids, "label": values}).drop_null().group_by(_COLUMNS).aggregate([])
    ids = pairs.column("id").combine_chunks()
    counts = pc.value_counts(ids)
    twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        raise PoolError(f"labels {path}: item {twice[0].as_py()!r} has two labels; give one")
    return KnownLabels(ids, pairs.column("label").combine_chunks(), kind)


def labeled(index: Index, known: KnownLabels) -> Index:
    """Return the rows with the known labels.

    Raises:
        PoolError: no row has a known label.
    """
    labels = known.labels.take(pc.index_in(index.ids, known.ids))
    if labels.null_count == len(labels):
        raise PoolError(
            f"none of the {len(known.ids)} labeled ids is among the {len(index)} items; labels "
            f"name {known.ids[:3].to_pylist()}, items are {index.ids[:3].to_pylist()}"
        )
    return replace(index, labels=labels)


def label_info(
    labels: pa.Array, kinds: Iterable[Kind], before: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the facts that a snapshot records of its labels: their kind, and class names.

    Args:
        labels: the labels of the added rows.
        kinds: kinds that their sources declare.
        before: the information of the snapshot before.

    Raises:
        PoolError: classes and numbers are mixed.
    """
    all_kinds = {*kinds, *({before["label_kind"]} if "label_kind" in before else ())}
    if {"class", "number"} <= all_kinds:
        raise PoolError(
            "labels are class names in part and numbers in part; the labels of a pool are "
            "either text and whole numbers (classes), or numbers"
        )
    if not all_kinds:
        return {}
    if "number" in all_kinds:
        return {"label_kind": "number"}
    names = {*before.get("classes", ()), *pc.unique(labels.drop_null()).to_pylist()}
    return {"label_kind": "class", "classes": sorted(names, key=_class_order)}


def write_known(index: Index, folder: Path, before: Path | None) -> Path | None:
    """Write the labels of rows, with those of the file before, and return their file.

    How sure annotators were of them stands beside them where anybody said so. A label that is
    there keeps the confidence it came with.

    Returns:
        The file before if it holds all of them; None if there are no labels.

    Raises:
        PoolError: an item has another label already.
    """
    rows = index.take(np.asarray(index.labels.is_valid()))
    table = pa.table({"id": rows.ids, "key": rows.keys, "label": rows.labels})
    table = table.cast(_SCHEMA)
    if not np.isnan(rows.confidences).all():
        sure = pa.array(rows.confidences, from_pandas=True)  # NaN is null
        table = table.append_column("confidence", sure)
    if before is not None:
        old = read_mapped(before).replace_schema_metadata(None)
        fresh = _fresh(table, old)
        if not len(fresh):
            return before
        table = pa.concat_tables([old, fresh], promote_options="default").sort_by("key")
    if not len(table):
        return None
    named = [name for name in table.column_names if name != "key"]
    path = folder / f"labels-{digest([table.column(n).to_pylist() for n in named])}.arrow"
    if not path.exists():
        write_part(path, table, {"columns": json.dumps(table.column_names)})
    return path


_SCHEMA = pa.schema([("id", pa.string()), ("key", pa.uint64()), ("label", pa.string())])


def _fresh(table: pa.Table, old: pa.Table) -> pa.Table:
    at = pc.index_in(table.column("id"), old.column("id").combine_chunks())
    there = old.column("label").combine_chunks().take(at.combine_chunks())
    differs = pc.not_equal(table.column("label").combine_chunks(), there)
    changed = table.append_column("known", there).filter(differs).slice(0, 1).to_pylist()
    for row in changed:
        raise PoolError(
            f"item {row['id']!r} has the known label {row['known']!r}, the source says "
            f"{row['label']!r}; known labels never change"
        )
    return table.filter(at.is_null())


def _class_order(name: str) -> tuple[int, int, str]:
    number = name.removeprefix("-")
    return (0, int(name), name) if number.isascii() and number.isdigit() else (1, 0, name)


def _csv(path: Path) -> tuple[pa.Table, Any]:
    return pa.Table.from_batches(open_csv(path, _COLUMNS), _SCHEMA.remove(1)), written_labels


def _parquet(path: Path) -> tuple[pa.Table, Any]:
    file = open_parquet(path)
    missing = [n for n in _COLUMNS if n not in file.schema_arrow.names]
    if missing:
        raise PoolError(f"labels {path} has no column {missing}; it needs id and label")
    return file.read(_COLUMNS), label_texts
