from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import forked
import numpy as np
import pytest
from ingest_cases import PAYLOAD, add, files, items, source

from rayal.errors import PoolError
from rayal.ledger.ledger import Ledger
from rayal.pool import write_parts as place
from rayal.pool.ingest import ingest, remove_stray_files, stray_files
from rayal.pool.reader import Pool
from rayal.pool.source import Rows, Source, keyed_hashes
from rayal.types import PART_BYTES, PART_ROWS, PARTS, TILE_ROWS, id_keys, part_rows


def test_rows_stand_in_key_order_over_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place.cuts, "__kwdefaults__", {"tile": 8, "rows": 32, "size": 10_000})
    pool = add(tmp_path, source(items(100)), source(items(7, 100), "test"))
    tables = [pool.read(part) for part in pool.parts_of("pool")]
    assert [len(t) for t in tables] == [32, 32, 32, 4]
    keys = np.concatenate([t.column("key").to_numpy() for t in tables])
    ids = [i for t in tables for i in t.column("id").to_pylist()]
    assert (np.diff(keys.astype(object)) > 0).all() and (id_keys(ids) == keys).all()
    assert dict(zip(ids, tables_data(tables), strict=True)) == items(100)
    assert pool.rows("test") == 7 and len(pool) == 100


def tables_data(tables: list[object]) -> list[bytes]:
    return [d for t in tables for d in t.column("data").to_pylist()]  # type: ignore[attr-defined]


def test_the_order_of_the_source_never_matters(tmp_path: Path) -> None:
    given = {**items(500), "same": items(1)["i0"]}
    names = list(given)
    shuffled = {names[i]: given[names[i]] for i in np.random.default_rng(0).permutation(len(names))}
    for subset in (None, (100, 7)):
        for duplicates in ("keep", "first"):
            options = {"subset": subset, "duplicates": duplicates}
            a, b = tmp_path / f"a{subset}{duplicates}", tmp_path / f"b{subset}{duplicates}"
            one = add(a, source(given), source(items(5, 900), "test"), **options)
            two = add(b, source(items(5, 900), "test"), source(shuffled, chunk=50), **options)
            assert files(a) == files(b)
            assert one.parts == two.parts and one.info == two.info


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1] * 50, [(0, 32), (32, 50)]),  # rows limit
        ([10] * 20, [(0, 8), (8, 16), (16, 20)]),  # bytes cut at a tile
        ([40] * 5, [(0, 2), (2, 4), (4, 5)]),  # one tile is too large
        ([500, 1, 1], [(0, 1), (1, 3)]),  # one row is too large
        ([10] * 10, [(0, 10)]),  # exactly full
        ([], []),
    ],
)
def test_parts_are_cut_at_tiles(sizes: list[int], expected: list[tuple[int, int]]) -> None:
    cuts = place.cuts(np.array(sizes, np.int64), tile=8, rows=32, size=100)
    assert list(cuts) == expected


def test_cuts_hold_their_limits() -> None:
    sizes = np.random.default_rng(0).integers(1, 40_000, 100_000)
    cuts = list(place.cuts(sizes))
    assert [a for a, _ in cuts[1:]] == [b for _, b in cuts[:-1]] and cuts[-1][1] == len(sizes)
    for start, stop in cuts:
        assert stop - start <= PART_ROWS and sizes[start:stop].sum() <= PART_BYTES
        assert stop == len(sizes) or (stop - start) % TILE_ROWS == 0 or stop - start < TILE_ROWS


@pytest.mark.parametrize(
    ("rows", "parts"),
    [(0, 0), (1, 1), (60_000, 15), (16 * TILE_ROWS, 16), (200_000, 13), (10**6, 62)],
)
def test_a_pool_has_parts_for_many_workers(rows: int, parts: int) -> None:
    cuts = list(place.cuts(np.ones(rows, np.int64)))
    assert len(cuts) == parts and part_rows(rows) % TILE_ROWS == 0
    assert len(cuts) >= min(-(-rows // TILE_ROWS), PARTS // 2)


def test_ingest_again_adds_only_what_is_new(tmp_path: Path) -> None:
    first = add(tmp_path, source(items(20)))
    again = add(tmp_path, source(items(20)))
    assert (first.snapshot, again.snapshot) == (1, 1)
    more = add(tmp_path, source(items(25)))
    assert more.snapshot == 2 and len(more) == 25
    assert more.parts[:1] == first.parts and more.parts[1].rows == 5
    assert more.info["unchanged"] == 20 and more.info["added"] == {"pool": 5, "test": 0}
    assert len(Pool.open(tmp_path, "p", 1)) == 20


def test_a_changed_item_is_refused_with_both_hashes(tmp_path: Path) -> None:
    add(tmp_path, source({"a": b"one", "b": b"two"}))
    with pytest.raises(
        PoolError, match=r"item 'a' is in the pool with content [0-9a-f]{32}, .* has [0-9a-f]{32}"
    ):
        add(tmp_path, source({"c": b"new", "a": b"other"}))
    with pytest.raises(PoolError, match="'b' is in the pool as pool, and given as test"):
        add(tmp_path, source({"b": b"two"}, "test"))
    assert Pool.open(tmp_path, "p").snapshot == 1


def test_one_id_in_one_ingest(tmp_path: Path) -> None:
    pool = add(tmp_path, source({"a": b"one"}), source({"a": b"one", "b": b"two"}))
    assert len(pool) == 2
    with pytest.raises(PoolError, match="id 'x' stands for two contents"):
        add(tmp_path, source({"x": b"one"}), source({"x": b"two"}))
    with pytest.raises(PoolError, match="id 'x' is given for the pool and for the test"):
        add(tmp_path, source({"x": b"one"}), source({"x": b"one"}, "test"))
    with pytest.raises(PoolError, match="id 'x' has two labels, \\['c', 'd'\\]"):
        add(tmp_path, source({"x": b"1"}, labels=["c"]), source({"x": b"1"}, labels=["d"]))


def test_ids_of_one_key_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def collide(ids: list[str]) -> object:
        return np.full(len(ids), 7, np.uint64)

    monkeypatch.setattr("rayal.pool.gather.id_keys", collide)
    with pytest.raises(PoolError, match=r"ids \['a', 'b'\] have the same 64-bit key"):
        add(tmp_path, source({"a": b"one", "b": b"one"}))


def test_equal_contents_are_counted_or_dropped(tmp_path: Path) -> None:
    given = {"b": b"same", "a": b"same", "c": b"other", "aa": b"same"}
    kept = add(tmp_path / "keep", source(given))
    assert len(kept) == 4
    assert kept.info["duplicates"] == {"count": 2, "groups": [["a", "aa", "b"]]}
    first = add(tmp_path / "first", source(given), duplicates="first")
    assert sorted(first.ids()) == ["a", "c"]


def test_equal_contents_are_those_of_one_role(tmp_path: Path) -> None:
    ids = [f"i{n}" for n in range(20)]
    pool, test = (
        source(dict.fromkeys(ids[:10], b"x")),
        source(dict.fromkeys(ids[10:], b"x"), "test"),
    )
    kept = add(tmp_path, pool, test, duplicates="first")
    assert (len(kept), kept.rows("test")) == (1, 1)
    assert kept.info["duplicates"] == {"count": 18, "groups": [ids[:10], ids[10:]]}


def test_the_first_of_equal_contents_is_that_of_the_pool(tmp_path: Path) -> None:
    add(tmp_path, source({"m": b"same", "n": b"other"}))
    new = source({"a": b"same", "z": b"fresh"})
    pool = add(tmp_path, new, source({"t": b"same"}, "test"), duplicates="first")
    assert sorted(pool.ids()) == ["m", "n", "z"] and list(pool.ids("test")) == ["t"]
    assert pool.info["duplicates"] == {"count": 1, "groups": [["a", "m"]]}
    assert add(tmp_path, new, duplicates="first").snapshot == pool.snapshot


def test_a_subset_has_the_smallest_keyed_hashes(tmp_path: Path) -> None:
    given = items(50)
    pool = add(tmp_path, source(given), source(items(5, 50), "test"), subset=(10, 3))
    order = np.argsort(keyed_hashes(given, b"3"))
    assert sorted(pool.ids()) == sorted(list(given)[i] for i in order[:10])
    assert pool.rows("test") == 5
    again = add(tmp_path, source(given), source(items(5, 50), "test"), subset=(10, 3))
    assert again.snapshot == 1
    assert set(pool.ids()) != set(add(tmp_path / "b", source(given), subset=(10, 4)).ids())


def test_quarantined_rows_are_listed(tmp_path: Path) -> None:
    pool = add(tmp_path, source(items(5), quarantined=10))
    assert pool.info["quarantined"]["count"] == 10
    assert pool.info["quarantined"]["rows"][0] == ["bad0000", "broken"]
    with pytest.raises(PoolError, match=r"11 of 1011 rows cannot be used.*'bad0000': broken"):
        add(tmp_path, source(items(1000), quarantined=11))
    assert len(add(tmp_path, source(items(1100), quarantined=11))) == 1100


def test_what_makes_no_pool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="no source was given"):
        add(tmp_path)
    with pytest.raises(PoolError, match="no usable rows"):
        add(tmp_path, source({}))
    with pytest.raises(PoolError, match="an id is empty"):
        add(tmp_path, source({"": b"x"}))
    with pytest.raises(PoolError, match="the sources differ"):
        add(tmp_path, source(items(1)), Source({"kind": "table", "features": ["x"]}, lambda: []))
    with pytest.raises(PoolError, match="is not a name of a pool"):
        ingest(tmp_path, "../p", [source(items(1))])
    with pytest.raises(PoolError, match="duplicates is 'last'; it is keep or first"):
        add(tmp_path, source(items(1)), duplicates="last")
    add(tmp_path, source(items(1)))
    with pytest.raises(PoolError, match="ingest it into another pool"):
        add(tmp_path, Source({"kind": "table", "features": ["x"]}, lambda: []))


def test_progress_counts_rows(tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    add(
        tmp_path,
        source(items(4)),
        source(items(2, 4), "test"),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(3, 6), (4, 6), (4, 6), (6, 6), (6, 6)]
    unknown = Source(PAYLOAD, lambda: [Rows(["x"], [b"x"])])
    add(tmp_path, source(items(1)), unknown, progress=lambda *rows: seen.append(rows))
    assert seen[-1] == (2, None)


def test_two_ingests_at_once_are_refused(tmp_path: Path) -> None:
    def read() -> Iterator[Rows]:
        with pytest.raises(PoolError, match="another ingest writes to"):
            add(tmp_path, source(items(1)))
        with Ledger(tmp_path) as ledger, pytest.raises(PoolError, match="another ingest"):
            remove_stray_files(ledger, "p")
        yield Rows(["a"], [b"a"])

    assert len(add(tmp_path, Source(PAYLOAD, read))) == 1


SCRIPT = """
import sys
from rayal.pool.ingest import ingest
from rayal.pool.source import Rows, Source
given = [(f"i{n}", b"x" * n) for n in range(100)]
read = lambda: [Rows([i for i, _ in given], [p for _, p in given], ["c"] * 100, "class")]
raw = {"kind": "image", "encoding": "file"}
test = lambda: [Rows(["t"], [b"t"])]
ingest(sys.argv[1], "p", [Source(raw, read), Source(raw, test, "test")])
"""


@pytest.mark.processes
@pytest.mark.parametrize("point", ["ingest.part:2", "ingest.commit"])
def test_killed_and_repeated_it_gives_the_same(tmp_path: Path, point: str) -> None:
    environment = {**os.environ, "RAYAL_FAILPOINT": point}
    killed = forked.run("-c", SCRIPT, tmp_path, env=environment, check=False)
    assert killed.returncode == -9, killed.stderr
    left = files(tmp_path)
    with Ledger(tmp_path) as ledger:
        assert ledger.pools() == []
        assert {f.name for f in stray_files(ledger, "p")} == set(left)
    read = Rows([f"i{n}" for n in range(100)], [b"x" * n for n in range(100)], ["c"] * 100, "class")
    pool = add(
        tmp_path,
        Source(PAYLOAD, lambda: [read]),
        Source(PAYLOAD, lambda: [Rows(["t"], [b"t"])], "test"),
    )
    assert files(tmp_path) == left and len(left) == 3
    assert pool.snapshot == 1 and len(pool) == 100
    with Ledger(tmp_path) as ledger:
        assert stray_files(ledger, "p") == []


def test_leftovers_of_a_killed_ingest_are_removed(tmp_path: Path) -> None:
    first = add(tmp_path, source(items(3), labels=["a", "b", "c"]))
    second = add(tmp_path, source(items(1, 3), labels=["d"]))
    folder = tmp_path / "pools/p"
    for name in ("pool-0123.arrow", "labels-0123.arrow", ".tmp-0123"):
        (folder / name).write_bytes(b"left over")
    add(tmp_path, source(items(1, 4)))
    names = set(files(tmp_path))
    assert {f"{part.part}.arrow" for part in second.parts} < names
    assert not names & {"pool-0123.arrow", "labels-0123.arrow", ".tmp-0123"}
    assert first.read(first.parts[0]).num_rows == 3
    (folder / "pool-0123.arrow").write_bytes(b"left over")
    with Ledger(tmp_path) as ledger:
        assert remove_stray_files(ledger, "p") == [folder / "pool-0123.arrow"]
    for pool in (first, second):
        file = pool.labels_file()
        assert file is not None and file.exists()
