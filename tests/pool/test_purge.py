"""Content of forgotten items: gone from every file, whatever the rows are and whenever it dies."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
from PIL import Image

from rayal.errors import LedgerError
from rayal.ledger import Ledger
from rayal.ledger.ledger import rebuild
from rayal.pool.purge import purge
from rayal.pool.push import create_empty, push
from rayal.pool.reader import Pool
from rayal.pool.source import Rows, Source
from rayal.types import TILE_ROWS


def noise(seed: int) -> bytes:
    """Return an image that no other one is like."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 6, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def text(number: int) -> bytes:
    return f"the secret of person {number:05d}".encode()


KINDS: dict[str, tuple[dict[str, Any], Callable[[int], bytes]]] = {
    "text": ({"kind": "text"}, text),
    "table": (
        {"kind": "table", "features": ["a", "b"]},
        lambda n: np.random.default_rng(n).normal(size=2).astype("<f8").tobytes(),
    ),
    "file": ({"kind": "image", "encoding": "file"}, noise),
    "raw": (
        {"kind": "image", "encoding": "raw", "shape": [4, 4], "dtype": "uint8"},
        lambda n: np.random.default_rng(n).bytes(16),
    ),
}


def filled(ledger: Ledger, kind: str, count: int, start: int = 0, role: Any = "pool") -> list[str]:
    """Add items to the pool; return their ids."""
    payload, content = KINDS[kind]
    if "items" not in ledger.pools():
        create_empty(ledger, "items", payload, ["a", "b"])
        ledger.create_project("p", "items", {})
    numbers = range(start, start + count)
    ids = [f"item {n}" for n in numbers]
    rows = Rows(ids, [content(n) for n in numbers])
    push(ledger, "items", [Source(payload, lambda: [rows], role, count)])
    return ids


def found(root: Path, content: bytes) -> list[str]:
    """Return the files of a storage root in which some bytes stand: what grep would find."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return [str(path.relative_to(root)) for path in files if content in path.read_bytes()]


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_forgotten_is_in_no_file_any_more(tmp_path: Path, kind: str) -> None:
    content = KINDS[kind][1]
    with Ledger(tmp_path) as ledger:
        ids = filled(ledger, kind, 40) + filled(ledger, kind, 10, 40)
        filled(ledger, kind, 10, 50, role="test")
        before = Pool.open(tmp_path, "items")
        rows = before.take(ids)
        secret = content(7), content(45), content(52)
        for part in secret:
            assert len(found(tmp_path, part)) == 1
        for item in ("item 7", "item 45", "item 52"):
            ledger.forget_item("p", item)
        assert purge(ledger, "items") == 3
        for part in secret:
            assert found(tmp_path, part) == []
        assert len(found(tmp_path, content(8))) == 1
        after = Pool.open(tmp_path, "items")
        assert [(p.part, p.rows, p.key_sum) for p in after.parts] == [
            (p.part, p.rows, p.key_sum) for p in before.parts
        ]
        kept = [n for n, item in enumerate(ids) if item not in ("item 7", "item 45")]
        assert after.take(ids).take(kept).equals(rows.take(kept))
        assert list(after.ids()) == list(before.ids())  # the ids stay, as the ledger's do
        hashes = rows.column("content_hash").to_pylist()
        assert found(tmp_path, hashes[7].encode()) == []  # short content could be guessed by it
        assert purge(ledger, "items") == 0
        files = {p.file for p in after.parts}
        assert {p.file for p in ledger.snapshot("items").parts} == files
        assert all((tmp_path / p.file).stat().st_size == p.bytes for p in after.parts)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_purged_row_can_be_read_by_its_task(tmp_path: Path, kind: str) -> None:
    from rayal.engine.tasks import task_of

    with Ledger(tmp_path) as ledger:
        ids = filled(ledger, kind, 12)
        size = {"size": (4, 4)} if kind == "file" else {}
        for item in ids[:2]:
            ledger.forget_item("p", item)
        purge(ledger, "items")
        pool = Pool.open(tmp_path, "items")
        x = task_of(pool, size).decode(pool.take(ids))
        assert x.isfinite().all()
        if kind != "text":
            assert not x[:2].any() and x[2:].flatten(1).any(dim=1).all()


def test_a_snapshot_from_before_is_still_read(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ids = filled(ledger, "text", 20)
        pool = Pool.open(tmp_path, "items")
        opened = Pool.open(tmp_path, "items")
        assert opened.take(ids[:1]).column("data")[0].as_py() == text(0)  # its files are mapped
        for item in ids[:2]:
            ledger.forget_item("p", item)
            purge(ledger, "items")  # twice: the second file follows the first
        old = opened.take(ids[2:])
        assert old.column("data").to_pylist() == [text(n) for n in range(2, 20)]
        assert list(pool.ids()) == sorted(pool.ids(), key=list(opened.ids()).index)
        assert pool.take(ids).column("data").to_pylist() == [b"-", b"-", *old["data"].to_pylist()]
        assert pool.read(pool.parts[0]).num_rows == 20


def test_tiles_stay_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa

    monkeypatch.setattr("rayal.types.PARTS", 1)  # a part of two tiles
    with Ledger(tmp_path) as ledger:
        ids = filled(ledger, "table", TILE_ROWS + 5)
        ledger.forget_item("p", ids[3])
        assert purge(ledger, "items") == 1
        (part,) = ledger.snapshot("items").parts
        reader = pa.ipc.open_file(tmp_path / part.file)
        sizes = [reader.get_batch(n).num_rows for n in range(reader.num_record_batches)]
        assert sizes == [TILE_ROWS, 5]


def test_only_what_every_project_has_forgotten_goes(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ids = filled(ledger, "text", 5)
        ledger.create_project("q", "items", {})
        ledger.forget_item("p", ids[0])
        assert ledger.forgotten_items("items") == []
        assert purge(ledger, "items") == 0 and found(tmp_path, text(0))
        ledger.forget_item("q", ids[0])
        ledger.forget_item("q", ids[1])
        assert ledger.forgotten_items("items") == [ids[0]]
        assert purge(ledger, "items") == 1 and not found(tmp_path, text(0))
        ledger.delete_project("p")
        assert purge(ledger, "items") == 1 and not found(tmp_path, text(1))
        ledger.delete_project("q")
        assert ledger.forgotten_items("items") == []


def test_a_forgotten_item_is_not_pushed_again(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        (item,) = filled(ledger, "text", 1)
        ledger.forget_item("p", item)
        purge(ledger, "items")
        rows = Rows([item, "new"], [text(0), text(1)])
        made = push(ledger, "items", [Source({"kind": "text"}, lambda: [rows], "pool", 2)])
        assert made.created == 1
        assert [r.reason for r in made.conflicts] == [
            "item 'item 0' was forgotten, and its id is not free again"
        ]
        assert found(tmp_path, text(0)) == []


def test_the_ledger_tells_where_a_part_lies(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ids = filled(ledger, "text", 3)
        ledger.forget_item("p", ids[0])
        purge(ledger, "items")
        (part,) = ledger.snapshot("items").parts
        (told,) = rebuild(ledger.events())["parts"]
        assert (told["file"], told["bytes"]) == (part.file, part.bytes)
        for wrong in ({"part": "other"}, {"rows": 4}, {"key_sum": 1}, {"role": "test"}):
            changed = type(part)(**{**vars(part), **wrong})
            with pytest.raises(LedgerError, match="only the file of a part can change"):
                ledger.replace_part("items", changed)


PURGE = """
import sys
from rayal.pool.purge import purge
from rayal.ledger import Ledger
with Ledger(sys.argv[1]) as ledger:
    print(purge(ledger, "items"))
"""


@pytest.mark.processes
@pytest.mark.parametrize("point", ["purge.write:1", "purge.commit:1", "purge.write:2"])
def test_killed_anywhere_it_is_done_again(tmp_path: Path, point: str) -> None:
    with Ledger(tmp_path) as ledger:
        filled(ledger, "text", 10)
        filled(ledger, "text", 10, 10)
        for item in ("item 3", "item 13"):
            ledger.forget_item("p", item)
    environment = {**os.environ, "RAYAL_FAILPOINT": point}
    died = forked.run("-c", PURGE, tmp_path, env=environment, check=False)
    assert died.returncode == -9, died.stderr
    pool = Pool.open(tmp_path, "items")  # whatever happened, the pool is whole
    assert pool.take(["item 4", "item 14"]).column("data").to_pylist() == [text(4), text(14)]
    done = forked.run("-c", PURGE, tmp_path)
    assert int(done.stdout) == (2 if point == "purge.write:1" else 1)
    assert found(tmp_path, text(3)) == found(tmp_path, text(13)) == []
    arrows = {str(p.relative_to(tmp_path)) for p in (tmp_path / "pools").rglob("*.arrow")}
    with Ledger(tmp_path) as ledger:
        assert arrows == {part.file for part in ledger.snapshot("items").parts}
