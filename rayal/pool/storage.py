"""Immutable Arrow files: written once under a final name, read back memory-mapped.

A file is written under a temporary name in its own folder, synced and renamed, so that a final
name always stands for a complete file. Record batches are tiles; nothing is compressed, so that a
mapped column is the array itself.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa

from rayal.errors import StorageError
from rayal.types import FORMAT_VERSION, TILE_ROWS

_C = ctypes.CDLL(None, use_errno=True)
_C.mmap.restype = ctypes.c_void_p
_C.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
)
_C.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_C.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
TEMPORARY = ".tmp-"  # prefix of names that never count
ATTACHED = "attached"  # folder and part name of rows that strategies made of their picks


def write_part(path: Path, table: pa.Table, metadata: Mapping[str, str]) -> None:
    """Write a table as an Arrow file in tiles, durably, under a name that is still free.

    Args:
        path: final name; its folder is made.
        table: the rows.
        metadata: goes into the schema, beside the format version.

    Raises:
        StorageError: a file of that name exists.
    """
    if path.exists():
        raise StorageError(
            f"{path} exists already; files of a storage root are immutable: write under a new name"
        )
    replace_part(path, table, metadata)


def replace_part(path: Path, table: pa.Table, metadata: Mapping[str, str]) -> None:
    """Write as ``write_part`` does, in the place of a file whose content must go."""
    described = table.replace_schema_metadata({**metadata, "version": FORMAT_VERSION})

    def write(draft: Path) -> None:
        with draft.open("wb") as file, pa.ipc.new_file(file, described.schema) as writer:
            writer.write_table(described.combine_chunks(), max_chunksize=TILE_ROWS)

    write_durably(path, write)


def write_durably(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file by ``write``, so that its name always stands for a complete one.

    Args:
        path: its name; the folder is made, and what had the name is replaced.
        write: writes a file under the path that it is given, whose suffix is that of ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{TEMPORARY}{uuid4().hex[:8]}-{path.name}")
    try:
        write(draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def successors(path: Path) -> list[Path]:
    """Return the files that a purge has written in the place of one, the latest last.

    They have the name of the part, and are told apart by a suffix of their own.
    """
    files = path.parent.glob(f"{path.name.partition('.')[0]}.purged-*.arrow")
    return sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name))


def present(path: Path) -> Path:
    """Return the path of a file, or of that which a purge has put in its place by now.

    Whoever holds a snapshot from before a purge finds the part by this, without the ledger.
    """
    if path.exists():
        return path
    return next(reversed(successors(path)), path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_mapped(path: Path) -> pa.Table:
    """Return the table of a file, memory-mapped: columns are views of the file.

    Raises:
        StorageError: the file is missing, damaged or of another format version.
    """
    with _readable(path):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        table = reader.read_all()
    _check_format(path, table.schema)
    return table


def open_random(path: Path) -> pa.ipc.RecordBatchFileReader:
    """Return a reader of a file, mapped for access to scattered rows: nothing is read ahead.

    Raises:
        StorageError: the file is missing, damaged or of another format version.
    """
    with _readable(path):
        mapped = _Mapping(path)
        reader = pa.ipc.open_file(pa.foreign_buffer(mapped.address, mapped.size, base=mapped))
    _check_format(path, reader.schema)
    return reader


class _Mapping:
    """A file mapped for reading at random places.

    Arrow's own mapping reads ahead, and Python's keeps a file descriptor, of which a pool of many
    parts would need too many.
    """

    def __init__(self, path: Path) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            self.size = os.fstat(handle).st_size
            flags = (mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
            self.address = _C.mmap(None, self.size, *flags)
        finally:
            os.close(handle)
        if self.address in (None, ctypes.c_void_p(-1).value):
            self.address = None
            raise OSError(ctypes.get_errno(), f"{path} cannot be mapped")
        _C.madvise(self.address, self.size, mmap.MADV_RANDOM)

    def __del__(self) -> None:
        if getattr(self, "address", None) is not None:
            _C.munmap(self.address, self.size)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise StorageError(
            f"{path} is missing; restore it from a backup, or ingest into a new storage root"
        ) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageError(
            f"{path} is damaged and cannot be read ({error}); restore it from a backup"
        ) from error


def _check_format(path: Path, schema: pa.Schema) -> None:
    version = (schema.metadata or {}).get(b"version", b"none").decode()
    if version != FORMAT_VERSION:
        raise StorageError(
            f"{path} has format version {version}, this rayal reads {FORMAT_VERSION}; "
            "read it with the version of rayal that wrote it"
        )
