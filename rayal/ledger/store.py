"""The base of every part of the ledger: reads, and writes that record themselves as events."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from sqlalchemy import (
    BindParameter,
    Column,
    Connection,
    Delete,
    Engine,
    Insert,
    Table,
    Update,
    bindparam,
    extract,
    func,
    select,
)

from rayal.errors import LedgerError, UnknownNameError, nearest
from rayal.ledger.database import lock, open_database, reading, writing
from rayal.ledger.location import POSTGRESQL
from rayal.ledger.schema import events, projects, rounds

Row = Mapping[str, Any]
T = TypeVar("T")
# Statements are made once: that costs more than running them.
_PROJECT = projects.select().where(projects.c.project == bindparam("project"))
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_CHUNK = 500  # values per IN list; databases bound the number of parameters


class Opened:
    """A database transaction of one thread, with the events that it will tell at its end."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.told: list[Row] = []

    def finish(self) -> None:
        """Write the events, in an order that is the order of commits."""
        if self.told:
            lock(self.conn, "events")
            self.conn.execute(_insert(events), self.told)


class Transaction:
    """One write: rows, and the event that records them, which commit together or not at all.

    Args:
        opened: the database transaction that it is a part of.
        kind: the event's kind.
        project: the event's project; None for pools and files.
        time: seconds since the epoch; None takes the database host's clock, behind the lock.
    """

    def __init__(self, opened: Opened, kind: str, project: str | None, time: float | None) -> None:
        self.conn = opened.conn
        self.time = clock(self.conn) if time is None else float(time)
        self._opened = opened
        self._kind = kind
        self.project = project
        self.row: Row = {} if project is None else known_project(self.conn, project)
        self._payload: list[Any] = []

    def insert(self, table: Table, rows: Sequence[Row]) -> None:
        """Insert rows, each with every column of the table."""
        if rows:
            self.conn.execute(_insert(table), list(rows))
            self._payload.append(["insert", table.name, *rows])

    def update(self, table: Table, rows: Sequence[Row]) -> None:
        """Change rows: each holds its primary key and new values, all of the same columns."""
        if rows:
            self.conn.execute(_update(table, tuple(rows[0])), [_bound(r) for r in rows])
            self._payload.append(["update", table.name, *rows])

    def delete(self, table: Table, rows: Sequence[Row]) -> None:
        """Delete rows, each given as its primary key."""
        if rows:
            self.conn.execute(_delete(table), [_bound(r) for r in rows])
            self._payload.append(["delete", table.name, *rows])

    def finish(self) -> None:
        """Record the event; a transaction that wrote nothing records none."""
        if self._payload:
            event = {"time": self.time, "project": self.project, "kind": self._kind}
            self._opened.told.append({**event, "payload": self._payload})


class Store:
    """An open ledger, without what it records.

    Args:
        root: the storage root, a local folder.
        database: a PostgreSQL URL; None for the one that the root was made with, else SQLite.
        create: make the ledger where there is none.

    Raises:
        LedgerError: a dialect, file system or schema version that does not fit.
        StorageError: no ledger is there and ``create`` is false.
    """

    def __init__(
        self, root: str | Path, *, database: str | None = None, create: bool = True
    ) -> None:
        if database is None and "://" in str(root):
            raise LedgerError(
                f"root {str(root)!r} is a URI, but SQLite needs a local folder; keep the ledger in "
                f"PostgreSQL: {POSTGRESQL}"
            )
        self.root = Path(root)
        self.engine: Engine = open_database(self.root, database, create=create)
        self.told = 0  # events that were written through this ledger
        self._thread = threading.local()  # .opened: the transaction that its calls join

    def now(self) -> float:
        """Return the database host's clock, seconds since the epoch."""
        with self._read() as conn:
            return clock(conn)

    @contextmanager
    def _read(self, project: str | None = None) -> Iterator[Connection]:
        opened = self._joined()
        with reading(self.engine) if opened is None else nullcontext(opened.conn) as conn:
            if project is not None:
                known_project(conn, project)
            yield conn

    @contextmanager
    def _write(
        self,
        kind: str,
        project: str | None = None,
        now: float | None = None,
        *,
        locks: Sequence[str] = (),
    ) -> Iterator[Transaction]:
        """Yield a transaction, or a part of the thread's that is undone by itself on an error.

        Args:
            kind: the event's kind.
            project: project of the event; its writers take turns.
            now: seconds since the epoch; None takes the database host's clock.
            locks: names of further turns to take; by default ``shared`` without a project.
        """
        joined = self._joined() is not None
        with self._open() as opened:
            for name in locks or (() if project is not None else ("shared",)):
                lock(opened.conn, name)
            if project is not None:
                lock(opened.conn, f"project {project}")
            with opened.conn.begin_nested() if joined else nullcontext():
                transaction = Transaction(opened, kind, project, now)
                yield transaction
                transaction.finish()

    @contextmanager
    def _open(self) -> Iterator[Opened]:
        """Yield the transaction that this thread is in, or one of its own."""
        opened = self._joined()
        if opened is not None:
            yield opened
            return
        with writing(self.engine) as conn:
            self._thread.opened = opened = Opened(conn)
            try:
                yield opened
                opened.finish()
                self.told += len(opened.told)
            finally:
                self._thread.opened = None

    def _joined(self) -> Opened | None:
        return getattr(self._thread, "opened", None)


def clock(conn: Connection) -> float:
    """Return the time of the database's host; SQLite runs on this one."""
    if conn.dialect.name == "sqlite":
        return time.time()
    return float(conn.execute(select(extract("epoch", func.clock_timestamp()))).scalar_one())


def known_project(conn: Connection, project: str) -> Row:
    """Return a project's row, or raise UnknownNameError with the nearest names."""
    result = conn.execute(_PROJECT, {"project": project}) if storable(project) else None
    row = None if result is None else result.mappings().first()
    if row is None or row["deleted"] is not None:
        known = conn.scalars(select(projects.c.project).where(projects.c.deleted.is_(None)))
        raise UnknownNameError(f"project {project!r} does not exist; {nearest(project, known)}")
    return dict(row)


def known_round(conn: Connection, project: str, round: int) -> None:
    """Raise LedgerError unless the round was begun."""
    begun = list(conn.scalars(select(rounds.c["round"]).where(rounds.c.project == project)))
    if round not in begun:
        raise LedgerError(
            f"round {round} of project {project!r} was not begun; begun: {sorted(begun)}; "
            "call begin_round first"
        )


def relative_file(file: str) -> str:
    """Return the path of a file, or raise LedgerError unless it is relative to the root."""
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise LedgerError(f"file {file!r} must be a path relative to the storage root")
    return file


def unsigned(value: int, what: str) -> int:
    """Return an unsigned 64-bit number as int, or raise LedgerError."""
    number = int(value)
    if not 0 <= number < 1 << 64:
        raise LedgerError(f"{what} is {number}; it must be an unsigned 64-bit number")
    return number


def chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut a sequence into pieces that fit into an IN list."""
    return (values[i : i + _CHUNK] for i in range(0, len(values), _CHUNK))


@cache
def _insert(table: Table) -> Insert:
    return table.insert()


@cache
def _update(table: Table, names: tuple[str, ...]) -> Update:
    keys = {column.name for column in table.primary_key}
    change = {name: _parameter(table.c[name]) for name in names if name not in keys}
    return table.update().where(*_is_key(table)).values(change)


@cache
def _delete(table: Table) -> Delete:
    return table.delete().where(*_is_key(table))


def _parameter(column: Column[Any]) -> BindParameter[Any]:
    return bindparam(f"new_{column.name}", type_=column.type)


def _is_key(table: Table) -> list[Any]:
    return [column == _parameter(column) for column in table.primary_key]


def _bound(row: Row) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in row.items()}


def storable(text: str) -> bool:
    """Return whether both databases can store a text: without NUL and lone surrogates."""
    return _UNSTORABLE.search(text) is None


def check_name(what: str, text: str) -> str:
    """Return the text, or raise LedgerError unless both databases can store it."""
    if not storable(text):
        raise LedgerError(f"{what} {text!r} holds a NUL or half a surrogate pair; leave it out")
    return text
