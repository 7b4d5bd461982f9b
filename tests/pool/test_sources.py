from __future__ import annotations

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_digits

from rayal.errors import PoolError, UnknownNameError
from rayal.pool.from_settings import pool_of
from rayal.pool.reader import Pool
from rayal.pool.readers import builtin as sources
from rayal.pool.readers.builtin import builtin
from rayal.pool.source import keyed_hashes
from rayal.pool.storage import read_mapped
from rayal.settings.run import PoolSettings

Bytes = npt.NDArray[np.uint8]


def idx(path: Path, array: Bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    data = header + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def images(count: int, *shape: int) -> Bytes:
    return np.random.default_rng(count).integers(0, 256, (count, *shape), np.uint8)


def known(pool: Pool) -> dict[str, str]:
    file = pool.labels_file()
    assert file is not None
    return {row["id"]: row["label"] for row in read_mapped(file).to_pylist()}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(tmp_path: Path, suffix: str) -> None:
    x, y = images(20, 4, 3), np.arange(20, dtype=np.uint8) % 11
    files = idx(tmp_path / f"x{suffix}", x), idx(tmp_path / f"y{suffix}", y)
    pool = Pool.from_idx(tmp_path, "p", *files)
    assert pool.payload["shape"] == [4, 3] and pool.classes == tuple(map(str, range(11)))
    ids = [f"x:{n:05d}" for n in range(20)]
    assert pool.take(ids).column("data").to_pylist() == [image.tobytes() for image in x]
    assert known(pool) == {i: str(label) for i, label in zip(ids, y, strict=True)}


def test_idx_files_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayal.pool.readers.arrays._BLOCK_BYTES", 50)
    x, y = images(20, 4, 3), np.arange(20, dtype=np.uint8)
    pool = Pool.from_idx(tmp_path, "p", idx(tmp_path / "x", x), idx(tmp_path / "y", y))
    ids = [f"x:{n:05d}" for n in range(20)]
    assert pool.take(ids).column("data").to_pylist() == [image.tobytes() for image in x]
    assert known(pool)["x:00013"] == "13"


def test_idx_files_that_do_not_fit(tmp_path: Path) -> None:
    x = idx(tmp_path / "x", images(3, 2, 2))
    whole = x.read_bytes()
    cases = {
        "does not exist; give an IDX file": None,
        "begins with 89504e47": b"\x89PNG...",
        "ends before the rows": whole[:-1],
        "is longer than its header tells": whole + b"x",
        "which have no pixels": bytes((0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2)),
    }
    for message, data in cases.items():
        x.unlink() if data is None else x.write_bytes(data)
        with pytest.raises(PoolError, match=message):
            Pool.from_idx(tmp_path, "p", x)
    (tmp_path / "z.gz").write_bytes(gzip.compress(whole)[:-10])
    with pytest.raises(PoolError, match=r"z\.gz is damaged"):
        Pool.from_idx(tmp_path, "p", tmp_path / "z.gz")
    x.write_bytes(whole)
    with pytest.raises(PoolError, match="has 2 labels for 3 images"):
        Pool.from_idx(tmp_path, "p", x, idx(tmp_path / "y", np.zeros(2, np.uint8)))


def test_digits(tmp_path: Path) -> None:
    pool = Pool.ingest(tmp_path, "p", builtin("digits"))
    assert (len(pool), pool.rows("test")) == (1397, 400)
    ids = [f"digits:{n:04d}" for n in range(1797)]
    smallest = np.argsort(keyed_hashes(ids, b"test"))[:400]
    assert set(pool.ids("test")) == {ids[n] for n in smallest}
    table = pool.take(ids)
    pixels = np.frombuffer(b"".join(table.column("data").to_pylist()), np.uint8)
    given = load_digits()
    assert (pixels.reshape(-1, 64) == given.data * 15).all() and pixels.max() == 240
    assert [known(pool)[i] for i in ids[:50]] == [str(t) for t in given.target[:50]]


def fashion(folder: Path, suffix: str = "") -> None:
    for stem, count in (("train", 30), ("t10k", 10)):
        idx(folder / f"{stem}-images-idx3-ubyte{suffix}", images(count, 28, 28))
        idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", np.arange(count, dtype=np.uint8) % 10)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("RAYAL_DATA", raising=False)
    monkeypatch.setattr(sources, "_DEBIAN", tmp_path / "debian")
    return tmp_path


def test_fashion_mnist_is_found(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fashion(bare / "debian", ".gz")
    pool = Pool.ingest(bare, "p", builtin("fashion-mnist"))
    assert (len(pool), pool.rows("test")) == (30, 10)
    assert pool.contains(["train:00029", "test:00009", "t10k:00000"]) == [True, True, False]
    fashion(bare / "env/FashionMNIST/raw")
    (bare / "debian/t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setenv("RAYAL_DATA", str(bare / "env"))
    again = Pool.ingest(bare, "p", builtin("fashion-mnist"))
    assert again.snapshot == 1
    fashion(bare / "given")
    assert len(builtin("fashion-mnist", bare / "given")) == 2


def test_missing_files_say_where_and_what(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYAL_DATA", "/nowhere/data")
    with pytest.raises(PoolError, match=r"/nowhere/data/FashionMNIST/raw.*dataset-fashion-mnist"):
        builtin("fashion-mnist")
    with pytest.raises(PoolError, match=r"in none of .*given.*/nowhere/data.*download=True"):
        builtin("cifar10", bare / "given")
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        builtin("digit")


def test_cifar10(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10  # seconds, which only this test needs

    folder = bare / "cifar-10-batches-py"
    folder.mkdir()
    rows = images(12, 3, 32, 32)
    content = {
        "data_batch_1": {"data": rows[:8].reshape(8, -1), "labels": list(range(8))},
        "test_batch": {"data": rows[8:].reshape(4, -1), "labels": [9, 8, 1, 0]},
        "batches.meta": {"label_names": list("abcdefghij")},
    }
    sums = {}
    for name, value in content.items():
        (folder / name).write_bytes(pickle.dumps(value))
        sums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", meta)
    pool = Pool.ingest(bare, "p", builtin("cifar10", bare))
    assert (len(pool), pool.rows("test")) == (8, 4) and pool.payload["shape"] == [32, 32, 3]
    data = pool.take(["train:00003"]).column("data")[0].as_py()
    assert data == rows[3].transpose(1, 2, 0).tobytes()
    assert known(pool)["test:00000"] == "j"
    (folder / "test_batch").write_bytes(b"cut")
    with pytest.raises(PoolError, match="is not complete"):
        builtin("cifar10", bare)


def housing(folder: Path, columns: int = 14) -> Path:
    """Write a file of the housing data's form, of made-up numbers."""
    table = np.random.default_rng(0).normal(size=(120, columns))
    np.savetxt(folder / "boston_housing.csv", table, delimiter=",")
    return folder


def test_boston_is_a_table_of_numbers_with_a_test_of_each_seed(tmp_path: Path) -> None:
    given = PoolSettings(
        source="boston", data=str(housing(tmp_path)), test_share=0.2, test_by_seed=True
    )
    root = tmp_path / "root"
    pools = [pool_of(given, root, seed=seed) for seed in (0, 1, 0)]
    assert pools[0].info["label_kind"] == "number" and pools[0].payload["kind"] == "table"
    assert pools[0].payload["features"][5] == "rm" and len(pools[0].payload["features"]) == 13
    assert pools[0].name == pools[2].name != pools[1].name
    tests = [set(pool.ids("test")) for pool in pools]
    assert tests[0] != tests[1] and all(10 <= len(t) <= 40 for t in tests)
    assert all(len(set(p.ids("pool")) | t) == 120 for p, t in zip(pools, tests, strict=True))
    fixed = [
        pool_of(given.model_copy(update={"test_by_seed": False}), root, seed=s) for s in (0, 1)
    ]
    assert fixed[0].name == fixed[1].name


def test_boston_that_is_not_there_or_damaged_is_said(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=r"pip install --no-deps --target FOLDER mlxtend"):
        builtin("boston", tmp_path)
    with pytest.raises(PoolError, match="has 3 columns, the housing data has 14"):
        builtin("boston", housing(tmp_path, columns=3))
