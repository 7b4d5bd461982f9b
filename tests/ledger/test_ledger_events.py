from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from rayal.errors import LedgerError
from rayal.ledger import ColumnsPart, LabelEntry, Ledger, Pick, PoolPart, SkipEntry
from rayal.ledger import ledger as ledger_module
from rayal.ledger.ledger import rebuild, replay
from rayal.ledger.schema import UNTOLD, metadata

ANNOTATORS = ("ann", "bob", "cat")
ITEMS = ("a", "b", "c", "n")  # n is never offered
NEED = 2


def dump(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Read every table as the file holds it, with the storage type of every value."""
    connection = sqlite3.connect(path)
    names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master") if row[0]]
    told = metadata.tables.keys() - {*UNTOLD} | {"meta", "events"}
    tables = [n for n in names if n in told or n == "sqlite_sequence"]
    found = {}
    for table in tables:
        columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
        listed = ", ".join(f'"{c}", typeof("{c}")' for c in columns)
        found[table] = sorted(connection.execute(f'SELECT {listed} FROM "{table}"'), key=repr)
    connection.close()
    return found


def replayed(ledger: Ledger, path: Path) -> dict[str, list[tuple[object, ...]]]:
    path.unlink(missing_ok=True)
    engine = create_engine(f"sqlite:///{path}")
    replay(ledger.events(), engine)
    engine.dispose()
    return dump(path)


def make_busy(ledger: Ledger) -> None:
    """Write every table, by every operation."""
    for number in (1, 2):
        part = PoolPart(f"part{number}", f"pools/{number}", "pool", 3, 2**64 - number, 10)
        ledger.commit_snapshot("digits", [part], {"classes": ["ä", "b"], "ratio": 1.0})
    for project in ("p", "q"):
        ledger.create_project(
            project, "digits", {"labeling": {"labels_per_item": NEED}, "lr": 1e-3}
        )
        ledger.begin_round(project, 0, snapshot=2, labels_seq=0, seeds={"model": 1})
        for epoch in (1, 2):
            ledger.commit_checkpoint(
                project,
                0,
                model=project,
                member=0,
                epoch=epoch,
                file=f"{project}{epoch}",
                final=False,
            )
        ledger.commit_columns(project, 0, ColumnsPart(project, "part1", f"c{project}", 3, 2**63))
        ledger.finish_stage(project, 0, "train", {"loss": 0.1}, seconds=1 / 3)
        ledger.label(project, "import", [LabelEntry("b", "early")])
        picks = [Pick(i, 2**63 + n, n, 1 / (n + 3), None) for n, i in enumerate("abc")]
        others = [Pick("z", 1, 0, None, 1e-300)]
        ledger.commit_selection(
            project, 0, picks, others, {"seed": 2**70}, stage="select", output={}, seconds=2
        )
        ledger.lease(project, "ann", 2, ttl=10, now=100)
        (mine,) = ledger.lease(project, "bob", 1, ttl=10, now=105)
        ledger.extend(project, mine.lease, 5, now=130)
        ledger.label(project, "bob", [LabelEntry("a", 1.0, mine.lease)], now=131)
        ledger.label(project, "bob", [LabelEntry("a", 1, mine.lease)], now=132)
        ledger.give_back(project, ledger.lease(project, "cat", 1)[0].lease)
        ledger.label(project, "bob", [SkipEntry("c", "blurred")], now=140)
        ledger.retract(project, "bob", "a", now=141)
        job = ledger.add_job(project, "round", {"n": 0}, now=142)
        ledger.claim_job("runner", now=143)
        ledger.beat(job.job, "runner", {"done": 0.5}, now=144)
        ledger.finish_job(job.job, "runner", {"picks": 1.0}, now=145)
        ledger.commit_model(project, "r0000-abcd", 0, "abcd", {"accuracy": 0.5}, now=146)
        ledger.commit_suggestions(project, "r0000-abcd", [("a", "x", [0.5, 0.5])], now=147)
        ledger.commit_model(project, "r0001-bcde", 1, "bcde", {}, now=148)
        ledger.activate_model(project, "r0000-abcd", now=149)
        version = ledger.update_project(
            project, {"labeling": {"labels_per_item": NEED, "max_skips": 1}}, version=1, now=150
        )
        assert version == 2
        ledger.forget_item(project, "c", now=151)
    token = ledger.add_token("ann's", ["project:p:label"], "0" * 64, expires=1e9, now=160)
    ledger.revoke_token(token.token_id, now=161)
    with ledger.once("ann", "key", "request", now=162) as request:
        ledger.delete_project("q", now=162)
        request.store(204, b"")
    ledger.commit_checkpoint("p", 0, model="p", member=0, epoch=2, file="final", final=True)
    ledger.forget_files(["p1", "cq"])


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as opened:
        yield opened


def test_every_table_of_a_busy_ledger_is_rebuilt_bit_for_bit(ledger: Ledger) -> None:
    make_busy(ledger)
    original = dump(ledger.root / "ledger.sqlite")
    assert set(original) == metadata.tables.keys() - {"idempotency", "beats"} | {"sqlite_sequence"}
    assert all(original.values())  # no table is empty
    assert replayed(ledger, ledger.root / "copy.sqlite") == original


def test_rebuild_returns_the_rows_as_values(ledger: Ledger) -> None:
    make_busy(ledger)
    tables = rebuild(ledger.events())
    assert set(tables) == set(metadata.tables) - {*UNTOLD}
    assert [row["key_sum"] for row in tables["parts"]] == [2**64 - 1, 2**64 - 2]
    assert [row["file"] for row in tables["checkpoints"]] == ["final", "q1", "q2"]


def test_a_rebuilt_ledger_goes_on(ledger: Ledger, tmp_path: Path) -> None:
    make_busy(ledger)
    new = tmp_path / "new"
    new.mkdir()
    replayed(ledger, new / "ledger.sqlite")
    with Ledger(new, create=False) as copy:
        assert copy.labels("p") == ledger.labels("p")
        copy.create_project("r", "digits", {})
        assert len(list(copy.events())) == len(list(ledger.events())) + 1


def test_replay_wants_an_empty_database(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="replay into an empty database"):
        replay(ledger.events(), ledger.engine)


def test_missing_events_are_noticed(ledger: Ledger) -> None:
    make_busy(ledger)
    events = list(ledger.events())
    with pytest.raises(LedgerError, match="does not follow from the events before it"):
        rebuild([events[0], events[0]])
    with pytest.raises(LedgerError, match="does not follow from the events before it"):
        rebuild(events[-1:])


def test_events_are_read_in_pages_by_project(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_busy(ledger)
    everything = list(ledger.events())
    monkeypatch.setattr(ledger_module, "_PAGE", 3)
    assert list(ledger.events()) == everything
    assert list(ledger.events(since=5)) == everything[5:]
    assert list(ledger.events(project="p")) == [e for e in everything if e.project == "p"]
    assert list(ledger.events(since=len(everything))) == []
    assert {e.kind for e in everything if e.project is None} == {"snapshot", "forget", "token"}


def test_a_failed_write_leaves_neither_rows_nor_event(ledger: Ledger) -> None:
    make_busy(ledger)
    before = dump(ledger.root / "ledger.sqlite")
    with pytest.raises(LedgerError, match="labels_seq 99"), ledger.transaction():
        ledger.label("p", "dan", [LabelEntry("a", 1)])
        ledger.begin_round("p", 1, snapshot=2, labels_seq=99, seeds={})
    assert dump(ledger.root / "ledger.sqlite") == before
