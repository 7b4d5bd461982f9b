"""An older ledger becomes a newer one whole, or stays what it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from postgres_server import PostgresServer
from revision_cases import NEW, OLD, contents, differences, later, outline
from sqlalchemy import Engine, create_engine, text
from test_ledger_events import make_busy

import rayal.ledger.database as database_module
import rayal.ledger.upgrade as upgrade_module
from rayal.cli.app import main
from rayal.errors import BusyError, LedgerError, SettingsError, StorageError
from rayal.ledger import Event, Ledger
from rayal.ledger.database import open_database, sqlite, writing
from rayal.ledger.ledger import replay
from rayal.ledger.location import held
from rayal.ledger.schema import SCHEMA, Schema, noted_version
from rayal.ledger.upgrade import Upgrade, migrate, upgrade

FIRST = Path(__file__).parent / "revision_0001.sql"  # a ledger written by the first rayal
KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from revision_cases import later
from rayal.ledger.upgrade import upgrade
upgrade(sys.argv[1], schema=later(Path(sys.argv[2])))
"""
Empty = Callable[[], Engine]
on_files = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def newer(tmp_path: Path) -> Schema:
    return later(tmp_path / "later")


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Callable[[], str | None]:
    """Return how a test gets a database for a storage root: None for a file."""
    if request.param == "sqlite":
        return lambda: None
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.database


@pytest.fixture
def root(database: Callable[[], str | None], tmp_path: Path) -> Path:
    """Return a storage root with a ledger of today, filled in every table, and closed."""
    with Ledger(tmp_path / "root", database=database()) as ledger:
        make_busy(ledger)
        with ledger.once("ann", "other", "request") as request:
            request.store(200, b"kept")
    return tmp_path / "root"


@pytest.fixture
def empty(database: Callable[[], str | None], tmp_path: Path) -> Iterator[Empty]:
    """Return a maker of engines on empty databases."""
    made: list[Engine] = []

    def make() -> Engine:
        url = database()
        file = tmp_path / f"empty{len(made)}.sqlite"
        made.append(sqlite(file) if url is None else create_engine(url))
        return made[-1]

    yield make
    for engine in made:
        engine.dispose()


def opened(root: Path, schema: Schema = SCHEMA) -> Engine:
    return open_database(root, None, create=False, schema=schema)


def state(root: Path, schema: Schema = SCHEMA) -> tuple[Any, ...]:
    """Return all that a ledger is and holds."""
    engine = opened(root, schema)
    with engine.connect() as conn:
        found = noted_version(conn), outline(conn), contents(engine, schema.metadata)
    engine.dispose()
    return found


def events(root: Path) -> list[Event]:
    with Ledger(root, create=False) as ledger:
        return list(ledger.events())


def backups(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if "before" in path.name)


def test_the_version_is_the_last_of_the_revisions() -> None:
    scripts = ScriptDirectory(SCHEMA.scripts[0], version_locations=SCHEMA.scripts)
    names = [script.revision for script in scripts.walk_revisions()]
    assert names[::-1] == [f"{number:04}" for number in range(1, int(SCHEMA.version) + 1)]


@pytest.mark.parametrize("which", ["today", "later"])
def test_the_revisions_make_what_a_new_ledger_is(which: str, empty: Empty, newer: Schema) -> None:
    schema = SCHEMA if which == "today" else newer
    made, migrated = empty(), empty()
    with made.begin() as conn:
        schema.create(conn)
    with migrated.begin() as conn:
        migrate(conn, None, schema)
    assert differences(migrated, schema.metadata) == []
    with made.connect() as one, migrated.connect() as other:
        assert outline(one) == outline(other)
        assert noted_version(one) == noted_version(other) == schema.version


def test_an_older_ledger_is_upgraded_with_every_row(
    root: Path, empty: Empty, newer: Schema
) -> None:
    before, told = state(root), events(root)
    assert all(before[2].values())  # no table is empty
    done = upgrade(root, schema=newer)
    assert (done.found, done.version) == (OLD, NEW)
    engine, new, copy = opened(root, newer), empty(), empty()
    assert contents(engine) == before[2]
    assert differences(engine, newer.metadata) == []
    with new.begin() as conn:
        newer.create(conn)
    with engine.connect() as one, new.connect() as other:
        assert outline(one) == outline(other)
        assert one.scalar(text("SELECT min(weight) FROM labels")) == 3
    replay(told, copy, newer)
    untold = {"idempotency", "beats"}
    upgraded, replayed = (contents(e, newer.metadata) for e in (engine, copy))
    assert {n: r for n, r in upgraded.items() if n not in untold} == {
        n: r for n, r in replayed.items() if n not in untold
    }
    with engine.begin() as conn:  # numbers of events go on, and are never given twice
        conn.execute(text("INSERT INTO events (time, payload) VALUES (0, '[]')"))
        conn.execute(text("DELETE FROM events WHERE seq = :last"), {"last": told[-1].seq + 1})
        conn.execute(text("INSERT INTO events (time, payload) VALUES (0, '[]')"))
        assert conn.scalar(text("SELECT max(seq) FROM events")) == told[-1].seq + 2
    engine.dispose()
    for call in (Ledger, upgrade):  # of the older program
        with pytest.raises(
            LedgerError, match=f"version {NEW}, this rayal reads {OLD}; open it with the"
        ):
            call(root)


def test_an_upgraded_file_keeps_its_pragmas(tmp_path: Path, newer: Schema) -> None:
    Ledger(tmp_path).close()
    upgrade(tmp_path, schema=newer)
    wanted = {
        "journal_mode": "wal",
        "secure_delete": 1,
        "foreign_keys": 1,
        "locking_mode": "normal",
    }
    engine = opened(tmp_path, newer)
    with engine.connect() as conn:
        assert {n: conn.exec_driver_sql(f"PRAGMA {n}").scalar() for n in wanted} == wanted
    engine.dispose()


def test_the_first_ledgers_are_revision_1(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as connection:
        connection.executescript(FIRST.read_text())
    made = sqlite(tmp_path / "made.sqlite")
    with made.begin() as conn:
        migrate(conn, None, replace(SCHEMA, version="1"))
    first = sqlite(tmp_path / "ledger.sqlite")
    with first.connect() as one, made.connect() as other:
        assert outline(one) == outline(other)
    first.dispose()
    upgrade(tmp_path)  # nothing to do as long as there is no later revision
    with Ledger(tmp_path, create=False) as ledger:
        assert (ledger.projects(), len(ledger.labels("p"))) == (["p"], 5)
        copy = sqlite(tmp_path / "copy.sqlite")
        replay(ledger.events(), copy)
        untold: dict[str, list[str]] = {"idempotency": [], "beats": []}
        assert contents(ledger.engine) | untold == contents(copy) | untold
        copy.dispose()
    made.dispose()


def test_the_backup_is_a_ledger_of_the_old_version(
    root: Path, tmp_path: Path, newer: Schema, database: Callable[[], str | None]
) -> None:
    before = state(root)
    done = upgrade(root, schema=newer)
    assert done.backup is not None
    assert backups(root) == [done.backup.name]
    restored, url = tmp_path / "restored", database()
    if url is None:
        restored.mkdir()
        assert done.backup.match(f"ledger-before-{int(NEW):04}-*Z.sqlite")
        shutil.copy(done.backup, restored / "ledger.sqlite")
    else:
        assert done.backup.match(f"ledger-before-{int(NEW):04}-*Z.dump")
        assert done.backup.stat().st_mode & 0o777 == 0o600
        plain = url.replace("+psycopg", "")
        subprocess.run(["pg_restore", "--no-owner", "-d", plain, done.backup], check=True)
    with Ledger(restored, database=url) as ledger:
        assert ledger.projects() == ["p"]
    assert state(restored) == before


@on_files
def test_the_backup_may_go_elsewhere(root: Path, tmp_path: Path, newer: Schema) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    shutil.copytree(root, tmp_path / "other")
    done = upgrade(root, backup=folder / "before", schema=newer)
    assert done.backup == folder / "before" and done.backup.stat().st_size > 0
    assert backups(root) == []
    done = upgrade(tmp_path / "other", backup=folder, schema=newer)
    assert done.backup is not None and backups(folder) == ["before", done.backup.name]


def test_a_ledger_that_fits_needs_nothing(root: Path, newer: Schema) -> None:
    before = state(root)
    with Ledger(root):  # it may be in use
        done = upgrade(root)
    assert (done.found, done.version, done.backup) == (None, OLD, None)
    assert state(root) == before
    upgrade(root, backed_up=True, schema=newer)
    again = upgrade(root, schema=newer)
    assert (again.found, again.version) == (None, NEW)
    assert backups(root) == []


@on_files
def test_an_older_ledger_is_opened_by_no_other_command(root: Path, newer: Schema) -> None:
    spaced = root.rename(root.with_name("my root"))
    with pytest.raises(
        LedgerError, match=rf"{OLD}, this rayal reads {NEW}; .*: rayal upgrade '/.*/my root'"
    ):
        opened(spaced, newer)


def test_a_ledger_in_use_is_left_alone(
    root: Path, newer: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(root)
    with Ledger(root) as ledger, monkeypatch.context() as patch:
        for module in (database_module, upgrade_module):
            patch.setattr(module, "OTHERS_SECONDS", 0)
        assert ledger.projects() == ["p"]
        with pytest.raises(BusyError, match=r"another process works on .*stop the service"):
            upgrade(root, schema=newer)
        ledger.create_project("goes on", "digits", {})
    assert state(root)[:2] == before[:2]
    assert not [name for name in backups(root) if name.startswith(".")]
    assert upgrade(root, schema=newer).found == OLD


@on_files
def test_an_upgrade_waits_for_an_opener(root: Path, newer: Schema) -> None:
    with held(root):
        upgrading = threading.Thread(target=lambda: upgrade(root, schema=newer))
        upgrading.start()
        upgrading.join(timeout=0.3)
        assert upgrading.is_alive()
        assert backups(root) == []
    upgrading.join()
    assert state(root, newer)[0] == NEW


def test_of_two_upgrades_one_finds_nothing_to_do(root: Path, newer: Schema) -> None:
    done: list[Upgrade] = []
    barrier = threading.Barrier(2)

    def work() -> None:
        barrier.wait()
        done.append(upgrade(root, schema=newer))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(d.found) for d in done) == sorted([OLD, "None"])
    assert len(backups(root)) == 1


@pytest.mark.processes
@pytest.mark.parametrize("point", ["upgrade.backup", "upgrade.commit"])
def test_a_killed_upgrade_leaves_the_old_ledger(point: str, root: Path, tmp_path: Path) -> None:
    before = state(root)
    argv = [
        sys.executable,
        "-c",
        KILLED,
        str(root),
        str(tmp_path / "a"),
        str(Path(__file__).parent),
    ]
    environment = os.environ | {"RAYAL_FAILPOINT": point}
    killed = subprocess.run(argv, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert state(root) == before
    (left,) = backups(root)
    assert left.startswith(".tmp-") == (point == "upgrade.backup")
    (root / left).rename(root / re.sub(r"\d+T\d+Z", "20000101T000000Z", left))
    newer = later(tmp_path / "b")
    assert upgrade(root, schema=newer).found == OLD
    assert state(root, newer)[0] == NEW
    assert not [name for name in backups(root) if name.startswith(".")]


def test_a_revision_that_fails_changes_nothing(
    root: Path, newer: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(root)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(upgrade_module, "note_version", fail)
    with pytest.raises(ZeroDivisionError):
        upgrade(root, backed_up=True, schema=newer)
    assert state(root) == before


def test_rows_without_their_parents_are_refused(tmp_path: Path, newer: Schema) -> None:
    with Ledger(tmp_path) as ledger:
        make_busy(ledger)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as connection, connection:
        connection.execute("DELETE FROM snapshots WHERE number = 1")  # unfollowed keys
    with pytest.raises(LedgerError, match="1 rows without their parents, the first in 'parts'"):
        upgrade(tmp_path, schema=newer)
    assert state(tmp_path)[0] == OLD


def test_a_damaged_ledger_is_refused(tmp_path: Path, newer: Schema) -> None:
    with Ledger(tmp_path) as ledger:
        make_busy(ledger)
    file = tmp_path / "ledger.sqlite"
    with closing(sqlite3.connect(file)) as connection:
        name = "labels_item"
        query = "SELECT rootpage FROM sqlite_master WHERE name = ?"
        (page,) = connection.execute(query, (name,)).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    data = bytearray(file.read_bytes())
    data[size * (page - 1) + 100 : size * page] = bytes(size - 100)  # cells are gone
    file.write_bytes(data)
    with pytest.raises(StorageError, match=r"backup .* nothing was changed"):
        upgrade(tmp_path, schema=newer)
    assert file.read_bytes() == bytes(data)
    assert backups(tmp_path) == []


@on_files
@pytest.mark.parametrize("version", ["x", "", "0", "-1", "²"])
def test_versions_that_nobody_writes_are_refused(version: str, root: Path) -> None:
    engine = opened(root)
    with writing(engine) as conn:
        conn.execute(text("UPDATE meta SET value = :version"), {"version": version})
    engine.dispose()
    for call in (upgrade, Ledger):
        with pytest.raises(LedgerError, match="which no rayal writes"):
            call(root)


@on_files
def test_a_backup_must_have_a_place(root: Path, tmp_path: Path, newer: Schema) -> None:
    before = state(root)
    (tmp_path / "taken").touch()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("exists; name another", {"backup": tmp_path / "taken"}),
        ("does not exist; make it", {"backup": tmp_path / "no" / "backup"}),
        ("give one of the two", {"backup": tmp_path / "new", "backed_up": True}),
    ]
    for message, options in wrong:
        with pytest.raises(SettingsError, match=message):
            upgrade(root, schema=newer, **options)
    assert state(root) == before


def test_without_pg_dump_the_operator_says_that_there_is_a_backup(
    postgres: PostgresServer, tmp_path: Path, newer: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(tmp_path, database=postgres.database()).close()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LedgerError, match=r"pg_dump and pg_restore are not on PATH.*--backed-up"):
        upgrade(tmp_path, schema=newer)
    assert upgrade(tmp_path, schema=newer, backed_up=True).backup is None
    assert state(tmp_path, newer)[0] == NEW


def test_a_pg_dump_that_fails_changes_nothing(
    postgres: PostgresServer, tmp_path: Path, newer: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(tmp_path / "root", database=postgres.database()).close()
    before = state(tmp_path / "root")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("pg_dump", "pg_restore"):
        (programs / name).write_text("#!/bin/sh\necho 'another server version' >&2\nexit 1\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    with pytest.raises(StorageError, match="failed: another server version; nothing was changed"):
        upgrade(tmp_path / "root", schema=newer)
    assert state(tmp_path / "root") == before
    assert backups(tmp_path / "root") == []


def test_what_is_written_during_the_backup_is_noticed(
    postgres: PostgresServer, tmp_path: Path, newer: Schema, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(tmp_path, database=postgres.database()).close()

    def dump(url: object, path: Path) -> None:
        with Ledger(tmp_path) as ledger:
            ledger.create_project("meanwhile", "digits", {})

    monkeypatch.setattr(upgrade_module, "dump_postgresql", dump)
    monkeypatch.setattr(upgrade_module, "_OTHERS", text("SELECT 0 WHERE :name <> ''"))  # gone again
    with pytest.raises(BusyError, match="was written to while it was backed up"):
        upgrade(tmp_path, schema=newer)
    assert state(tmp_path)[0] == OLD


def test_rows_of_both_versions_are_replayed(root: Path, empty: Empty, newer: Schema) -> None:
    told = events(root)
    item = {"project": "p", "round": None, "rank": None, "score": None, "need": 1, "accepted": 0}
    item |= dict.fromkeys(("conflict", "skipped", "forgotten", "open"), False)
    rows = [{**item, "item": name, "note": f"of {name}"} for name in ("new", "newer")]
    label = {"project": "p", "seq": 1, "weight": 9}
    mark = {"project": "p", "item": "new", "mark": "!"}
    payload = [["insert", "items", *rows], ["update", "labels", label], ["insert", "marks", mark]]
    engine = empty()
    replay([*told, Event(told[-1].seq + 1, 0.0, "p", "later", payload)], engine, newer)
    with engine.connect() as conn:
        notes = conn.execute(text("SELECT item, note FROM items WHERE project = 'p'")).all()
        weights = conn.scalars(text("SELECT weight FROM labels WHERE project = 'p' ORDER BY seq"))
        assert weights.all() == [9, 3, 3, 3, 3]
        assert conn.scalars(text("SELECT mark FROM marks")).all() == ["!"]
    assert {i: n for i, n in notes if n} == {"new": "of new", "newer": "of newer"}
    assert {i for i, n in notes if n is None} == {"a", "b", "c", "z"} & {i for i, _ in notes}


@pytest.mark.parametrize("database_there", [False, True])
def test_a_root_without_a_ledger_is_refused(
    database_there: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if database_there:
        (tmp_path / "database").write_text(request.getfixturevalue("postgres").database())
    with pytest.raises(StorageError, match="there is no ledger at"):
        upgrade(tmp_path)
    with pytest.raises(StorageError, match="there is no ledger at"):
        upgrade(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *argv: str | Path
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["rayal", "upgrade", *map(str, argv)])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


@on_files
def test_the_command_says_what_was_done(
    root: Path, newer: Schema, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = command(monkeypatch, capsys, root)
    assert code == 0 and "nothing to do" in out
    monkeypatch.setattr(upgrade_module, "upgrade", partial(upgrade, schema=newer))
    code, out, _ = command(monkeypatch, capsys, root, "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["schema version"], told["upgrade"]) == (NEW, f"from {OLD}")
    assert Path(told["backup"]).exists()
    code, out, err = command(monkeypatch, capsys, root / "nothing")
    assert (code, out) == (2, "") and err.startswith("error: there is no ledger at")


@pytest.mark.processes
def test_opening_a_ledger_loads_no_alembic(tmp_path: Path) -> None:
    code = (
        "import sys; from rayal.ledger import Ledger; import rayal.cli.app; Ledger(sys.argv[1]); "
        "sys.exit(any(name.split('.')[0] in ('alembic', 'mako') for name in sys.modules))"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(argv, check=False).returncode == 0
