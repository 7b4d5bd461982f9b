"""Upgrade an older ledger to the tables of this program: a backup, then one transaction.

Only this module and the revisions load Alembic. It orders and runs the revisions; which one a
ledger has is said by its schema version alone.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, func, inspect, make_url, select, text
from sqlalchemy.exc import OperationalError

from rayal.errors import BusyError, LedgerError, SettingsError
from rayal.failpoints import failpoint
from rayal.ledger.backup import backup_path, copy_sqlite, dump_postgresql, remove_drafts
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
