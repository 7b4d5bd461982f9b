from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayal.errors import StorageError
from rayal.pool.storage import open_random, read_mapped, write_part
from rayal.types import FORMAT_VERSION, TILE_ROWS


def table(rows: int = 10) -> pa.Table:
    return pa.table({"key": np.arange(rows, dtype=np.uint64)})


def test_a_part_comes_back_with_its_metadata(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.arrow"
    write_part(path, table(), {"role": "pool"})
    read = read_mapped(path)
    assert read.column("key").to_pylist() == list(range(10))
    assert read.schema.metadata == {b"role": b"pool", b"version": FORMAT_VERSION.encode()}
    assert [f.name for f in path.parent.iterdir()] == ["a.arrow"]


def test_batches_are_tiles_whatever_the_chunks(tmp_path: Path) -> None:
    chunks = pa.concat_tables([table(100), table(2 * TILE_ROWS)])
    write_part(tmp_path / "a.arrow", chunks, {})
    reader = open_random(tmp_path / "a.arrow")
    sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
    assert sizes == [TILE_ROWS, TILE_ROWS, 100]


def test_a_mapped_column_is_the_file(tmp_path: Path) -> None:
    write_part(tmp_path / "a.arrow", table(100_000), {})
    before = pa.total_allocated_bytes()
    read = read_mapped(tmp_path / "a.arrow")
    keys = read.column("key").chunk(0).to_numpy(zero_copy_only=True)
    assert keys[-1] == TILE_ROWS - 1
    assert pa.total_allocated_bytes() - before < 10_000


def test_a_name_is_written_once(tmp_path: Path) -> None:
    write_part(tmp_path / "a.arrow", table(1), {})
    with pytest.raises(StorageError, match=r"exists already; .* write under a new name"):
        write_part(tmp_path / "a.arrow", table(2), {})
    assert len(read_mapped(tmp_path / "a.arrow")) == 1


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_part(tmp_path / "a.arrow", table(), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read", [read_mapped, open_random])
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, read: object) -> None:
    assert callable(read)
    path = tmp_path / "a.arrow"
    with pytest.raises(StorageError, match=r"a\.arrow is missing"):
        read(path)
    for damage in (b"", b"ARROW1\0\0 and then nothing"):
        path.write_bytes(damage)
        with pytest.raises(StorageError, match=r"a\.arrow is damaged"):
            read(path)
    with pa.ipc.new_file(path, table().schema) as writer:
        writer.write_table(table())
    with pytest.raises(
        StorageError, match=f"format version none, this rayal reads {FORMAT_VERSION}"
    ):
        read(path)


def test_open_readers_hold_no_file_descriptors(tmp_path: Path) -> None:
    path = tmp_path / "part.arrow"
    write_part(path, pa.table({"a": [1, 2, 3]}), {})
    before = len(os.listdir("/proc/self/fd"))
    readers = [open_random(path) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert all(reader.get_batch(0).column(0).to_pylist() == [1, 2, 3] for reader in readers)
