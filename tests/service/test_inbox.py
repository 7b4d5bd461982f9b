"""Items over HTTP: each is taken, known, in conflict or rejected; nothing harmful is decoded."""

from __future__ import annotations

import base64
import io
import json
import os
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from service_cases import (
    CLASSES,
    FEATURES,
    NOTHING,
    body,
    png,
    project,
    push,
    rows,
    table_pool,
    work,
)

from rayal import pixels
from rayal.engine.project import Project
from rayal.errors import ConflictError, PoolError, UnknownNameError
from rayal.ledger import LabelEntry, Ledger
from rayal.pool.ingest import locked
from rayal.pool.push import Pushed
from rayal.pool.push import push as push_sources
from rayal.pool.reader import Pool
from rayal.pool.source import Rows, Source
from rayal.pool.storage import open_random
from rayal.service.content import ContentLimits, PushedItem
from rayal.service.creation import create_project
from rayal.service.inbox import (
    clean,
    content_of,
    ingest_file,
    item_of,
    known_items,
    push_items,
    stage,
)
from rayal.service.uris import Prefixes
from rayal.service.worker.process import perform
from rayal.types import PART_ROWS, id_keys

IMAGES = {"kind": "image", "classes": CLASSES, "size": [8, 8], "channels": 1}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger(tmp_path)
    create_project(made, body(task=IMAGES), prefixes=NOTHING)
    return made


def images(ledger: Ledger, **items: bytes) -> Pushed:
    return push_items(ledger, "p", [PushedItem(i, d) for i, d in items.items()], prefixes=NOTHING)


def reasons(made: Pushed) -> dict[str, str]:
    return dict(made.rejected)


def test_what_becomes_of_items(ledger: Ledger) -> None:
    first = images(ledger, a=png(1), b=png(2))
    assert (first.created, first.unchanged, first.conflicts, first.rejected) == (2, 0, (), ())
    again = images(ledger, a=png(1), b=png(3), c=png(4))
    assert (again.created, again.unchanged, again.snapshot) == (1, 1, first.snapshot + 1)
    (conflict,) = again.conflicts
    assert conflict.item == "b" and "items never change" in conflict.reason
    assert content_of(ledger, "p", "b") == (png(2), "image/png")
    same = images(ledger, a=png(1), b=png(2), c=png(4))
    assert (same.created, same.unchanged, same.snapshot) == (0, 3, again.snapshot)
    pool = Project(ledger, "p").pool
    assert sorted(pool.ids()) == ["a", "b", "c"] and len(pool.parts) == 2


def test_an_id_that_stands_twice_in_one_call(ledger: Ledger) -> None:
    given = [PushedItem("a", png(n)) for n in (1, 1, 2)]
    made = push_items(ledger, "p", given, prefixes=NOTHING)
    assert (made.created, made.unchanged, [c.item for c in made.conflicts]) == (1, 1, ["a"])
    assert content_of(ledger, "p", "a")[0] == png(1)
    other = push_items(ledger, "p", [PushedItem("a", png(1), role="test")], prefixes=NOTHING)
    assert [c.item for c in other.conflicts] == ["a"]


def test_nothing_is_pushed_into_a_pool_of_others(tmp_path: Path) -> None:
    table_pool(tmp_path, "rows", rows(20))
    ledger = Ledger(tmp_path)
    task = {"kind": "table", "classes": CLASSES}
    create_project(ledger, body(pool="rows", task=task), prefixes=NOTHING)
    with pytest.raises(ConflictError, match="was there before"):
        push(ledger, "p", rows(1))
    with pytest.raises(UnknownNameError):
        push(ledger, "q", rows(1))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def huge(width: int, height: int) -> bytes:
    """Return a PNG of some kB that says it has width x height pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body_ = zlib.compress(b"\0" * 2_000_000, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body_) + chunk(b"IEND", b"")
    )


def test_images_that_promise_too_much_are_refused_before_they_are_decoded(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixels, "why_broken", lambda data: pytest.fail("was decoded"))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    bomb = huge(100_000, 100_000)
    assert len(bomb) < 5_000
    made = images(ledger, bomb=bomb, large=huge(8_000, 8_000), wide=huge(12_000, 8_000))
    assert made.created == 0
    told = reasons(made)
    assert "DecompressionBomb" in told["bomb"] and "DecompressionBomb" in told["wide"]
    assert told["large"] == "64000000 pixels, at most 50000000 are taken"


def test_bytes_that_are_no_usable_image_are_rejected_one_by_one(ledger: Ledger) -> None:
    deep = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    file = io.BytesIO()
    deep.save(file, "PNG")
    svg = b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"
    cut = png(5, (64, 64))[:-40]
    made = images(ledger, deep=file.getvalue(), svg=svg, eps=eps, cut=cut, no=b"", good=png(1))
    assert made.created == 1 and set(reasons(made)) == {"deep", "svg", "eps", "cut", "no"}
    assert "more than 8 bits" in reasons(made)["deep"]
    assert "not an image of the formats" in reasons(made)["svg"]
    limits = ContentLimits(image_bytes=50)
    one = push_items(ledger, "p", [PushedItem("x", png(7))], prefixes=NOTHING, limits=limits)
    assert "at most 50 are taken" in reasons(one)["x"]
    few = ContentLimits(call_pixels=100)
    two = [PushedItem(i, png(n)) for n, i in enumerate("yz")]
    spent = push_items(ledger, "p", two, prefixes=NOTHING, limits=few)
    assert spent.created == 1 and "send fewer at once" in reasons(spent)["z"]


def test_images_of_every_mode_train_a_round(ledger: Ledger) -> None:
    modes = {"L": 7, "RGB": (1, 2, 3), "RGBA": (1, 2, 3, 4), "P": 3, "1": 1, "CMYK": (1, 2, 3, 4)}
    given = {}
    for n, (mode, value) in enumerate(modes.items()):
        file = io.BytesIO()
        Image.new(mode, (9 + n, 8), value).save(file, "TIFF")  # type: ignore[arg-type]
        given[mode] = file.getvalue()
    assert images(ledger, **given).created == len(modes)
    assert work(ledger).state == "done"
    ledger.label("p", "a", [LabelEntry(i, CLASSES[n % 3]) for n, i in enumerate(given)])
    done = work(ledger)
    assert done.state == "done", done.error
    assert content_of(ledger, "p", "RGB")[1] == "image/tiff"


@pytest.mark.parametrize(
    "features",
    [
        None,
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [1, 2, 3, "4"],
        [1, 2, 3, True],
        [1, 2, 3, float("nan")],
        [1, 2, 3, float("inf")],
        [1, 2, 3, 1e39],
        [1, 2, 3, 10**400],
        [1, 2, 3, [4]],
        {"a": 1, "b": 2, "c": 3},
        {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5},
        "abcd",
    ],
)
def test_rows_that_do_not_fit_are_rejected(features: Any, tmp_path: Path) -> None:
    ledger = project(tmp_path, rows(2))
    made = push_items(ledger, "p", [PushedItem("x", features=features)], prefixes=NOTHING)
    assert made.created == 0 and set(reasons(made)) == {"x"}


def test_rows_come_back_as_they_were_sent(tmp_path: Path) -> None:
    ledger = project(tmp_path, rows(2))
    named = dict(zip(reversed(FEATURES), (4, 3.5, 2, 1), strict=True))
    made = push_items(ledger, "p", [PushedItem("x", features=named)], prefixes=NOTHING)
    assert made.created == 1
    data, kind = content_of(ledger, "p", "x")
    assert kind == "application/json"
    assert json.loads(data) == {"features": {"a": 1.0, "b": 2.0, "c": 3.5, "d": 4.0}}


def test_items_by_id_and_by_key(ledger: Ledger) -> None:
    assert known_items(ledger, "p", ["a"]) == [False]
    images(ledger, a=png(1))
    assert known_items(ledger, "p", ["a", "b"]) == [True, False]
    key = int(id_keys(["a"])[0])
    assert item_of(ledger, "p", key) == "a"
    with pytest.raises(UnknownNameError, match=f"{key + 1:016x}"):
        item_of(ledger, "p", key + 1)
    with pytest.raises(UnknownNameError, match="no item 'b'"):
        content_of(ledger, "p", "b")
    ledger.forget_item("p", "a")
    assert known_items(ledger, "p", ["a"]) == [False]
    with pytest.raises(UnknownNameError):
        content_of(ledger, "p", "a")


def test_raw_images_are_shown_as_png(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    Pool.from_arrays(tmp_path, "raw", values, ids=["a"])
    ledger = Ledger(tmp_path)
    task = {"kind": "image", "classes": CLASSES}
    create_project(ledger, body(pool="raw", task=task, initial={"count": 1}), prefixes=NOTHING)
    data, kind = content_of(ledger, "p", "a")
    with Image.open(io.BytesIO(data)) as image:
        assert kind == "image/png" and (np.asarray(image) == values[0]).all()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"data": "AAAA"}, "id is 'None'"),
        ({"id": "", "data": "AAAA"}, "id is ''"),
        ({"id": "a\0b", "data": "AAAA"}, "printable"),
        ({"id": "x" * 1025, "data": "AAAA"}, "1 to 1024"),
        ({"id": 3, "data": "AAAA"}, "id is '3'"),
        ({"id": "\ud800", "data": "AAAA"}, "printable"),
        ({"id": "a"}, "one of data"),
        ({"id": "a", "data": "AAAA", "uri": "/x"}, "one of data"),
        ({"id": "a", "data": "not base64!"}, "not base64"),
        ({"id": "a", "data": 3}, "must be text"),
        ({"id": "a", "uri": ["x"]}, "must be text"),
        ({"id": "a", "data": "AAAA", "role": "train"}, "pool or test"),
        ({"id": "a", "data": "AAAA", "pickle": "x"}, "no key of an item"),
    ],
)
def test_objects_that_are_no_items(given: dict[str, Any], why: str) -> None:
    with pytest.raises(PoolError, match=why):
        PushedItem.of(given)


def test_a_uri_is_read_where_it_is_allowed(ledger: Ledger, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.png").write_bytes(png(9))
    given = [PushedItem("a", uri=str(data / "a.png")), PushedItem("b", uri="/etc/passwd")]
    made = push_items(ledger, "p", given, prefixes=Prefixes(paths=(str(data),)))
    assert made.created == 1 and "not a file or folder below" in reasons(made)["b"]
    assert content_of(ledger, "p", "a")[0] == png(9)


def lines(items: list[dict[str, Any] | str]) -> bytes:
    texts = [i if isinstance(i, str) else json.dumps(i) for i in items]
    return "\n".join(texts).encode() + b"\n"


def test_a_staged_file_is_one_snapshot(ledger: Ledger) -> None:
    def encoded(value: int) -> str:
        return base64.b64encode(png(value)).decode()

    images(ledger, old=png(1))
    given: list[dict[str, Any] | str] = [
        {"id": "a", "data": encoded(1)},
        {"id": "old", "data": encoded(2)},
        "no JSON",
        "",
        "[" * 100_000,
        {"id": "t", "data": encoded(3), "role": "test"},
        {"id": "u", "data": "?", "role": "test"},
        {"id": "b", "data": encoded(4)},
        "[1]",
    ]
    job = work(ledger, kind="ingest", file=stage(ledger.root, [lines(given)], limit=10**6))
    assert job.state == "done", job.error
    result = job.result
    assert (result["created"], result["unchanged"]) == (3, 0)
    assert [r["item"] for r in result["conflicts"]] == ["old"]
    rejected = {r["item"] for r in result["rejected"]}
    assert rejected == {"line 3", "line 5", "line 7", "line 9"} and result["rejected_count"] == 4
    pool = Project(ledger, "p").pool
    assert sorted(pool.ids("test")) == ["t"] and sorted(pool.ids()) == ["a", "b", "old"]
    again = ledger.add_job("p", "ingest", {"file": "../ledger.sqlite"})
    assert again.kind == "ingest"
    claimed = ledger.claim_job("me")
    assert claimed is not None
    assert not perform(ledger, claimed, "me")
    assert "is gone" in str(ledger.job(again.job).error)


def test_a_staged_file_makes_the_parts_of_an_ingest(tmp_path: Path) -> None:
    count = PART_ROWS + 100
    x = np.random.default_rng(0).normal(size=(count, 4))
    ids = [f"row-{i}" for i in range(count)]
    given = b"".join(
        json.dumps({"id": i, "features": row}).encode() + b"\n"
        for i, row in zip(ids, x.tolist(), strict=True)
    )
    ledger = project(tmp_path / "a", {})
    made = ingest_file(ledger, "p", stage(ledger.root, [given], limit=10**8), prefixes=NOTHING)
    assert made.created == count
    whole = Pool.from_arrays(tmp_path / "b", "rows", x, ids=ids, features=FEATURES)
    mine = Project(ledger, "p").pool
    assert [(p.rows, p.key_sum) for p in mine.parts] == [(p.rows, p.key_sum) for p in whole.parts]
    for one, other in zip(mine.parts, whole.parts, strict=True):
        assert mine.read(one).column("key").equals(whole.read(other).column("key"))
        assert mine.read(one).column("features").equals(whole.read(other).column("features"))


def test_staging_is_bounded_and_cleaned_by_age(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="more than 5 bytes"):
        stage(tmp_path, [b"abc", b"def"], limit=5)
    assert list((tmp_path / "inbox").iterdir()) == []
    names = [stage(tmp_path, [b"abc"], limit=5) for _ in range(3)]
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "r.jsonl").write_text("")
    now = time.time()
    os.utime(tmp_path / "inbox" / names[0], (now - 90_000, now - 90_000))
    os.utime(tmp_path / "inbox" / names[1], (now - 90_000, now - 90_000))
    assert clean(tmp_path, keep=[names[1]], now=now) == [tmp_path / "inbox" / names[0]]
    assert len(clean(tmp_path, now=now + 8 * 86_400)) == 3


def test_a_push_that_was_killed_before_its_commit_is_done_again(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        """The process died."""

    def dies(*given: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "commit_snapshot", dies)
        with pytest.raises(Killed):
            images(ledger, a=png(1))
    assert known_items(ledger, "p", ["a"]) == [False]
    assert images(ledger, a=png(1)).created == 1


def test_a_push_waits_for_another_one_and_then_says_so(ledger: Ledger) -> None:
    payload = {"kind": "image", "encoding": "file"}
    source = Source(payload, lambda: [Rows(["a"], [png(1)])])
    pool = ledger.project("p").pool
    with locked(ledger.root / "pools" / pool):
        started = time.monotonic()
        with pytest.raises(PoolError, match="another ingest writes"):
            push_sources(ledger, pool, [source], seconds=0.2)
        assert time.monotonic() - started >= 0.2


def test_a_push_reads_keys_of_the_pool_and_no_payloads(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    images(ledger, a=png(1), b=png(2))
    read: list[str] = []
    opened = open_random

    class Tile:
        """A record batch that notes which columns are asked for."""

        def __init__(self, batch: Any) -> None:
            self._batch = batch

        def column(self, name: str) -> Any:
            read.append(name)
            return self._batch.column(name)

    class Reader:
        """A reader of such batches."""

        def __init__(self, path: Path) -> None:
            self._reader = opened(path)
            self.num_record_batches = self._reader.num_record_batches

        def get_batch(self, number: int) -> Tile:
            return Tile(self._reader.get_batch(number))

    monkeypatch.setattr("rayal.pool.push.open_random", Reader)
    assert images(ledger, c=png(3)).created == 1
    assert set(read) == {"key"}
    assert images(ledger, a=png(1)).unchanged == 1
    assert set(read) == {"key", "id", "content_hash"}
