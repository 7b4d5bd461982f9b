"""Opening the database of a storage root: which one, where it may lie, which version it has."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, OperationalError

from rayal.errors import LedgerError, StorageError
from rayal.project.schema import SCHEMA_VERSION, meta, metadata

FILE = "ledger.sqlite"
BUSY_SECONDS = 30
MOUNTS = Path("/proc/mounts")
POSTGRESQL = 'database="postgresql+psycopg://USER@HOST/NAME"'
# Their locks and shared memory are not those of a local disk, on which SQLite relies.
NETWORK_FILE_SYSTEMS = re.compile(
    r"afs|beegfs|ceph|cifs|davfs2?|gfs2|glusterfs|gpfs|lustre|ncpfs|nfs\d?|ocfs2|smb3|smbfs|"
    r"fuse\.(ceph|davfs2|gcsfuse|glusterfs|goofys|juicefs|mount-s3|rclone|s3fs|sshfs)"
)
_WRITER = 0x7261_7961_6C  # the advisory lock that PostgreSQL's writers take in turn


def file_system(path: Path, mounts: str) -> str:
    """Return the type of the file system that holds an absolute path, "" if no mount does.

    Args:
        path: absolute, without symbolic links; it need not exist.
        mounts: the text of ``/proc/mounts``.
    """
    best, kind = -1, ""
    for line in mounts.splitlines():
        point, found = line.split(" ")[1:3]
        for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            point = point.replace(code, character)
        if path.is_relative_to(point) and len(Path(point).parts) >= best:
            best, kind = len(Path(point).parts), found
    return kind


def open_database(root: Path, database: str | None, *, create: bool) -> Engine:
    """Return an engine on the ledger of a storage root, made first if ``create`` allows it.

    Args:
        root: the storage root.
        database: a PostgreSQL URL; None for SQLite in the root.
        create: make the ledger where there is none.

    Raises:
        LedgerError: a dialect, file system or schema version that does not fit.
        StorageError: no ledger is there and ``create`` is false, or the file is not a ledger.
    """
    if database is not None:
        engine = _postgresql(database)
        return _checked(engine, f"database {engine.url!r}", create)
    root, path = root.resolve(), root.resolve() / FILE
    _refuse_network(root)
    if not create and not path.exists():
        raise _missing(str(path))
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        return _checked(_sqlite(path), str(path), create)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Give a connection whose statements all see the same state of the ledger."""
    with engine.connect() as conn:
        if conn.dialect.name == "postgresql":
            conn = conn.execution_options(isolation_level="REPEATABLE READ")
        with conn.begin():
            yield conn


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Give a connection that is the only writer until it commits, or rolls back on an error."""
    with engine.connect() as conn:
        conn = conn.execution_options(rayal_write=True)
        try:
            transaction = conn.begin()
        except OperationalError as error:
            if "locked" not in str(error.orig):
                raise
            raise LedgerError(
                f"another process held the ledger {engine.url!r} for {BUSY_SECONDS} s "
                f"({error.orig}); end it, or wait, and repeat"
            ) from error
        with transaction:
            if conn.dialect.name == "postgresql":
                conn.execute(text(f"SELECT pg_advisory_xact_lock({_WRITER})"))
            yield conn


def create_tables(conn: Connection) -> None:
    """Make every table in an empty database, and note the schema's version."""
    metadata.create_all(conn)
    conn.execute(meta.insert().values(name="schema_version", value=SCHEMA_VERSION))


def _sqlite(path: Path) -> Engine:
    engine = create_engine(URL.create("sqlite", database=str(path)))

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        for pragma in (
            f"busy_timeout = {BUSY_SECONDS * 1000}",
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def begin(conn: Connection) -> None:
        write = conn.get_execution_options().get("rayal_write", False)
        conn.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _postgresql(database: str) -> Engine:
    try:
        url = make_url(database)
        if url.get_backend_name() != "postgresql":
            raise LedgerError(
                f"database {url!r} is of dialect {url.get_backend_name()!r}; allowed: SQLite in "
                f"the storage root (leave database out) and PostgreSQL ({POSTGRESQL})"
            )
        return create_engine(url)
    except (ArgumentError, NoSuchModuleError) as error:
        raise LedgerError(f"database is not a URL ({error}); give {POSTGRESQL}") from None
    except ModuleNotFoundError as error:
        raise LedgerError(
            f"the driver of {url!r} is not installed ({error}); pip install 'psycopg[binary]' "
            f"and give {POSTGRESQL}"
        ) from error


def _refuse_network(root: Path) -> None:
    """Raise if the root lies on a network file system; systems without MOUNTS are not checked."""
    kind = file_system(root, MOUNTS.read_text()) if MOUNTS.exists() else ""
    if NETWORK_FILE_SYSTEMS.fullmatch(kind):
        raise LedgerError(
            f"{root} lies on a network file system ({kind}), where SQLite may lose labels; "
            f"choose a local disk, or keep the ledger in PostgreSQL: {POSTGRESQL}"
        )


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the root's lock: the switch to WAL and the first tables bear no second opener."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _checked(engine: Engine, where: str, create: bool) -> Engine:
    try:
        version = _version(engine, where, create)
    except DatabaseError as error:
        engine.dispose()
        raise StorageError(f"{where} cannot be opened as a ledger: {error.orig}") from error
    except (LedgerError, StorageError):
        engine.dispose()
        raise
    if version != SCHEMA_VERSION:
        engine.dispose()
        raise LedgerError(
            f"{where} has schema version {version}, this rayal reads {SCHEMA_VERSION}; open it "
            "with the rayal that wrote it, or choose another storage root"
        )
    return engine


def _version(engine: Engine, where: str, create: bool) -> str:
    with reading(engine) as conn:
        known = inspect(conn).has_table("meta")
    if not known:
        if not create:
            raise _missing(where)
        with writing(engine) as conn:
            if not inspect(conn).has_table("meta"):  # a second opener may have been quicker
                create_tables(conn)
    with reading(engine) as conn:
        return str(conn.scalar(select(meta.c.value).where(meta.c.name == "schema_version")))


def _missing(where: str) -> StorageError:
    return StorageError(
        f"there is no ledger at {where}; check the storage root, or make one by opening it with "
        "create=True"
    )
