"""Upgrade an older ledger to the tables of this program: a backup, then one transaction.

Only this module and the revisions load Alembic. It orders and runs the revisions; which one a
ledger has is said by its schema version alone.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, func, inspect, make_url, select, text
from sqlalchemy.exc import OperationalError

from rayal.errors import BusyError, LedgerError, SettingsError, StorageError
from rayal.failpoints import failpoint
from rayal.ledger.database import (
    BUSY_SECONDS,
    OTHERS_SECONDS,
    as_ledger,
    lock,
    missing,
    postgresql,
    reading,
    refuse_network,
    sqlite,
)
from rayal.ledger.location import FILE, held, noted_database
from rayal.ledger.schema import SCHEMA, Schema, events, note_version, noted_version

_DRAFT = ".tmp-"  # prefix of names that never count


def backup_path(root: Path, wanted: Path | None, version: str, suffix: str) -> Path:
    """Return the path of a backup, or raise SettingsError unless a file may be made there.

    Args:
        root: the storage root, where it goes by default.
        wanted: a file, or a folder for a file of the default name.
        version: the schema version from before which it is.
        suffix: suffix of the default name.
    """
    path = root if wanted is None else wanted
    if path.is_dir():
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        numbers = chain([""], (f"-{number}" for number in count(2)))  # two within a second
        names = (f"ledger-before-{version}-{stamp}{number}{suffix}" for number in numbers)
        return next(path / name for name in names if not (path / name).exists())
    if path.exists():
        raise SettingsError(f"backup {str(path)!r} exists; name another file, or move it away")
    if not path.parent.is_dir():
        raise SettingsError(f"folder {str(path.parent)!r} does not exist; make it first")
    return path


def remove_drafts(root: Path) -> None:
    """Remove what killed upgrades of a storage root left there; no other one may be at work."""
    for draft in root.glob(f"{_DRAFT}ledger-before-*"):
        draft.unlink()


def copy_sqlite(source: sqlite3.Connection, ledger: Path, path: Path) -> None:
    """Copy a ledger's database to another file, and compare the two.

    Args:
        source: a connection to the ledger that lets no other one write.
        ledger: its file, whose permissions the copy gets.
        path: the copy.

    Raises:
        StorageError: the copy is not whole.
    """
    with _whole(path) as draft:
        try:
            with closing(sqlite3.connect(draft)) as target:
                source.backup(target)
                original, copied = _summary(source), _summary(target)
        except sqlite3.Error as error:
            raise StorageError(f"the backup {path} failed: {error}; nothing was changed") from error
        if original != copied or copied["integrity"] != "ok":
            raise StorageError(
                f"the backup {path} is not whole, or not what the ledger holds "
                f"({copied['integrity']}); nothing was changed: check the disks, or back up "
                "otherwise (docs/backup.md) and repeat with --backed-up"
            )
        shutil.copymode(ledger, draft)


def _summary(connection: sqlite3.Connection) -> dict[str, object]:
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    counts = {
        name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
        for (name,) in names.fetchall()
    }
    integrity: str = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    return {"integrity": " ".join(integrity.split()), "counts": counts}


def dump_postgresql(url: URL, path: Path) -> None:
    """Write a database to a file that pg_restore reads, and read it once.

    Args:
        url: the database.
        path: the file.

    Raises:
        LedgerError: the programs of PostgreSQL are not there.
        StorageError: one of them failed.
    """
    programs = [shutil.which(name) for name in ("pg_dump", "pg_restore")]
    dump, restore = programs
    if dump is None or restore is None:
        raise LedgerError(
            "pg_dump and pg_restore are not on PATH, so that no backup can be made; install "
            "PostgreSQL's client programs, or back up otherwise and repeat with --backed-up"
        )
    address = url.set(drivername="postgresql", password=None).render_as_string()
    environment = os.environ | ({} if url.password is None else {"PGPASSWORD": str(url.password)})
    with _whole(path) as draft:
        for words in (
            [dump, "--format=custom", f"--file={draft}", f"--dbname={address}"],
            [restore, f"--file={os.devnull}", str(draft)],
        ):
            done = subprocess.run(
                words, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise StorageError(
                    f"the backup {path} failed: {done.stderr.strip()}; nothing was changed: use "
                    "the server's own pg_dump, or back up otherwise and repeat with --backed-up"
                )


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a draft file to write, which gets its final name if nothing is raised."""
    draft = path.with_name(f"{_DRAFT}{path.name}")
    draft.unlink(missing_ok=True)
    draft.touch(0o600)
    try:
        yield draft
        _sync(draft)
        failpoint("upgrade.backup")
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_CANNOT = "be upgraded, and is as it was"
_NAME = "rayal upgrade"  # of its sessions on a server, by which they know each other
_OTHERS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
    "AND usename = session_user AND backend_type = 'client backend' AND application_name <> :name"
)


@dataclass(frozen=True)
class Upgrade:
    """The result of an upgrade.

    Args:
        ledger: a file or a database.
        found: the schema version before; None where the tables fitted already.
        version: the schema version now.
        backup: the copy from before; None where none was made.
    """

    ledger: str
    found: str | None
    version: str
    backup: Path | None


@dataclass(frozen=True)
class _Order:
    root: Path
    backup: Path | None
    backed_up: bool
    schema: Schema


def upgrade(
    root: str | Path,
    *,
    backup: Path | None = None,
    backed_up: bool = False,
    schema: Schema = SCHEMA,
) -> Upgrade:
    """Upgrade the ledger of a storage root to the tables of this program, if it has older ones.

    Whatever stops it, the ledger has its old tables or its new ones. Of two at once, one waits
    and finds nothing to do.

    Args:
        root: the storage root.
        backup: a file that does not exist, or a folder, for the copy made before; None for the
            root itself.
        backed_up: there is a backup; make none.
        schema: the tables wanted.

    Raises:
        LedgerError: the ledger is newer, or none that rayal writes.
        BusyError: another process has the ledger open.
        StorageError: no ledger is there, or it cannot be copied.
        SettingsError: the backup may not go there.
    """
    if backup is not None and backed_up:
        raise SettingsError("a backup is named, and said to be made already; give one of the two")
    order = _Order(Path(root).resolve(), backup, backed_up, schema)
    noted = noted_database(order.root)
    return _in_file(order) if noted is None else _in_database(order, noted)


def migrate(conn: Connection, found: str | None, schema: Schema = SCHEMA) -> None:
    """Run the revisions that lead from one version to a schema's, within the open transaction.

    Args:
        conn: a connection to a ledger; on SQLite one that follows no foreign keys.
        found: its version; None for an empty database.
        schema: the tables wanted.
    """
    scripts = ScriptDirectory(schema.scripts[0], version_locations=schema.scripts)
    below = "base" if found is None else _revision(found)
    for script in reversed([*scripts.iterate_revisions(_revision(schema.version), below)]):
        with Operations.context(MigrationContext.configure(conn)):
            script.module.upgrade()
    note_version(conn, schema.version)


def _revision(version: str) -> str:
    return f"{int(version):04}"


def _in_file(order: _Order) -> Upgrade:
    path = order.root / FILE
    refuse_network(order.root)
    if not path.exists():
        raise missing(str(path))
    with held(order.root), as_ledger(str(path), _CANNOT):
        version = _version(sqlite(path), str(path))
        if not order.schema.older(version, str(path)):
            return Upgrade(str(path), None, order.schema.version, None)
        with _undisturbed(path) as conn:
            copy = _copied(order, ".sqlite", lambda copy: copy_sqlite(_driver(conn), path, copy))
            with conn.begin():
                migrate(conn, version, order.schema)
                _check_parents(conn, str(path))
                failpoint("upgrade.commit")
    return Upgrade(str(path), version, order.schema.version, copy)


def _in_database(order: _Order, noted: str) -> Upgrade:
    url = make_url(noted)
    where = f"database {url!r}"
    with as_ledger(where, _CANNOT):
        named = url.update_query_dict({"application_name": _NAME}).render_as_string(
            hide_password=False
        )
        engine = postgresql(named)
        version = _version(engine, where)
        if not order.schema.older(version, where):
            return Upgrade(where, None, order.schema.version, None)
        with _released(engine), engine.begin() as conn:
            lock(conn, "schema")  # another upgrade may have been quicker
            version = noted_version(conn)
            if not order.schema.older(version, where):
                return Upgrade(where, None, order.schema.version, None)
            last = _last_event(conn)
            copy = _copied(order, ".dump", lambda copy: dump_postgresql(engine.url, copy))
            _keep_others_out(conn, where, last)
            migrate(conn, version, order.schema)
            failpoint("upgrade.commit")
    return Upgrade(where, version, order.schema.version, copy)


def _version(engine: Engine, where: str) -> str | None:
    """Return a ledger's version, and close its engine's connections."""
    with _released(engine), reading(engine) as conn:
        if not inspect(conn).has_table("meta"):
            raise missing(where)
        return noted_version(conn)


@contextmanager
def _released(engine: Engine) -> Iterator[None]:
    try:
        yield
    finally:
        engine.dispose()


def _copied(order: _Order, suffix: str, copy: Callable[[Path], None]) -> Path | None:
    if order.backed_up:
        return None
    if order.backup is None:
        remove_drafts(order.root)
    path = backup_path(order.root, order.backup, _revision(order.schema.version), suffix)
    copy(path)
    return path


@contextmanager
def _undisturbed(path: Path) -> Iterator[Connection]:
    """Yield the only connection to a file, or raise BusyError; it writes where it begins."""
    engine = sqlite(path, migrating=True)
    with _released(engine):
        try:
            conn = _first(engine)
        except OperationalError as error:
            if "locked" not in str(error.orig):
                raise
            raise BusyError(_busy(str(path), "it is locked")) from error
        with conn:
            yield conn


def _first(engine: Engine) -> Connection:
    """Return a connection that has begun once, and keeps the lock that it got by this."""
    conn = engine.connect().execution_options(rayal_write=True)
    try:
        conn.begin().commit()
    except BaseException:
        conn.close()
        raise
    return conn


def _driver(conn: Connection) -> sqlite3.Connection:
    driver = conn.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    return driver


def _check_parents(conn: Connection, where: str) -> None:
    orphans = conn.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if orphans:
        table, _, parent, _ = orphans[0]
        raise LedgerError(
            f"{where} has {len(orphans)} rows without their parents, the first in {table!r} "
            f"without its row of {parent!r}; nothing was changed: restore a backup"
        )


def _last_event(conn: Connection) -> int | None:
    last: int | None = conn.scalar(select(func.max(events.c.seq)))
    return last


def _keep_others_out(conn: Connection, where: str, last: int | None) -> None:
    """Lock what every opener reads, and raise BusyError if somebody has opened it before.

    Args:
        conn: a connection within the transaction that migrates.
        where: the ledger, for the message.
        last: number of the last event that the backup surely holds.
    """
    conn.execute(text(f"SET LOCAL lock_timeout = '{BUSY_SECONDS}s'"))
    try:
        conn.execute(text("LOCK TABLE meta IN ACCESS EXCLUSIVE MODE"))
    except OperationalError as error:
        raise BusyError(_busy(where, "a transaction does not end")) from error
    end = time.monotonic() + OTHERS_SECONDS  # a server ends sessions some time after their clients
    while (others := conn.scalar(_OTHERS, {"name": _NAME})) and time.monotonic() < end:
        time.sleep(0.1)
        conn.execute(text("SELECT pg_stat_clear_snapshot()"))
    if others:
        raise BusyError(_busy(where, f"{others} other sessions of its user are open"))
    if _last_event(conn) != last:
        raise BusyError(_busy(where, "it was written to while it was backed up"))


def _busy(where: str, why: str) -> str:
    return (
        f"another process works on {where} ({why}); nothing was changed: stop the service and the "
        "runs of this storage root, and repeat"
    )
