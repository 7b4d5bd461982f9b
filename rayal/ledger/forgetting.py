"""Forgetting an item: a tombstone, and a purge of what was said and computed of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Table, Text, delete, func, select, type_coerce

from rayal.ledger.columns import to_json
from rayal.ledger.label_transaction import Desk
from rayal.ledger.leases import sweep
from rayal.ledger.schema import (
    events,
    idempotency,
    items,
    labels,
    picks,
    projects,
    suggestions,
)
from rayal.ledger.store import Row, Store, Transaction, check_name, chunks

# What a row of a table tells of its item, and what it tells once the item is forgotten.
PURGED: dict[Table, dict[str, Any]] = {
    items: {"score": None},
    labels: {"value": None, "reason": None, "provenance": {}},
    picks: {"score": None, "probability": None},
    suggestions: {"label": None, "probs": None},
}


class Forgetting(Store):
    """Deleting an item for privacy."""

    def forget_item(self, project: str, item: str, *, now: float | None = None) -> None:
        """Purge an item, and never offer, lease or train on it again; once more, nothing happens.

        Its label values, reasons, provenance, scores and suggestions are overwritten in the
        tables and in the events, and kept answers to requests that name it are dropped; that
        there were such rows stays, so events still rebuild the tables. Open leases are revoked.
        Files (columns, checkpoints, the pool) and models trained on it are not touched;
        ``rayal.pool.purge`` takes its content out of the pool, and out of rows made of it.
        """
        check_name("item", item)
        with self._write("forget_item", project, now) as tx:
            sweep(tx, project)
            desk = Desk(tx, project, [item])
            desk.item(item)["forgotten"] = True
            desk.settle(item)
            desk.write()
            for table, blank in PURGED.items():
                keys = [c for c in table.primary_key]
                named = (table.c.project == project) & (table.c.item == item)
                rows = tx.conn.execute(select(*keys).where(named)).mappings().all()
                tx.update(table, [{**row, **blank} for row in rows])
            _purge_events(tx, project, item)
            _purge_answers(tx, item)
        if self._joined() is None and self.engine.dialect.name == "sqlite":
            self._empty_log()

    def forgotten_items(self, pool: str) -> list[str]:
        """Return the items that every project of a pool has forgotten, sorted.

        A deleted project has no say; of a pool without projects nothing is forgotten.
        """
        with self._read() as conn:
            alive = (projects.c.pool == pool) & projects.c.deleted.is_(None)
            names = list(conn.scalars(select(projects.c.project).where(alive)))
            dead = items.c.project.in_(names) & items.c.forgotten.is_(True)
            query = select(items.c.item).where(dead).group_by(items.c.item)
            found = conn.scalars(query.having(func.count() == len(names)))
            return sorted(found) if names else []

    def _empty_log(self) -> None:
        """Move SQLite's log into the file, where ``secure_delete`` has overwritten the old rows."""
        raw = self.engine.raw_connection()
        try:
            raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
        finally:
            raw.close()


def blank_forgotten(tx: Transaction, project: str, rows: Sequence[dict[str, Any]]) -> None:
    """Take scores and probabilities out of new picks of forgotten items."""
    gone: set[str] = set()
    dead = (items.c.project == project) & items.c.forgotten.is_(True)
    for some in chunks(sorted({row["item"] for row in rows})):
        gone |= set(tx.conn.scalars(select(items.c.item).where(dead, items.c.item.in_(some))))
    for row in rows:
        if row["item"] in gone:
            row.update(PURGED[picks])


def _purge_events(tx: Transaction, project: str, item: str) -> None:
    names = {table.name: blank for table, blank in PURGED.items()}
    told = type_coerce(events.c.payload, Text).contains(to_json(item), autoescape=True)
    query = select(events.c.seq, events.c.payload).where(events.c.project == project, told)
    for seq, payload in tx.conn.execute(query).all():
        clean = [
            [op, name, *(_purged(row, item, names.get(name, {})) for row in rows)]
            for op, name, *rows in payload
        ]
        if clean != payload:
            tx.conn.execute(events.update().where(events.c.seq == seq).values(payload=clean))


def _purged(row: Row, item: str, blank: Row) -> Row:
    if row.get("item") != item:
        return row
    return {name: blank.get(name, value) for name, value in row.items()}


def _purge_answers(tx: Transaction, item: str) -> None:
    """Drop the kept answers to requests in which the item is named."""
    name = to_json(item).encode(), json.dumps(item, ensure_ascii=False).encode()
    rows = tx.conn.execute(select(idempotency.c.scope, idempotency.c.key, idempotency.c.body))
    for scope, key, body in rows.all():
        if any(text in bytes(body) for text in name):
            same = (idempotency.c.scope == scope) & (idempotency.c.key == key)
            tx.conn.execute(delete(idempotency).where(same))
