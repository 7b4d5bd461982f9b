"""The ledger: the durable record of pools, projects, rounds, selections, leases and labels.

Every method is one short transaction, or a part of the one that its thread is in (``transaction``,
``once``). A write commits together with one event that tells all it wrote, so the tables can be
built again from the events (``rayal.ledger.ledger``). Writers take turns, on PostgreSQL those of
one project; readers see the last commit and never wait. A ledger may be used from several threads,
and the same storage root may be opened by many processes of one machine, or of many with
PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, Engine, MetaData, Table, inspect, text

from rayal.errors import LedgerError
from rayal.ledger.database import withdrawn
from rayal.ledger.idempotency import Idempotency
from rayal.ledger.items import Forgetting, Items
from rayal.ledger.jobs import Jobs
from rayal.ledger.labels import Labels
from rayal.ledger.leases import Leases
from rayal.ledger.models import Models
from rayal.ledger.pools import Pools
from rayal.ledger.projects import Projects
from rayal.ledger.records import Event
from rayal.ledger.rounds import Files, Rounds
from rayal.ledger.schema import SCHEMA, UNTOLD, Schema, events
from rayal.ledger.schema import events as events_table
from rayal.ledger.schema import metadata as all_tables
from rayal.ledger.selections import Selections
from rayal.ledger.tokens import Tokens

_PAGE = 500  # events read at once


class Ledger(
    Pools,
    Projects,
    Rounds,
    Files,
    Selections,
    Leases,
    Labels,
    Items,
    Forgetting,
    Models,
    Jobs,
    Tokens,
    Idempotency,
):
    """The ledger of a storage root, open; a context manager that closes it.

    Times are seconds since the epoch. Where a method takes ``now``, None means the clock of the
    database's host.

    Args:
        root: the storage root, a local folder; the file is ``ROOT/ledger.sqlite``.
        database: a PostgreSQL URL, ``postgresql+psycopg://…``, written to ``ROOT/database`` when
            the ledger is made; None for the one that is written there, else SQLite.
        create: make the ledger where there is none.

    Raises:
        LedgerError: a dialect, file system or schema version that does not fit.
        StorageError: no ledger is there and ``create`` is false.
    """

    def close(self) -> None:
        """Close the connections; the next call would open new ones."""
        self.engine.dispose()

    @contextmanager
    def withdrawn(self) -> Iterator[bool]:
        """Remove the ledger's file, unless somebody else uses it; nobody can open one meanwhile.

        It stays where others have it open, where an event of it was not written through this
        ledger, and where it is in PostgreSQL. This one is closed.

        Yields:
            Whether the file is gone.
        """
        with withdrawn(self.root, self.engine, self.told) as gone:
            yield gone

    def __enter__(self) -> Self:
        """Return the ledger itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the ledger."""
        self.close()

    def events(self, since: int = 0, project: str | None = None) -> Iterator[Event]:
        """Yield the events after number ``since``, in order; of one project if it is named.

        Events of pools and of forgotten files belong to no project. The ledger may be written
        to meanwhile; what is committed before the end is reached is yielded too.
        """
        of_project = [] if project is None else [events.c.project == project]
        while True:
            query = events.select().where(events.c.seq > since, *of_project)
            with self._read(project) as conn:
                page = conn.execute(query.order_by(events.c.seq).limit(_PAGE)).mappings().all()
            yield from (Event(**row) for row in page)
            if len(page) < _PAGE:
                return
            since = page[-1]["seq"]


Tables = dict[str, list[dict[str, Any]]]


def rebuild(events: Iterable[Event], metadata: MetaData = all_tables) -> Tables:
    """Return the rows of every table that the events tell, by table name, in order of insertion.

    A row from before a column was added lacks the column; a table gives it its server default.

    Args:
        events: all events of a ledger, in order.
        metadata: the tables.
    """
    names = [name for name in metadata.tables if name not in UNTOLD]
    tables: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {name: {} for name in names}
    for event in events:
        for op, name, *rows in event.payload:
            for row in rows:
                _apply(tables[name], op, _key(metadata.tables[name], row), row)
    return {name: list(rows.values()) for name, rows in tables.items()}


def replay(events: Iterable[Event], engine: Engine, schema: Schema = SCHEMA) -> None:
    """Rebuild the tables from events, and write them and the events into an empty database.

    Args:
        events: all events of a ledger, in order, whatever version it had when they were written.
        engine: the database.
        schema: the tables to make.

    Raises:
        LedgerError: the database holds a ledger.
    """
    history = list(events)
    with engine.begin() as conn:
        if inspect(conn).has_table("meta"):
            raise LedgerError(f"{engine.url!r} holds a ledger; replay into an empty database")
        schema.create(conn)
        tables = rebuild(history, schema.metadata)
        tables[events_table.name] = [vars(event) for event in history]
        for table in schema.metadata.sorted_tables:
            _insert(conn, table, tables.get(table.name, []))
        if conn.dialect.name == "postgresql" and history:
            conn.execute(  # its sequence does not see the numbers that were given
                text("SELECT setval(pg_get_serial_sequence('events', 'seq'), :last)"),
                {"last": history[-1].seq},
            )


def _insert(conn: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert rows in their order; one statement inserts only rows of the same columns."""
    for _, alike in groupby(rows, key=lambda row: row.keys()):
        conn.execute(table.insert(), list(alike))


def _key(table: Table, row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[column.name] for column in table.primary_key)


def _apply(
    rows: dict[tuple[Any, ...], dict[str, Any]], op: str, key: tuple[Any, ...], row: dict[str, Any]
) -> None:
    if (key in rows) != (op in ("update", "delete")):
        raise LedgerError(
            f"an event tells {op} of row {key}, which does not follow from the events before it; "
            "give all events of a ledger, in order"
        )
    if op == "delete":
        del rows[key]
    else:
        rows[key] = {**rows.get(key, {}), **row}
