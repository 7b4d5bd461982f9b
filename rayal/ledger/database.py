"""Opening the database of a storage root: which one, where it may lie, which version it has."""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.exc import DatabaseError, OperationalError

from rayal.errors import BusyError, LedgerError, StorageError
from rayal.ledger.location import (
    FILE,
    POSTGRESQL,
    held,
    note_database,
    noted_database,
    one_url,
    parsed_url,
)
from rayal.ledger.schema import SCHEMA, Schema, noted_version

BUSY_SECONDS = 30
OTHERS_SECONDS = 5  # wait for holders of a ledger that is to be migrated
MOUNTS = Path("/proc/mounts")
# Their locks and shared memory are not those of a local disk, on which SQLite relies.
NETWORK_FILE_SYSTEMS = re.compile(
    r"afs|beegfs|ceph|cifs|davfs2?|gfs2|glusterfs|gpfs|lustre|ncpfs|nfs\d?|ocfs2|smb3|smbfs|"
    r"fuse\.(ceph|davfs2|gcsfuse|glusterfs|goofys|juicefs|mount-s3|rclone|s3fs|sshfs)"
)
_TURNS: dict[str, threading.RLock] = {}  # of each SQLite file: one writing thread of this process
_TURNS_LOCK = threading.Lock()


def file_system(path: Path, mounts: str) -> str:
    """Return the type of the file system that holds an absolute path, "" if no mount does.

    Args:
        path: absolute, without symbolic links; it need not exist.
        mounts: the text of ``/proc/mounts``.
    """
    best, kind = -1, ""
    for line in mounts.splitlines():
        point, fs_type = line.split(" ")[1:3]
        for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            point = point.replace(code, character)
        if path.is_relative_to(point) and len(Path(point).parts) >= best:
            best, kind = len(Path(point).parts), fs_type
    return kind


def open_database(
    root: Path, database: str | None, *, create: bool, schema: Schema = SCHEMA
) -> Engine:
    """Return an engine on the ledger of a storage root, made first if ``create`` allows it.

    Args:
        root: the storage root.
        database: a PostgreSQL URL, noted in the root for every later opener; None for the noted
            one, else SQLite in the root.
        create: make the ledger where there is none.
        schema: the tables to make, or to find.

    Raises:
        LedgerError: a dialect, file system or schema version that does not fit, or the root has
            another database.
        StorageError: no ledger is there and ``create`` is false, or the file is not a ledger.
    """
    noted = noted_database(root)
    if database is not None or noted is not None:
        url = one_url(root, database, noted)
        engine = postgresql(url)
        with _checking(engine, where := f"database {parsed_url(url)!r}"):
            schema.check(_version(engine, where, create, schema), where, root)
        if noted is None and create:
            note_database(root, engine.url)
        return engine
    path = root.resolve() / FILE
    refuse_network(path.parent)
    if not create and not path.exists():
        raise missing(str(path))
    with held(path.parent):  # only one opener may switch to WAL and make the first tables
        if not create and not path.exists():  # removed meanwhile
            raise missing(str(path))
        engine = sqlite(path)
        with _checking(engine, str(path)):
            schema.check(_version(engine, str(path), create, schema), str(path), root)
        return engine


@contextmanager
def withdrawn(root: Path, engine: Engine, told: int) -> Iterator[bool]:
    """Remove a ledger that nobody else uses, and keep others from opening one meanwhile.

    It stays where another process or thread has it open, where it holds more events than these,
    and where it is not in a file of the root. The engine is disposed of.

    Args:
        root: the storage root; it is removed at the end if nothing is left in it.
        engine: on its ledger.
        told: number of events that the caller has written itself.

    Yields:
        Whether the ledger is gone.
    """
    kind = engine.dialect.name
    engine.dispose()
    if kind != "sqlite":
        yield False
        return
    root = root.resolve()
    with held(root):
        path = root / FILE
        gone = not path.exists() or _used_by_nobody(path, told)
        if gone:
            path.unlink(missing_ok=True)
        yield gone


def _used_by_nobody(path: Path, expected: int) -> bool:
    """Return whether a ledger has no open connection and holds exactly ``expected`` events."""
    with closing(sqlite3.connect(path, timeout=0.0, isolation_level=None)) as ledger:
        try:  # SQLite refuses to leave the WAL while anybody else has the file open
            ledger.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.OperationalError:
            return False
        (events,) = ledger.execute("SELECT count(*) FROM events").fetchone()
    return bool(events == expected)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Yield a connection whose statements all see the same state of the ledger."""
    with engine.connect() as conn:
        if conn.dialect.name == "postgresql":
            conn = conn.execution_options(isolation_level="REPEATABLE READ")
        with conn.begin():
            yield conn


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Yield a connection that writes until it commits, or rolls back on an error.

    On SQLite it is the only writer: threads of this process wait for each other at a lock, which
    costs less than SQLite's polling, then for other processes. On PostgreSQL writers wait where
    they ask for the same ``lock``.
    """
    with _turn(engine), engine.connect() as conn:
        conn = conn.execution_options(rayal_write=True)
        try:
            transaction = conn.begin()
        except OperationalError as error:
            if "locked" not in str(error.orig):
                raise
            raise BusyError(_held(engine, "another process", str(error.orig))) from error
        with transaction:
            yield conn


def lock(conn: Connection, name: str) -> None:
    """Wait until no other transaction holds the lock of that name, and hold it to the end.

    Within a savepoint, to its end if it is rolled back. SQLite has one writer anyway.
    """
    if conn.dialect.name == "postgresql":
        number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)
        conn.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})


@contextmanager
def _turn(engine: Engine) -> Iterator[None]:
    if engine.dialect.name != "sqlite":
        yield
        return
    with _TURNS_LOCK:
        turn = _TURNS.setdefault(str(engine.url), threading.RLock())
    if not turn.acquire(timeout=BUSY_SECONDS):
        raise BusyError(_held(engine, "another thread", "it holds the writers' lock"))
    try:
        yield
    finally:
        turn.release()


def _held(engine: Engine, who: str, why: str) -> str:
    return (
        f"{who} held the ledger {engine.url!r} for {BUSY_SECONDS} s ({why}); end it, or wait, "
        "and repeat"
    )


def sqlite(path: Path, *, migrating: bool = False) -> Engine:
    """Return an engine on a ledger's file.

    Args:
        path: the file.
        migrating: its first connection keeps all others out, those of other processes too, or
            fails; foreign keys are not followed, as a table that is copied and dropped needs it.
    """
    engine = create_engine(URL.create("sqlite", database=str(path)))
    pragmas = (
        f"locking_mode = {'EXCLUSIVE' if migrating else 'NORMAL'}",
        f"busy_timeout = {1000 * (OTHERS_SECONDS if migrating else BUSY_SECONDS)}",
        "journal_mode = WAL",
        "synchronous = FULL",
        f"foreign_keys = {'OFF' if migrating else 'ON'}",
        "secure_delete = ON",  # purged content is overwritten
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        try:
            for pragma in pragmas:
                connection.execute(f"PRAGMA {pragma}").close()
        except BaseException:
            connection.close()  # otherwise its locks would stay
            raise

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        write = conn.get_execution_options().get("rayal_write", False)
        conn.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def postgresql(database: str) -> Engine:
    """Return an engine on the database of a URL, or raise LedgerError without its driver."""
    url = parsed_url(database)
    try:
        # A connection that the server has dropped is replaced before it is used.
        return create_engine(url, pool_pre_ping=True, pool_size=20, max_overflow=20)
    except ModuleNotFoundError as error:
        raise LedgerError(
            f"the driver of {url!r} is not installed ({error}); pip install 'psycopg[binary]' "
            f"and give {POSTGRESQL}"
        ) from error


def refuse_network(root: Path) -> None:
    """Raise if the root lies on a network file system; systems without MOUNTS are not checked."""
    kind = file_system(root, MOUNTS.read_text()) if MOUNTS.exists() else ""
    if NETWORK_FILE_SYSTEMS.fullmatch(kind):
        raise LedgerError(
            f"{root} lies on a network file system ({kind}), where SQLite may lose labels; "
            f"choose a local disk, or keep the ledger in PostgreSQL: {POSTGRESQL}"
        )


@contextmanager
def _checking(engine: Engine, where: str) -> Iterator[None]:
    """Close the engine again where the ledger does not fit."""
    try:
        with as_ledger(where):
            yield
    except (LedgerError, StorageError):
        engine.dispose()
        raise


@contextmanager
def as_ledger(where: str, cannot: str = "be opened as a ledger") -> Iterator[None]:
    """Raise an error of the database within the block as StorageError."""
    try:
        yield
    except DatabaseError as error:
        raise StorageError(f"{where} cannot {cannot}: {error.orig}") from error


def _version(engine: Engine, where: str, create: bool, schema: Schema) -> str | None:
    with reading(engine) as conn:
        known = inspect(conn).has_table("meta")
    if not known:
        if not create:
            raise missing(where)
        with writing(engine) as conn:
            lock(conn, "schema")
            if not inspect(conn).has_table("meta"):  # a second opener may have been quicker
                schema.create(conn)
    with reading(engine) as conn:
        return noted_version(conn)


def missing(where: str) -> StorageError:
    """Return the error that there is no ledger."""
    return StorageError(
        f"there is no ledger at {where}; check the storage root, or make one by opening it with "
        "create=True"
    )
