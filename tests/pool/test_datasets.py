"""Ray Datasets become pools: the same parts as from the same rows elsewhere."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from rayal.engine.executor import Executor
from rayal.errors import PoolError
from rayal.pool.reader import Pool

pytestmark = pytest.mark.ray
RNG = np.random.default_rng(0)
TABLE = pa.table(
    {
        "name": [f"n{i}" for i in range(50)],
        "a": RNG.normal(size=50),
        "b": RNG.normal(size=50),
        "y": [f"c{i % 3}" for i in range(50)],
    }
)


@pytest.fixture
def data(on_ray: Executor) -> Any:
    """Return Ray Data, which takes a second to import, beside a cluster."""
    import ray.data

    return ray.data


def test_numbers_give_the_same_pool_as_the_table_itself(data: Any, tmp_path: Path) -> None:
    dataset = data.from_arrow([TABLE.slice(25), TABLE.slice(0, 25)])
    one = Pool.from_dataset(tmp_path / "a", "p", dataset, id="name", label="y")
    other = Pool.from_tables(tmp_path / "b", "p", [TABLE], id="name", label="y")
    assert [part.part for part in one.parts] == [part.part for part in other.parts]
    assert len(one) == 50 and one.classes == ("c0", "c1", "c2")


def test_images_as_arrays_and_as_files(data: Any, tmp_path: Path) -> None:
    arrays = [RNG.integers(0, 255, (6, 5), dtype=np.uint8) for _ in range(8)]
    rows = [{"id": i, "image": a, "y": i % 2} for i, a in enumerate(arrays)]
    pool = Pool.from_dataset(
        tmp_path, "raw", data.from_items(rows), id="id", label="y", image="image"
    )
    assert pool.payload == {
        "kind": "image", "encoding": "raw", "dtype": "uint8", "shape": [6, 5],
    }  # fmt: skip
    assert pool.take(["3"]).column("data")[0].as_py() == arrays[3].tobytes()
    files = [{"id": f"f{i}", "image": encoded(a)} for i, a in enumerate(arrays)]
    files.append({"id": "bad", "image": b"no image"})
    pool = Pool.from_dataset(tmp_path, "files", data.from_items(files), id="id", image="image")
    assert len(pool) == 8
    assert pool.info["quarantined"]["count"] == 1


def encoded(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def test_what_does_not_fit_is_said(data: Any, tmp_path: Path) -> None:
    dataset = data.from_arrow(TABLE)
    with pytest.raises(PoolError, match=r"no fixed order.*id=…, one of \['name'"):
        Pool.from_dataset(tmp_path, "p", dataset)
    with pytest.raises(PoolError, match="no column 'nam'; did you mean 'name'"):
        Pool.from_dataset(tmp_path, "p", dataset, id="nam")
    with pytest.raises(PoolError, match="'a' holds float64"):
        Pool.from_dataset(tmp_path, "p", dataset, id="name", image="a")
