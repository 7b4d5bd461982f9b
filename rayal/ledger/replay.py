"""The tables of a ledger, built again from its events alone."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Engine, MetaData, Table, inspect, text

from rayal.errors import LedgerError
from rayal.ledger.records import Event
from rayal.ledger.schema import SCHEMA, UNTOLD, Schema
from rayal.ledger.schema import events as events_table
from rayal.ledger.schema import metadata as all_tables

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
