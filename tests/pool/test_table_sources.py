from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from rayal.errors import PoolError
from rayal.pool.reader import Pool
from rayal.pool.storage import read_mapped

DATA: dict[str, list[Any]] = {
    "name": ["a", "b", "c"],
    "w": [1, 2, 3],
    "h": [0.5, 1.5, 2.5],
    "y": ["cat", "dog", None],
}
Write = Callable[[Path, dict[str, list[Any]]], Path]


def parquet(folder: Path, data: dict[str, list[Any]]) -> Path:
    pq.write_table(pa.table(data), folder / "t.parquet")
    return folder / "t.parquet"


def csv(folder: Path, data: dict[str, list[Any]]) -> Path:
    pyarrow.csv.write_csv(pa.table(data), folder / "t.csv")
    return folder / "t.csv"


def jsonl(folder: Path, data: dict[str, list[Any]]) -> Path:
    rows = pa.table(data).to_pylist()
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "t.jsonl"


FORMATS = pytest.mark.parametrize(
    ("write", "ingest"),
    [(parquet, Pool.from_parquet), (csv, Pool.from_csv), (jsonl, Pool.from_jsonl)],
    ids=["parquet", "csv", "jsonl"],
)


def known(pool: Pool) -> dict[str, str]:
    file = pool.labels_file()
    assert file is not None
    return {row["id"]: row["label"] for row in read_mapped(file).to_pylist()}


@FORMATS
def test_numeric_columns_are_the_features(
    tmp_path: Path, write: Write, ingest: Callable[..., Pool]
) -> None:
    pool = ingest(tmp_path, "p", write(tmp_path, DATA), id="name", label="y")
    assert pool.payload == {"kind": "table", "features": ["w", "h"]}
    assert pool.take(["c", "a"]).column("features").to_pylist() == [[3, 2.5], [1, 0.5]]
    assert pool.classes == ("cat", "dog") and known(pool) == {"a": "cat", "b": "dog"}


@FORMATS
def test_ids_without_a_column_are_file_and_row(
    tmp_path: Path, write: Write, ingest: Callable[..., Pool]
) -> None:
    path = write(tmp_path, DATA)
    pool = ingest(tmp_path, "p", path, features=["h"])
    assert sorted(pool.ids()) == [f"{path.name}:{n}" for n in range(3)]
    assert pool.take([f"{path.name}:1"]).column("features").to_pylist() == [[1.5]]


@FORMATS
def test_columns_that_do_not_fit_are_named(
    tmp_path: Path, write: Write, ingest: Callable[..., Pool]
) -> None:
    path = write(tmp_path, DATA)
    with pytest.raises(PoolError, match=r"columns \['name', 'y'\] are not numeric; .*features=\["):
        ingest(tmp_path, "p", path)
    with pytest.raises(PoolError, match="has no column 'nam'; did you mean 'name'"):
        ingest(tmp_path, "p", path, id="nam")
    with pytest.raises(PoolError, match="has no numeric column left for the features"):
        ingest(tmp_path, "p", write(tmp_path, {"name": ["a"]}), id="name")
    write(tmp_path, DATA)
    with pytest.raises(PoolError, match=r"does not exist; a .* source is a file"):
        ingest(tmp_path, "p", tmp_path / "absent")
    with pytest.raises(TypeError, match="lable"):
        ingest(tmp_path, "p", path, features=["w"], lable="y")


@FORMATS
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_a_missing_feature_is_an_error_or_quarantined(
    tmp_path: Path, write: Write, ingest: Callable[..., Pool], bad: float | None
) -> None:
    path = write(tmp_path, {"name": ["a", "b"], "w": [1.0, bad], "y": [0, 1]})
    with pytest.raises(PoolError, match=r"row 'b': feature 'w' is (nan|inf); .* missing: quarant"):
        ingest(tmp_path, "p", path, id="name", label="y")
    pool = ingest(tmp_path, "p", path, id="name", label="y", missing="quarantine")
    assert list(pool.ids()) == ["a"] and known(pool) == {"a": "0"}
    assert pool.info["quarantined"]["rows"][0][0] == "b"


@FORMATS
def test_float_labels_are_numbers(
    tmp_path: Path, write: Write, ingest: Callable[..., Pool]
) -> None:
    path = write(tmp_path, {"w": [1, 2, 3], "y": [0.5, 1.0, None]})
    pool = ingest(tmp_path, "p", path, label="y")
    assert pool.info["label_kind"] == "number" and pool.classes is None
    assert [float(v) for v in sorted(known(pool).values())] == [0.5, 1.0]


@FORMATS
def test_whole_ids_and_labels_become_text(
    tmp_path: Path, write: Write, ingest: Callable[..., Pool]
) -> None:
    path = write(tmp_path, {"n": [7, 8, 9], "w": [1, 2, 3], "y": [10, 9, 2]})
    pool = ingest(tmp_path, "p", path, id="n", label="y")
    assert sorted(pool.ids()) == ["7", "8", "9"] and pool.classes == ("2", "9", "10")


@FORMATS
def test_folders_and_test_items(tmp_path: Path, write: Write, ingest: Callable[..., Pool]) -> None:
    for name in ("in/x", "in/y", "test"):
        (tmp_path / name).mkdir(parents=True)
        path = write(tmp_path / name, {"w": [len(name), 1]})
    pool = ingest(tmp_path, "p", tmp_path / "in", test=tmp_path / "test")
    assert sorted(pool.ids())[::2] == [f"x/{path.name}:0", f"y/{path.name}:0"]
    assert (len(pool), pool.rows("test"), pool.snapshot) == (4, 2, 1)


def test_csv_text_stays_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("n,w,y\n007,1,01\n008,2.5,NA\n")
    pool = Pool.from_csv(tmp_path, "p", tmp_path / "t.csv", id="n", label="y")
    assert known(pool) == {"007": "01", "008": "NA"}


def test_a_csv_value_that_is_no_number(tmp_path: Path) -> None:
    rows = "1000000000000000\n" * 70_000  # beyond the block that shows the types
    (tmp_path / "t.csv").write_text(f"w\n{rows}many\n")
    with pytest.raises(PoolError, match=r"t\.csv: .*invalid value 'many'.*features=\["):
        Pool.from_csv(tmp_path, "p", tmp_path / "t.csv")


def test_whole_numbers_may_become_floats_later(tmp_path: Path) -> None:
    rows = "1000000000000000\n" * 70_000
    (tmp_path / "t.csv").write_text(f"w\n{rows}0.25\n")
    pool = Pool.from_csv(tmp_path, "p", tmp_path / "t.csv", duplicates="first")
    assert pool.take(["t.csv:70000"]).column("features").to_pylist() == [[0.25]]
    assert len(pool) == 2 and pool.info["duplicates"]["count"] == 69_999


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"w": 1}\n{"w": \n', "line 2 is not JSON"),
        ("[1]\n", "line 1 is .* every line is one JSON object"),
        ('{"w": 1}\n{"w": "a"}\n', "the values of 'w' are of several types"),
        ("", "has no rows"),
    ],
)
def test_json_lines_that_do_not_fit(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(PoolError, match=message):
        Pool.from_jsonl(tmp_path, "p", tmp_path / "t.jsonl")


def test_files_that_are_something_else(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("w\n1\n")
    with pytest.raises(PoolError, match="is not a Parquet file"):
        Pool.from_parquet(tmp_path, "p", tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("")
    with pytest.raises(PoolError, match=r"t\.csv"):
        Pool.from_csv(tmp_path, "p", tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("w,w\n1,2\n")
    with pytest.raises(PoolError, match="two columns of one name"):
        Pool.from_csv(tmp_path, "p", tmp_path / "t.csv")


def test_arrow_tables_in_several_pieces(tmp_path: Path) -> None:
    whole = pa.table(DATA)
    pieces = (piece for piece in [whole.slice(0, 2), whole.slice(2).to_batches()[0]])
    pool = Pool.from_tables(tmp_path, "p", pieces, features=["w"])
    assert pool.take(["row:2", "row:0"]).column("features").to_pylist() == [[3], [1]]
    assert len(Pool.from_tables(tmp_path, "q", whole, features=["w"])) == 3
    with pytest.raises(PoolError, match="no table was given"):
        Pool.from_tables(tmp_path, "r", [])


def test_ids_must_be_there(tmp_path: Path) -> None:
    table = pa.table({"n": ["a", None], "w": [1, 2]})
    with pytest.raises(PoolError, match="row row:1 has no id in column 'n'"):
        Pool.from_tables(tmp_path, "p", [table], id="n")
    with pytest.raises(PoolError, match="column 'w' is double; ids are text or whole"):
        Pool.from_tables(tmp_path, "p", [pa.table({"w": [1.5], "v": [1]})], id="w")


def test_labels_from_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [7, 8], "label": [1, 0]}), tmp_path / "l.parquet")
    table = pa.table({"n": [7, 8], "w": [1, 2]})
    labels = tmp_path / "l.parquet"
    pool = Pool.from_tables(tmp_path, "p", [table], id="n", labels=labels)
    assert known(pool) == {"7": "1", "8": "0"}
    pq.write_table(pa.table({"id": [7]}), labels)
    with pytest.raises(PoolError, match=r"has no column \['label'\]; it needs id and label"):
        Pool.from_tables(tmp_path, "p", [table], id="n", labels=labels)
