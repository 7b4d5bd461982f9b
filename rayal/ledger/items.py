"""Items of a project: their states, and how an item is forgotten."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Label,
    Table,
    Text,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    tuple_,
    type_coerce,
)

from rayal.ledger.columns import to_json
from rayal.ledger.label_transaction import Desk
from rayal.ledger.leases import has_free_slot, is_active, on_item, sweep
from rayal.ledger.records import ItemRow, OfferedRow
from rayal.ledger.schema import (
    events,
    idempotency,
    items,
    labels,
    leases,
    picks,
    projects,
    suggestions,
)
from rayal.ledger.store import Row, Store, Transaction, check_name, chunks, clock, storable

STATES = ("unlabeled", "offered", "leased", "labeled", "skipped", "conflict", "forgotten")


def _state() -> Label[str]:
    """Return the state of an item at ``moment``."""
    lasts = leases.c.expires > bindparam("moment")
    leased = exists().where(on_item(leases), is_active(), lasts)
    full = items.c.accepted >= items.c.need
    unasked = and_(items.c["round"].is_(None), items.c.accepted > 0)
    return case(
        (items.c.forgotten.is_(True), "forgotten"),
        (items.c.conflict.is_(True), "conflict"),
        (or_(full, unasked), "labeled"),
        (leased.correlate(items), "leased"),
        (items.c.skipped.is_(True), "skipped"),
        (items.c["round"].is_not(None), "offered"),
        else_="unlabeled",
    ).label("state")


# Statements are made once: that costs more than running them.
_STATE = _state()
_ALL = items.c.project == bindparam("project")
_STATES = select(items.c.item, _STATE).where(_ALL)
_SOME = _STATES.where(items.c.item.in_(bindparam("some", expanding=True)))
_PAGE = (
    select(*(items.c[n] for n in ItemRow.__dataclass_fields__ if n != "state"), _STATE)
    .where(_ALL)
    .order_by(items.c.item)
)
_READY = select(func.count()).select_from(items).where(_ALL, has_free_slot(lasting=True))
_PLACE = (items.c["round"], items.c.rank)
_OFFERED = (
    select(*(items.c[n] for n in ("item", "round", "rank", "score")), picks.c.key)
    .join(picks, and_(on_item(picks), picks.c["round"] == items.c["round"]))
    .where(_ALL, has_free_slot(lasting=True))
    .order_by(*_PLACE)
)
_OPEN = select(items.c.item).where(_ALL, items.c.open.is_(True)).order_by(*_PLACE)
_COUNTS = select(_STATE, func.count(), func.count(items.c["round"])).where(_ALL).group_by("state")


class Items(Store):
    """Queries for items. Leases that are past their time count as over.

    The state of an item is the first that holds of: ``forgotten``; ``conflict``: its labels
    disagree, whether or not one more annotator is asked; ``labeled``: its slots are filled, or it
    got a label without ever being offered; ``leased``: somebody holds it; ``skipped`` by so many
    that it is not offered any more; ``offered``; ``unlabeled``.
    """

    def states(self, project: str, *, now: float | None = None) -> dict[str, str]:
        """Return the state of every item that was ever touched, sorted by item."""
        with self._read(project) as conn:
            rows = conn.execute(_STATES, _at(conn, project, now))
            return dict(sorted((item, state) for item, state in rows))

    def item_states(
        self, project: str, wanted: Sequence[str], *, now: float | None = None
    ) -> dict[str, str]:
        """Return the state of some items; those never touched are unlabeled."""
        states = dict.fromkeys(wanted, "unlabeled")
        with self._read(project) as conn:
            asked = _at(conn, project, now)
            for some in chunks([item for item in states if storable(item)]):
                rows = conn.execute(_SOME, {**asked, "some": some})
                states |= {item: state for item, state in rows}
        return states

    def items_page(
        self,
        project: str,
        *,
        state: str | None = None,
        after: str | None = None,
        limit: int = 1000,
        now: float | None = None,
    ) -> list[ItemRow]:
        """Return touched items in the order of their ids.

        Args:
            project: its name.
            state: only those in this state; by default all but forgotten ones.
            after: an item id: only those after it.
            limit: most items to return.
            now: seconds since the epoch; None takes the ledger's clock.
        """
        with self._read(project) as conn:
            in_state = _STATE.not_in(["forgotten"]) if state is None else _STATE.in_([state])
            query = _PAGE.where(in_state)
            if after is not None:
                query = query.where(items.c.item > after)
            rows = conn.execute(query.limit(limit), _at(conn, project, now)).mappings()
            return [ItemRow(**row) for row in rows]

    def ready(self, project: str, *, now: float | None = None) -> int:
        """Return the number of offered items with a slot that nobody fills or holds."""
        with self._read(project) as conn:
            return int(conn.scalar(_READY, _at(conn, project, now)) or 0)

    def offered(
        self,
        project: str,
        *,
        after: tuple[int, int] | None = None,
        limit: int = 1000,
        now: float | None = None,
    ) -> list[OfferedRow]:
        """Return the items that may be leased, in the order in which they are handed out.

        Args:
            project: its name.
            after: a round and a rank: only items that come after them.
            limit: most items to return.
            now: seconds since the epoch; None takes the ledger's clock.
        """
        query = _OFFERED.limit(limit)
        if after is not None:
            query = query.where(tuple_(*_PLACE) > tuple_(*after))
        with self._read(project) as conn:
            rows = conn.execute(query, _at(conn, project, now)).mappings()
            return [OfferedRow(**row) for row in rows]

    def open_items(self, project: str) -> list[str]:
        """Return the offered items that still want labels, held or not, by (round, rank)."""
        with self._read(project) as conn:
            return list(conn.scalars(_OPEN, {"project": project}))

    def counts(
        self, project: str, round: int | None = None, *, now: float | None = None
    ) -> dict[str, int]:
        """Return the number of touched items in each state, and ``wanted``, that of offered ones.

        Args:
            project: its name.
            round: only the items that this round offered; all by default.
            now: seconds since the epoch; None takes the ledger's clock.
        """
        with self._read(project) as conn:
            query = _COUNTS if round is None else _COUNTS.where(items.c["round"] == round)
            rows = conn.execute(query, _at(conn, project, now))
            totals = {state: (count, offered) for state, count, offered in rows}
        wanted = sum(offered for state, (_, offered) in totals.items() if state != "forgotten")
        shown = ("offered", "leased", "labeled", "skipped", "conflict")
        return {"wanted": wanted} | {state: totals.get(state, (0, 0))[0] for state in shown}


def _at(conn: Connection, project: str, now: float | None) -> dict[str, Any]:
    return {"project": project, "moment": clock(conn) if now is None else now}


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
        """Purge an item, and never offer, lease or train on it again; repeating it changes nothing.

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
            forgotten = conn.scalars(query.having(func.count() == len(names)))
            return sorted(forgotten) if names else []

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
    names_item = type_coerce(events.c.payload, Text).contains(to_json(item), autoescape=True)
    query = select(events.c.seq, events.c.payload).where(events.c.project == project, names_item)
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
