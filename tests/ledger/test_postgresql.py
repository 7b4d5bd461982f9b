"""The ledger on PostgreSQL: the same rules, other locks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer

from rayal.errors import LedgerError
from rayal.ledger import LabelEntry, Ledger, Pick, database
from rayal.ledger.ledger import rebuild
from rayal.ledger.schema import UNTOLD, metadata


@pytest.fixture
def ledger(postgres: PostgresServer, tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "root", database=postgres.database()) as opened:
        for project in ("p", "q"):
            opened.create_project(project, "digits", {})
            picks = [Pick(f"i{i}", i, i, None, None) for i in range(20)]
            opened.commit_selection(project, -1, picks, [], {}, stage=None, output={}, seconds=0)
        yield opened


def tables(ledger: Ledger) -> dict[str, list[str]]:
    found = {}
    with ledger.engine.connect() as conn:
        for name, table in metadata.tables.items():
            if name not in UNTOLD:
                rows = conn.execute(table.select()).mappings()
                found[name] = sorted(repr(sorted(row.items())) for row in rows)
    return found


def test_a_root_remembers_its_database(ledger: Ledger, postgres: PostgresServer) -> None:
    note = ledger.root / "database"
    assert note.stat().st_mode & 0o777 == 0o600
    assert not (ledger.root / "ledger.sqlite").exists()
    with Ledger(ledger.root, create=False) as again:
        assert again.projects() == ["p", "q"]
        assert again.engine.url == ledger.engine.url
    with pytest.raises(LedgerError, match=r"keeps its ledger in .* given was"):
        Ledger(ledger.root, database=postgres.database())


def test_a_root_with_a_file_takes_no_database(tmp_path: Path, postgres: PostgresServer) -> None:
    Ledger(tmp_path).close()
    with pytest.raises(LedgerError, match=r"keeps its ledger in ledger\.sqlite"):
        Ledger(tmp_path, database=postgres.database())


def test_opening_by_many_at_once_makes_one_ledger(tmp_path: Path, postgres: PostgresServer) -> None:
    url, found = postgres.database(), []

    def work(number: int) -> None:
        with Ledger(tmp_path / f"root{number}", database=url) as opened:
            opened.create_project(f"p{number}", "digits", {})
            found.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Ledger(tmp_path / "root", database=url) as opened:
        assert opened.projects() == [f"p{i}" for i in sorted(found)] == [f"p{i}" for i in range(8)]


def test_names_are_ordered_by_code_point(ledger: Ledger) -> None:
    names = ["Zebra", "apple", "Äpfel", "_x", "a b"]
    ledger.label("p", "ann", [LabelEntry(name, 1) for name in names])
    page = ledger.items_page("p", limit=100)
    assert [r.item for r in page] == sorted([*names, *(f"i{i}" for i in range(20))])
    after = ledger.items_page("p", after="a b", limit=100)
    assert [r.item for r in after] == [r.item for r in page if r.item > "a b"]


def test_projects_do_not_wait_for_each_other(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.lease("p", "ann", 1)
        done: list[int] = []
        other = threading.Thread(target=lambda: done.append(len(ledger.lease("q", "bob", 3))))
        other.start()
        other.join(10)
        # its event waits for no other: p's is told only when the block ends
        assert done == [3]
        same = threading.Thread(target=lambda: done.append(len(ledger.lease("p", "bob", 30))))
        same.start()
        same.join(0.3)
        assert same.is_alive()
    same.join(10)
    assert done == [3, 19]


def test_threads_lease_every_item_once_and_events_tell_it(ledger: Ledger) -> None:
    got: list[str] = []

    def work(name: str) -> None:
        for project in ("p", "q"):
            while leases := ledger.lease(project, name, 2):
                got.extend(f"{project} {x.item}" for x in leases)
                ledger.label(project, name, [LabelEntry(x.item, 1, x.lease) for x in leases])

    threads = [threading.Thread(target=work, args=(f"a{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(f"{p} i{i}" for p in ("p", "q") for i in range(20))
    told = rebuild(ledger.events())
    found = tables(ledger)
    assert {n: sorted(repr(sorted(r.items())) for r in rows) for n, rows in told.items()} == found


def test_one_of_many_runners_gets_a_job(ledger: Ledger) -> None:
    for project in ("p", "q"):
        ledger.add_job(project, "round", {})
        ledger.add_job(project, "predict", {})
    got: list[str] = []
    barrier = threading.Barrier(6)

    def work(name: str) -> None:
        barrier.wait()
        job = ledger.claim_job(name)
        if job is not None:
            got.append(job.job)

    threads = [threading.Thread(target=work, args=(f"r{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    running = ledger.jobs(state="running")
    assert sorted(got) == sorted(j.job for j in running)
    assert sorted(j.project for j in running) == ["p", "q"]
    assert {j.kind for j in running} == {"round"}


def test_a_dropped_connection_is_replaced(ledger: Ledger) -> None:
    ledger.lease("p", "ann", 1)
    with database.writing(ledger.engine) as conn:
        conn.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
    assert len(ledger.lease("p", "bob", 1)) == 1
