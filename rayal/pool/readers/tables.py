"""Tables: Parquet, CSV, JSON lines, Arrow; numeric columns are features, or one has texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from rayal.errors import PoolError
from rayal.pool.readers.table_columns import Missing, TableColumns, is_numeric
from rayal.pool.readers.texts import PAYLOAD, text_rows
from rayal.pool.source import (
    Kind,
    Role,
    Rows,
    Source,
    StrPath,
    Texts,
    confidences_of,
    files_of,
    label_texts,
    written_labels,
)
from rayal.types import TILE_ROWS

Batches = Callable[["TableColumns"], Iterator[tuple[str, pa.RecordBatch]]]


def parquet_source(path: StrPath, columns: TableColumns, *, role: Role = "pool") -> Source:
    """Return the rows of a Parquet file, or of all ``*.parquet`` under a folder."""
    files = list(files_of(path, (".parquet",), "a Parquet source"))
    with_schema = [(n, f, open_parquet(f).schema_arrow) for n, f in files]
    columns = columns.fitted(with_schema[0][2], str(files[0][1]))
    for _, file, schema in with_schema[1:]:
        columns.fitted(schema, str(file))

    def batches(columns: TableColumns) -> Iterator[tuple[str, pa.RecordBatch]]:
        for name, file in files:
            for batch in open_parquet(file).iter_batches(TILE_ROWS, columns=columns.used()):
                yield name, batch

    return _source(batches, columns, role, sum(open_parquet(f).metadata.num_rows for _, f in files))


def csv_source(path: StrPath, columns: TableColumns, *, role: Role = "pool") -> Source:
    """Return the rows of a CSV file with a header, or of all ``*.csv`` under a folder."""
    files = list(files_of(path, (".csv",), "a CSV source"))
    for _, file in files:
        fitted = columns.fitted(_csv_schema(file, columns), str(file), typed=False)
        columns = replace(columns, features=columns.features or fitted.features)

    def batches(columns: TableColumns) -> Iterator[tuple[str, pa.RecordBatch]]:
        for name, file in files:
            for batch in open_csv(file, columns.used(), columns.numbers(), text=columns.text):
                yield name, batch

    return _source(batches, columns, role, None, written_labels)


def jsonl_source(path: StrPath, columns: TableColumns, *, role: Role = "pool") -> Source:
    """Return the rows of a file with one JSON object a line, or of all ``*.jsonl`` in a folder."""
    files = list(files_of(path, (".jsonl", ".ndjson"), "a JSON lines source"))
    for _, file in files:
        first = list(islice(_objects(file), TILE_ROWS))
        fitted = columns.fitted(_inferred(first, file), str(file))
        columns = replace(columns, features=columns.features or fitted.features)

    def batches(columns: TableColumns) -> Iterator[tuple[str, pa.RecordBatch]]:
        for name, file in files:
            rows = _objects(file)
            while chunk := list(islice(rows, TILE_ROWS)):
                yield name, _object_batch(chunk, columns, file)

    return _source(batches, columns, role, None)


def table_source(
    tables: Iterable[pa.Table | pa.RecordBatch], columns: TableColumns, *, role: Role = "pool"
) -> Source:
    """Return the rows of Arrow tables, read once; ids without a column are ``row:0``, ….

    Raises:
        PoolError: there is no table, or a column does not fit.
    """
    rest = iter([tables] if isinstance(tables, pa.Table | pa.RecordBatch) else tables)
    first = next(rest, None)
    if first is None:
        raise PoolError("no table was given; give at least one pyarrow Table or RecordBatch")
    columns = columns.fitted(first.schema, "the first table")
    unknown = sorted(set(columns.categorical) - {name for name, _ in columns.categories})
    if unknown and not isinstance(tables, pa.Table | pa.RecordBatch):
        raise PoolError(
            f"tables are read once, so that the values of {unknown} are not known beforehand; give "
            "them: categories={column: [value, …]}"
        )
    several = [] if isinstance(tables, pa.Table | pa.RecordBatch) else rest

    def batches(columns: TableColumns) -> Iterator[tuple[str, pa.RecordBatch]]:
        for number, table in enumerate(chain([first], several)):
            columns.fitted(table.schema, f"table {number}")
            whole = pa.table(table) if isinstance(table, pa.RecordBatch) else table
            for batch in whole.select(columns.used()).to_batches(TILE_ROWS):
                yield "row", batch

    return _source(batches, columns, role, None)


def feature_rows(
    rows: Rows,
    features: npt.NDArray[np.float64],
    names: Sequence[str],
    missing: Missing,
    *,
    wrong: Mapping[int, str] | None = None,
) -> Rows:
    """Return rows with their features as payload.

    Args:
        rows: ids and labels.
        features: ``[N, D]``, in C order.
        names: the D columns.
        missing: treatment of a row with a NaN or inf: ``error`` or ``quarantine``.
        wrong: row to what is wrong with it, where that is known better.

    Raises:
        PoolError: a feature is NaN or inf, and ``missing`` is ``error``.
    """
    finite = np.isfinite(features)
    good = finite.all(axis=1)
    bad = {int(r): int(np.flatnonzero(~finite[r])[0]) for r in np.flatnonzero(~good)}
    said = {r: f"feature {names[c]!r} is {features[r, c]}" for r, c in bad.items()}
    said |= wrong or {}
    reasons = [(rows.ids[r], reason) for r, reason in sorted(said.items())]
    if reasons and missing == "error":
        raise PoolError(
            f"row {reasons[0][0]!r}: {reasons[0][1]}; fill it in, leave the column out of "
            "features, or set missing: quarantine"
        )
    kept = np.flatnonzero(good).tolist()
    payloads = [features[r].astype("<f8", copy=False).tobytes() for r in kept]
    return replace(rows.taken(kept), payloads=payloads, quarantined=reasons)


def open_csv(
    path: Path,
    columns: Sequence[str] | None = None,
    numbers: Sequence[str] = (),
    *,
    text: str | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a CSV file: ``numbers`` as float64, its other ``columns`` as text.

    Without ``columns``, all are read, with the types that the first block shows. The column
    ``text`` is read as bytes, since not all of them need to be UTF-8; it may have line breaks.
    """
    types = {name: pa.string() for name in columns or ()}
    types |= {name: pa.float64() for name in numbers}
    types |= {} if text is None else {text: pa.binary()}
    options = pyarrow.csv.ConvertOptions(column_types=types, include_columns=columns or [])
    parsed = pyarrow.csv.ParseOptions(newlines_in_values=text is not None)
    try:
        yield from pyarrow.csv.open_csv(path, convert_options=options, parse_options=parsed)
    except pa.ArrowInvalid as error:
        raise PoolError(
            f"{path}: {error}; give a CSV file with a header and numbers in the columns "
            f"{list(numbers)}, or list the numeric columns: features=[…]"
        ) from error


def _source(
    batches: Batches,
    columns: TableColumns,
    role: Role,
    total: int | None,
    texts: Callable[[pa.Array], tuple[Texts, Kind | None]] = label_texts,
) -> Source:
    columns = columns.learned(batch for _, batch in batches(columns))

    def read() -> Iterator[Rows]:
        current, start = "", 0
        for name, batch in batches(columns):
            if name != current:
                current, start = name, 0
            ids = _ids(batch, columns.id, f"{name}:", start)
            known, kind = None, None
            if columns.label is not None:
                known, kind = texts(batch.column(columns.label))
            sure = None
            if columns.confidence is not None:
                column = batch.column(columns.confidence)
                sure = confidences_of(column, ids, columns.confidence)
            rows = Rows(ids, [], known, kind, confidences=sure)
            start += batch.num_rows
            if columns.text is not None:
                yield text_rows(rows, batch.column(columns.text).to_pylist(), columns.missing)
                continue
            values, wrong = columns.values(batch)
            yield feature_rows(rows, values, columns.expanded, columns.missing, wrong=wrong)

    return Source(columns.payload if columns.text is None else PAYLOAD, read, role, total)


def _ids(batch: pa.RecordBatch, column: str | None, prefix: str, start: int) -> list[str]:
    if column is None:
        return [f"{prefix}{row}" for row in range(start, start + batch.num_rows)]
    values = batch.column(column)
    if pa.types.is_floating(values.type) or pa.types.is_nested(values.type):
        raise PoolError(f"column {column!r} is {values.type}; ids are text or whole numbers")
    if values.null_count:
        row = start + values.is_null().to_pylist().index(True)
        raise PoolError(f"row {prefix}{row} has no id in column {column!r}; every row needs one")
    return list(values.cast(pa.string()).to_pylist())


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file, or raise PoolError."""
    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise PoolError(f"{path} is not a Parquet file ({error})") from error


def _csv_schema(path: Path, columns: TableColumns) -> pa.Schema:
    first = next(open_csv(path, text=columns.text), None)
    if first is None:
        raise PoolError(f"{path} has no rows; give a CSV file with a header and rows")
    return first.schema


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise PoolError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise PoolError(f"{path}, line {number} is {row!r}; every line is one JSON object")
            yield row


def _inferred(rows: list[dict[str, Any]], path: Path) -> pa.Schema:
    if not rows:
        raise PoolError(f"{path} has no rows; give one JSON object a line")
    names = list(rows[0])
    return pa.schema([(n, _array([r.get(n) for r in rows], n, path).type) for n in names])


def _object_batch(rows: list[dict[str, Any]], columns: TableColumns, path: Path) -> pa.RecordBatch:
    names = columns.used()
    arrays = [_array([r.get(n) for r in rows], n, path) for n in names]
    for name, array in zip(names, arrays, strict=True):
        if name in (columns.features or ()) and not is_numeric(array.type):
            raise PoolError(
                f"{path}: column {name!r} is {array.type} in part; features are numbers"
            )
    return pa.RecordBatch.from_arrays(arrays, names)


def _array(values: list[Any], name: str, path: Path) -> pa.Array:
    try:
        return pa.array(values)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON may hold: bytes, row by row
        return _array([_bytes(value) for value in values], name, path)
    except pa.ArrowException as error:
        raise PoolError(f"{path}: the values of {name!r} are of several types: {error}") from error


def _bytes(value: Any) -> Any:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
