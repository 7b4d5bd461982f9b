from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from rayal.errors import PoolError, StorageError, UnknownNameError
from rayal.pool.ingest import ingest
from rayal.pool.reader import Pool
from rayal.pool.source import Rows, Source
from rayal.types import id_keys


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    x = np.random.default_rng(0).integers(0, 256, (9000, 3, 4), np.uint8)
    ids = [f"i{n}" for n in range(9000)]
    Pool.from_arrays(tmp_path, "p", x, ids=ids)
    test = x[:50].copy()
    return Pool.from_arrays(tmp_path, "p", test, ids=[f"t{n}" for n in range(50)], role="test")


def pixels(pool: Pool, ids: list[str]) -> list[bytes]:
    return [row["data"] for row in pool.take(ids).to_pylist()]


def test_a_pool_tells_what_it_holds(pool: Pool) -> None:
    assert len(pool) == pool.rows("pool") == 9000 and pool.rows("test") == 50
    assert [part.role for part in pool.parts] == ["pool"] * 3 + ["test"]
    assert [part.rows for part in pool.parts_of("test")] == [50]
    assert pool.payload == {
        "kind": "image",
        "encoding": "raw",
        "dtype": "uint8",
        "shape": [3, 4],
    }
    assert pool.classes is None and pool.labels_file() is None
    assert set(pool.ids()) == {f"i{n}" for n in range(9000)}
    assert repr(pool) == "Pool('p', snapshot 2: 9000 pool, 50 test)"


def test_take_gives_rows_in_the_order_of_ids(pool: Pool) -> None:
    x = np.random.default_rng(0).integers(0, 256, (9000, 3, 4), np.uint8)
    numbers = np.random.default_rng(1).permutation(9000)[:3000].tolist()
    ids = [f"i{n}" for n in numbers]
    table = pool.take(ids)
    assert table.column("id").to_pylist() == ids
    assert table.column("data").to_pylist() == [x[n].tobytes() for n in numbers]
    assert table.schema == pool.read(pool.parts[0]).schema.remove_metadata()
    assert pixels(pool, ["t3", "i3", "t3"]) == [x[3].tobytes()] * 3
    assert pool.take([]).schema == table.schema and len(pool.take([])) == 0


def test_ids_that_are_not_there_are_named(pool: Pool) -> None:
    assert pool.contains(["i1", "x", "t1", "", "i9000"]) == [True, False, True, False, False]
    assert pool.contains([]) == []
    with pytest.raises(UnknownNameError, match=r"2 of 3 items are not in pool 'p', .* 'x', 'y'; "):
        pool.take(["x", "i1", "y"])


def test_a_key_alone_is_no_item(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayal.pool.lookup.id_keys", lambda ids: id_keys(["i1"] * len(ids)))
    assert pool.contains(["i1", "i2"]) == [True, False]


def test_a_pool_pickles_without_its_ledger(pool: Pool) -> None:
    pool.take(["i1"])
    blob = pickle.dumps(pool)
    assert len(blob) < 1500
    (pool.root / "ledger.sqlite").rename(pool.root / "elsewhere")
    other = pickle.loads(blob)
    assert other.parts == pool.parts and other.snapshot == 2 and other.info == pool.info
    assert pixels(other, ["i7"]) == pixels(pool, ["i7"])


def test_the_root_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pool = Pool.from_arrays("runs", "p", [[1.0, 2.0]])
    monkeypatch.chdir("/")
    assert pool.take(["row:0"]).column("features").to_pylist() == [[1.0, 2.0]]


def test_a_file_that_is_not_the_committed_one_is_refused(pool: Pool) -> None:
    (part, *_), (test,) = pool.parts_of("pool"), pool.parts_of("test")
    path, ids = pool.root / part.file, [f"i{n}" for n in range(9000)]
    path.rename(path.with_suffix(".away"))
    with pytest.raises(StorageError, match="is missing"):
        pool.read(part)
    with pytest.raises(StorageError, match="is missing"):
        pool.take(ids)
    path.write_bytes((pool.root / test.file).read_bytes())
    for read in (lambda: pool.read(part), lambda: pool.contains(ids)):
        with pytest.raises(StorageError, match=r"has 50 rows .* the ledger holds 4096"):
            read()
    path.write_bytes(path.with_suffix(".away").read_bytes()[:-20])
    with pytest.raises(StorageError, match="is damaged"):
        pool.read(part)


def test_opening_what_does_not_exist(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'p'"):
        Pool.open(tmp_path, "pp")
    with pytest.raises(UnknownNameError, match="no snapshot 3"):
        Pool.open(tmp_path, "p", 3)
    with pytest.raises(StorageError):
        Pool.open(tmp_path / "nowhere", "p")
    assert not (tmp_path / "nowhere").exists()


def test_arrays_of_numbers_are_a_table(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    pool = Pool.from_arrays(tmp_path, "p", x, [0, 1, 10], features=["w", "h"])
    assert pool.payload == {"kind": "table", "features": ["w", "h"]}
    assert pool.classes == ("0", "1", "10")
    rows = pool.take(["row:2", "row:0"]).column("features")
    assert rows.type == pa.list_(pa.float64(), 2) and rows.to_pylist() == [[4, 5], [0, 1]]
    assert Pool.from_arrays(tmp_path, "q", x, [0.5, 1, 2]).info["label_kind"] == "number"


@pytest.mark.parametrize(
    ("x", "given", "message"),
    [
        (np.zeros((2, 3, 3)), {}, r"x is float64 of shape \(2, 3, 3\); give images as uint8"),
        (np.zeros(3), {}, "numbers as"),
        (np.zeros((2, 2)), {"ids": ["a"]}, "ids has 1 entries, x has 2 rows"),
        (np.zeros((2, 2)), {"y": [1]}, "y has 1 entries, x has 2 rows"),
        (np.zeros((2, 2)), {"features": ["a"]}, "features has 1 names, x has 2 columns"),
        (np.array([[0, np.inf]]), {}, "row 'row:0': feature 'x1' is inf"),
        (np.zeros((0, 2)), {}, "no usable rows"),
    ],
)
def test_arrays_that_do_not_fit(
    tmp_path: Path, x: np.ndarray, given: dict[str, object], message: str
) -> None:
    with pytest.raises(PoolError, match=message):
        Pool.from_arrays(tmp_path, "p", x, **given)  # type: ignore[arg-type]


@pytest.mark.processes
def test_the_pool_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, rayal.pool.reader; assert not {'torch', 'ray', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def large_pool(root: Path, rows: int, size: int) -> Pool:
    def read() -> Iterator[Rows]:
        noise = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
        for start in range(0, rows, 500):
            ids = [f"i{n}" for n in range(start, start + 500)]
            yield Rows(ids, [i.encode() + noise[len(i) :] for i in ids])

    number = ingest(root, "p", [Source({"kind": "image", "encoding": "file"}, read)])
    return Pool.open(root, "p", number)


def drop_cache(pool: Pool) -> None:
    for part in pool.parts:
        with (pool.root / part.file).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident(pool: Pool) -> int:
    """Return the bytes of the pool's files that are in memory."""
    libc, pages = ctypes.CDLL(None, use_errno=True), 0
    for part in pool.parts:
        with (pool.root / part.file).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        view = np.frombuffer(mapped, np.uint8)
        flags = np.zeros(-(-len(view) // mmap.PAGESIZE), np.uint8)
        length, vector = ctypes.c_size_t(len(view)), ctypes.c_void_p(flags.ctypes.data)
        assert libc.mincore(ctypes.c_void_p(view.ctypes.data), length, vector) == 0
        pages += int((flags & 1).sum())
    return pages * mmap.PAGESIZE


def check_pages(pool: Pool, count: int, rows: int, size: int) -> float:
    drop_cache(pool)
    if resident(pool):
        pytest.skip("this file system keeps its files in memory")
    numbers = np.random.default_rng(1).permutation(rows)[:count].tolist()
    table = pool.take([f"i{n}" for n in numbers])
    touched = resident(pool) / (count * size)
    data = table.column("data").to_pylist()
    assert all(d.startswith(f"i{n}".encode()) for d, n in zip(data, numbers, strict=True))
    assert touched <= 2
    return touched


def test_take_touches_only_the_pages_of_its_rows(tmp_path: Path) -> None:
    check_pages(large_pool(tmp_path, 2000, 20_000), 100, 2000, 20_000)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [20_000, 200_000])
def test_take_from_a_large_pool(tmp_path: Path, rows: int) -> None:
    check_pages(large_pool(tmp_path, rows, 20_000), 1000, rows, 20_000)
