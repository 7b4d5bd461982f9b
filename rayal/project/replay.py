"""The tables of a ledger, built again from its events alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Engine, inspect, text

from rayal.errors import LedgerError
from rayal.project.database import create_tables
from rayal.project.records import Event
from rayal.project.schema import UNTOLD, metadata
from rayal.project.schema import events as events_table

Tables = dict[str, list[dict[str, Any]]]


def rebuild(events: Iterable[Event]) -> Tables:
    """Return the rows of every table that the events tell, by table name, in order of insertion.

    Args:
        events: all events of a ledger, in order.
    """
    names = [name for name in metadata.tables if name not in UNTOLD]
    tables: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {name: {} for name in names}
    for event in events:
        for op, name, *rows in event.payload:
            for row in rows:
                _apply(tables[name], op, _key(name, row), row)
    return {name: list(rows.values()) for name, rows in tables.items()}


def replay(events: Iterable[Event], engine: Engine) -> None:
    """Write the tables that events tell, and the events themselves, into an empty database.

    Raises:
        LedgerError: the database holds a ledger.
    """
    told = list(events)
    with engine.begin() as conn:
        if inspect(conn).has_table("meta"):
            raise LedgerError(f"{engine.url!r} holds a ledger; replay into an empty database")
        create_tables(conn)
        tables = rebuild(told)
        tables[events_table.name] = [vars(event) for event in told]
        for table in metadata.sorted_tables:
            if tables.get(table.name):
                conn.execute(table.insert(), tables[table.name])
        if conn.dialect.name == "postgresql" and told:
            conn.execute(  # its sequence does not see the numbers that were given
                text("SELECT setval(pg_get_serial_sequence('events', 'seq'), :last)"),
                {"last": told[-1].seq},
            )


def _key(table: str, row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[column.name] for column in metadata.tables[table].primary_key)


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
