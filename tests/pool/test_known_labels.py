from __future__ import annotations

from pathlib import Path

import pytest
from ingest_cases import PAYLOAD, add, items, source

from rayal.errors import PoolError
from rayal.pool.source import Rows, Source
from rayal.pool.storage import read_mapped
from rayal.types import id_keys


def test_labels_are_in_no_part(tmp_path: Path) -> None:
    given: list[str | None] = ["10", "9", None, "2"]
    pool = add(tmp_path, source(items(4), labels=given))
    assert pool.classes == ("2", "9", "10") and pool.info["label_kind"] == "class"
    assert pool.read(pool.parts[0]).column_names == ["id", "key", "content_hash", "data"]
    file = pool.labels_file()
    assert file is not None
    rows = read_mapped(file).to_pylist()
    assert {r["id"]: r["label"] for r in rows} == {"i0": "10", "i1": "9", "i3": "2"}
    assert [r["key"] for r in rows] == sorted(id_keys(["i0", "i1", "i3"]).tolist())
    assert add(tmp_path / "none", source(items(4))).labels_file() is None


def test_a_repeated_item_keeps_its_label(tmp_path: Path) -> None:
    bare, labeled = source(items(9)), source(items(9), labels=["a"] * 9)
    for n, given in enumerate([(bare, labeled), (labeled, bare)]):
        file = add(tmp_path / str(n), *given).labels_file()
        assert file is not None and len(read_mapped(file)) == 9


def test_labels_of_later_items_join_the_known(tmp_path: Path) -> None:
    add(tmp_path, source(items(2), labels=["a", "b"]))
    pool = add(tmp_path, source(items(2, 2), labels=["c", None]))
    file = pool.labels_file()
    assert pool.classes == ("a", "b", "c") and file is not None
    assert sorted(read_mapped(file).column("label").to_pylist()) == ["a", "b", "c"]
    late = add(tmp_path, source(items(4), labels=["a", "b", "c", "d"]))
    assert late.snapshot == 3 and late.parts == pool.parts and late.classes == ("a", "b", "c", "d")
    with pytest.raises(PoolError, match="item 'i0' has the known label 'a', the source says 'z'"):
        add(tmp_path, source(items(1), labels=["z"]))
    unlabeled = add(tmp_path, source(items(1, 9)))
    assert unlabeled.classes == late.classes and unlabeled.labels_file() == late.labels_file()


def test_classes_and_numbers_do_not_mix(tmp_path: Path) -> None:
    numbers = Source(PAYLOAD, lambda: [Rows(["n"], [b"n"], ["0.5"], "number")])
    pool = add(tmp_path, numbers)
    assert pool.info["label_kind"] == "number" and pool.classes is None
    with pytest.raises(PoolError, match="class names in part and numbers in part"):
        add(tmp_path, source({"a": b"a"}, labels=["cat"]))


def test_labels_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("id,label,who\ni0,cat,x\ni2,dog,y\nelsewhere,cat,y\ni3,,y\n")
    pool = add(tmp_path, source(items(4)), labels=file)
    known = pool.labels_file()
    assert known is not None and pool.classes == ("cat", "dog")
    assert sorted(read_mapped(known).column("id").to_pylist()) == ["i0", "i2"]
    with pytest.raises(PoolError, match="both the sources and the labels file"):
        add(tmp_path, source(items(1), labels=["cat"]), labels=file)
    with pytest.raises(PoolError, match="none of the 3 labeled ids is among the 1 items"):
        add(tmp_path, source({"q": b"q"}), labels=file)
    file.write_text("id,label\ni0,cat\ni0,dog\n")
    with pytest.raises(PoolError, match="item 'i0' has two labels"):
        add(tmp_path, source(items(4)), labels=file)
    with pytest.raises(PoolError, match=r"absent.csv must be an existing file \*.csv or"):
        add(tmp_path, source(items(4)), labels=tmp_path / "absent.csv")
