"""What every part of the ledger stands on: reads, and writes that tell themselves as events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from sqlalchemy import (
    BindParameter,
    Column,
    Connection,
    Engine,
    Table,
    bindparam,
    extract,
    func,
    select,
)

from rayal.errors import LedgerError, UnknownNameError, nearest
from rayal.project.database import POSTGRESQL, open_database, reading, writing
from rayal.project.schema import events, projects, rounds

Row = Mapping[str, Any]
T = TypeVar("T")
_CHUNK = 500  # values per IN list; databases bound the number of parameters


class Transaction:
    """One write: rows, and the event that tells them, which commit together or not at all.

    Args:
        conn: the connection, for reads within the transaction.
        kind: the event's kind.
        project: the event's project; None for pools and files.
        time: seconds since the epoch; None takes the database host's clock, behind the lock.
    """

    def __init__(
        self, conn: Connection, kind: str, project: str | None, time: float | None
    ) -> None:
        self.conn = conn
        self.time = clock(conn) if time is None else float(time)
        self._kind = kind
        self.project = project
        self._payload: list[Any] = []

    def insert(self, table: Table, rows: Sequence[Row]) -> None:
        """Insert rows, each with every column of the table."""
        if rows:
            self.conn.execute(table.insert(), list(rows))
            self._payload.append(["insert", table.name, *rows])

    def update(self, table: Table, rows: Sequence[Row]) -> None:
        """Change rows: each holds its primary key and new values, all of the same columns."""
        if rows:
            keys = {c.name for c in table.primary_key}
            change = {n: _parameter(table.c[n]) for n in rows[0] if n not in keys}
            self.conn.execute(
                table.update().where(*_is_key(table)).values(change), [_bound(r) for r in rows]
            )
            self._payload.append(["update", table.name, *rows])

    def delete(self, table: Table, rows: Sequence[Row]) -> None:
        """Delete rows, each given as its primary key."""
        if rows:
            self.conn.execute(table.delete().where(*_is_key(table)), [_bound(r) for r in rows])
            self._payload.append(["delete", table.name, *rows])

    def finish(self) -> None:
        """Write the event; a transaction that wrote nothing tells nothing."""
        if self._payload:
            self.conn.execute(
                events.insert().values(
                    time=self.time, project=self.project, kind=self._kind, payload=self._payload
                )
            )


class Store:
    """An open ledger, without what it records.

    Args:
        root: the storage root, a local folder.
        database: a PostgreSQL URL; None for SQLite in the root.
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

    def now(self) -> float:
        """Return the database host's clock, seconds since the epoch."""
        with reading(self.engine) as conn:
            return clock(conn)

    @contextmanager
    def _read(self, project: str | None = None) -> Iterator[Connection]:
        with reading(self.engine) as conn:
            if project is not None:
                known_project(conn, project)
            yield conn

    @contextmanager
    def _write(
        self, kind: str, project: str | None = None, now: float | None = None
    ) -> Iterator[Transaction]:
        with writing(self.engine) as conn:
            if project is not None:
                known_project(conn, project)
            transaction = Transaction(conn, kind, project, now)
            yield transaction
            transaction.finish()


def clock(conn: Connection) -> float:
    """Return the time of the database's host; SQLite runs on this one."""
    if conn.dialect.name == "sqlite":
        return time.time()
    return float(conn.execute(select(extract("epoch", func.clock_timestamp()))).scalar_one())


def known_project(conn: Connection, project: str) -> Row:
    """Return a project's row, or raise UnknownNameError with the nearest names."""
    row = conn.execute(projects.select().where(projects.c.project == project)).mappings().first()
    if row is None:
        known = conn.scalars(select(projects.c.project))
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


def _parameter(column: Column[Any]) -> BindParameter[Any]:
    return bindparam(f"new_{column.name}", type_=column.type)


def _is_key(table: Table) -> list[Any]:
    return [column == _parameter(column) for column in table.primary_key]


def _bound(row: Row) -> dict[str, Any]:
    return {f"new_{name}": value for name, value in row.items()}
