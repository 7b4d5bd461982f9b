"""The holders of a scan's columns: tiles over memory-mapped parts."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from rayal.errors import StorageError
from rayal.pool.reader import Pool
from rayal.pool.storage import read_mapped
from rayal.selection.devices import narrowed, to_host
from rayal.selection.sampling import candidates_of
from rayal.selection.tiles import Tile, cut_tiles
from rayal.types import Keys, key_sum

BORROWED = "borrowed"  # metadata of a column part: column to the file, beside it, that holds it

BF16 = "bf16"  # metadata of a column part: its columns whose uint16 are the bits of bf16


def borrowed_from(file: str, holder: str, columns: Sequence[str]) -> str:
    """Return the metadata by which ``file`` says that ``holder`` has some of its columns.

    Args:
        file: the column part, relative to the storage root.
        holder: a file of the same rows in the same order, relative to the storage root.
        columns: the columns.
    """
    path = os.path.relpath(holder, os.path.dirname(file))
    return json.dumps(dict.fromkeys(columns, path))


def open_columns(path: Path) -> pa.Table:
    """Return a column part, memory-mapped, with the columns that it borrows from another file."""
    table = read_mapped(path)
    borrowed = json.loads(table.schema.metadata.get(BORROWED.encode(), b"{}"))
    for name, file in borrowed.items():
        column = read_mapped(path.parent / file).column(name)
        if len(column) != table.num_rows:
            raise StorageError(f"{path} has {table.num_rows} rows, {file} has {len(column)}")
        table = table.append_column(name, column)
    narrow = _bf16_of(table.schema)
    rounded = [field.name for field in table.schema if _is_bf16(field.type)]
    if sorted(rounded) != sorted(narrow):
        raise StorageError(
            f"{path} has 16-bit columns {rounded}, its metadata says that {narrow} are bf16; scan "
            "the pool again, or restore the file from a backup"
        )
    return table


def open_tiles(
    path: Path, needs: Sequence[str], excluded: Keys, *, share: float = 1.0, seed: int = 0
) -> list[Tile]:
    """Return the tiles of one committed column part; rows with an excluded key are not eligible.

    Args:
        path: the column part, record batches in key order.
        needs: columns to open; a part without one of them is a StorageError.
        excluded: uint64, keys of items that are labeled, offered or leased.
        share: below 1, only the candidates among the eligible rows are held, in fewer tiles.
        seed: the query seed, which draws the candidates.
    """
    table = open_columns(path)
    missing = [n for n in needs if n not in table.column_names]
    if missing:
        raise StorageError(f"{path} has no column {missing}; it has {table.column_names}")
    if share < 1.0:
        return _candidate_tiles(table, needs, excluded, share, seed=seed)
    tiles: list[Tile] = []
    for batch in table.to_batches():
        keys = np.asarray(batch.column("key").to_numpy(zero_copy_only=True))
        columns = {n: column_tensor(batch.column(n)) for n in needs}
        tiles += cut_tiles(keys, columns, ~np.isin(keys, excluded))
    for tile in tiles:
        tile.group = tiles[0].name
    return tiles


def _candidate_tiles(
    table: pa.Table, needs: Sequence[str], excluded: Keys, share: float, *, seed: int
) -> list[Tile]:
    """Return tiles of a part's candidates: copies of their rows alone."""
    keys: list[Keys] = []
    columns: dict[str, list[Tensor]] = {n: [] for n in needs}
    for batch in table.to_batches():
        here = np.asarray(batch.column("key").to_numpy(zero_copy_only=True))
        rows = np.flatnonzero(candidates_of(here, share, seed) & ~np.isin(here, excluded))
        keys.append(here[rows])
        for name in needs:
            columns[name].append(column_tensor(batch.column(name))[torch.from_numpy(rows)])
    if not keys:
        return []
    return cut_tiles(np.concatenate(keys), {n: torch.cat(c) for n, c in columns.items()})


def rows_by_key(
    paths: Sequence[Path], names: Sequence[str], keys: Keys
) -> dict[str, npt.NDArray[Any]]:
    """Return columns of the given items, rows in key order, read from committed parts.

    What is stored in bf16 comes as float32.

    Raises:
        StorageError: an item is in none of the parts.
    """
    wanted = np.sort(keys)
    keys_found: list[npt.NDArray[Any]] = []
    values: dict[str, list[Tensor]] = {n: [] for n in names}
    for path in paths:
        for batch in open_columns(path).to_batches():
            here = np.asarray(batch.column("key").to_numpy(zero_copy_only=True))
            rows = np.flatnonzero(np.isin(here, wanted))
            keys_found.append(here[rows])
            index = torch.from_numpy(rows)
            for name in names:
                values[name].append(column_tensor(batch.column(name))[index])
    here = np.concatenate(keys_found) if keys_found else np.zeros(0, np.uint64)
    if len(here) != len(wanted) or key_sum(here) != key_sum(wanted):
        raise StorageError(f"{len(wanted) - len(here)} of {len(wanted)} items have no columns")
    order = np.argsort(here)
    return {n: to_host(torch.cat(v))[order] for n, v in values.items()} if keys_found else {}


def ids_of(pool: Pool, keys: Keys) -> list[str]:
    """Return the ids of pool items by their keys, in the order of the keys."""
    ids: dict[int, str] = {}
    for part in pool.parts_of("pool"):
        table = pool.read(part)
        rows = np.flatnonzero(np.isin(table.column("key").to_numpy(), keys))
        taken = table.select(["key", "id"]).take(pa.array(rows))
        ids |= zip(taken["key"].to_pylist(), taken["id"].to_pylist(), strict=True)
    return [ids[int(key)] for key in keys]


def column_tensor(array: pa.Array) -> Tensor:
    """Return a (nested) fixed-size list column as a tensor over the mapped memory.

    Arrow has no bf16: its bits are stored as uint16, which no column has otherwise.
    """
    shape = [len(array)]
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    values = array.to_numpy(zero_copy_only=True)
    with warnings.catch_warnings():  # read-only memory: tiles are never written
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(values).reshape(shape)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def bf16_columns(path: Path) -> list[str]:
    """Return the columns of a part that are stored in bf16."""
    return _bf16_of(read_mapped(path).schema)


def _bf16_of(schema: pa.Schema) -> list[str]:
    return list(json.loads(schema.metadata.get(BF16.encode(), b"[]")))


def _is_bf16(type: pa.DataType) -> bool:
    while pa.types.is_fixed_size_list(type):
        type = type.value_type
    return bool(pa.types.is_uint16(type))


def column_array(tensor: Tensor, *, bf16: bool = False) -> pa.Array:
    """Return a tensor ``[N, …]`` as a (nested) fixed-size list column, rounded where asked for."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    flat = narrowed(flat) if bf16 else flat
    array = pa.array((flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy())
    for size in reversed(tensor.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array
