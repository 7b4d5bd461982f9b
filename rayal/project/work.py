"""Leases: who holds which offered item, until when.

At every commit, active leases + accepted labels of an item ≤ its need, and no annotator holds an
item twice or one that they labeled. Every write first expires what is past its time, so that a
lease whose row says active holds its slot.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, func, select

from rayal.errors import LedgerError, SettingsError
from rayal.project.records import Lease
from rayal.project.schema import items, labels, leases
from rayal.project.store import Row, Store, Transaction, clock

ACTIVE, EXPIRED, RETURNED, REVOKED, LABELED = "active", "expired", "returned", "revoked", "labeled"


class Leases(Store):
    """Handing out the offered items."""

    def lease(
        self,
        project: str,
        annotator: str,
        count: int,
        *,
        ttl: float = 900.0,
        now: float | None = None,
    ) -> list[Lease]:
        """Return up to ``count`` items to label: the annotator's open leases, then new ones.

        Open leases come back unchanged, so a client that crashed loses nothing; new ones follow
        the offers by (round, rank), without items that the annotator labeled.

        Args:
            project: its name.
            annotator: who asks.
            count: how many items, counting those already held.
            ttl: seconds that a new lease lasts.
            now: seconds since the epoch; None takes the ledger's clock.
        """
        if count < 0:
            raise SettingsError(f"count is {count}; it must be 0 or more")
        _check_ttl(ttl)
        with self._write("lease", project, now) as tx:
            sweep(tx, project)
            held = _holding(tx.conn, _of(project, annotator) & is_active())[:count]
            offers = _offers(tx.conn, project, annotator, count - len(held))
            rows = [_new_lease(offer, annotator, tx.time, ttl) for offer in offers]
            tx.insert(leases, rows)
            new = [_lease({**o, **r}) for o, r in zip(offers, rows, strict=True)]
        return held + new

    def extend(self, project: str, lease: str, ttl: float, *, now: float | None = None) -> Lease:
        """Let a lease last at least ``ttl`` seconds from now, and return it.

        One that expired lives again if the item still has a free slot.

        Raises:
            LedgerError: it is unknown, over, or its slot is taken.
        """
        _check_ttl(ttl)
        with self._write("extend", project, now) as tx:
            sweep(tx, project)
            row = _known_lease(tx.conn, project, lease)
            if row["state"] != ACTIVE and not (row["state"] == EXPIRED and _free(tx.conn, row)):
                taken = ", and its slot is taken" if row["state"] == EXPIRED else ""
                raise LedgerError(
                    f"lease {lease} of item {row['item']!r} is {row['state']}{taken}; ask for "
                    "other work, or send the label all the same: it is kept"
                )
            expires = max(row["expires"], tx.time + ttl)
            tx.update(leases, [{"lease": lease, "state": ACTIVE, "expires": expires}])
            return _holding(tx.conn, leases.c.lease == lease)[0]

    def give_back(self, project: str, lease: str, *, now: float | None = None) -> None:
        """End a lease without a label; one that is over already stays as it is.

        Raises:
            LedgerError: the lease is unknown.
        """
        with self._write("give_back", project, now) as tx:
            sweep(tx, project)
            if _known_lease(tx.conn, project, lease)["state"] == ACTIVE:
                tx.update(leases, [{"lease": lease, "state": RETURNED}])

    def states(self, project: str, *, now: float | None = None) -> dict[str, str]:
        """Return offered, leased or labeled per item that was ever touched, sorted by item.

        An item is labeled when its slots are filled, or when a label came without its ever being
        offered; leased while an unexpired lease is open on it.
        """
        with self._read(project) as conn:
            moment = clock(conn) if now is None else now
            of_project = leases.c.project == project
            open_now = of_project & is_active() & (leases.c.expires > moment)
            leased = set(conn.scalars(select(leases.c.item).where(open_now)))
            found = conn.execute(items.select().where(items.c.project == project)).mappings()
            rows = sorted((dict(row) for row in found), key=lambda row: str(row["item"]))
            return {row["item"]: _state(row, leased) for row in rows}


def is_active() -> ColumnElement[bool]:
    """Return the condition that a lease holds a slot."""
    return leases.c.state == ACTIVE


def sweep(tx: Transaction, project: str) -> None:
    """Expire the leases of a project that are past their time."""
    over = (leases.c.project == project) & is_active() & (leases.c.expires <= tx.time)
    found = sorted(tx.conn.scalars(select(leases.c.lease).where(over)))
    tx.update(leases, [{"lease": lease, "state": EXPIRED} for lease in found])


def _of(project: str, annotator: str) -> ColumnElement[bool]:
    return (leases.c.project == project) & (leases.c.annotator == annotator)


def _on_item(table: Any) -> ColumnElement[bool]:
    return and_(table.c.project == items.c.project, table.c.item == items.c.item)


def _open_items(annotator: str) -> Select[Any]:
    """Select the items with a free slot that the annotator neither holds nor labeled."""
    active = select(func.count()).select_from(leases).where(_on_item(leases), is_active())
    holds = exists().where(_on_item(leases), is_active(), leases.c.annotator == annotator)
    labeled = exists().where(_on_item(labels), labels.c.annotator == annotator)
    return select(items).where(
        items.c.accepted < items.c.need,
        items.c.accepted + active.correlate(items).scalar_subquery() < items.c.need,
        ~holds.correlate(items),
        ~labeled.correlate(items),
    )


def _offers(conn: Connection, project: str, annotator: str, count: int) -> Sequence[Row]:
    query = (
        _open_items(annotator)
        .where(items.c.project == project, items.c["round"].is_not(None))
        .order_by(items.c["round"], items.c.rank)
        .limit(count)
    )
    return [dict(row) for row in conn.execute(query).mappings()]


def _free(conn: Connection, lease: Row) -> bool:
    this = (items.c.project == lease["project"]) & (items.c.item == lease["item"])
    return conn.execute(_open_items(lease["annotator"]).where(this)).first() is not None


def _holding(conn: Connection, condition: ColumnElement[bool]) -> list[Lease]:
    query = (
        select(leases, items.c["round"], items.c.rank, items.c.score)
        .join_from(leases, items)
        .where(condition)
        .order_by(items.c["round"], items.c.rank)
    )
    return [_lease(dict(row)) for row in conn.execute(query).mappings()]


def _lease(row: Row) -> Lease:
    return Lease(**{name: row[name] for name in Lease.__dataclass_fields__})


def _new_lease(offer: Row, annotator: str, granted: float, ttl: float) -> dict[str, Any]:
    return {
        "lease": uuid.uuid4().hex,
        "project": offer["project"],
        "item": offer["item"],
        "annotator": annotator,
        "state": ACTIVE,
        "granted": granted,
        "expires": granted + ttl,
    }


def _known_lease(conn: Connection, project: str, lease: str) -> Row:
    named = (leases.c.project == project) & (leases.c.lease == lease)
    row = conn.execute(leases.select().where(named)).mappings().first()
    if row is None:
        raise LedgerError(
            f"lease {lease!r} does not exist in project {project!r}; ask for work by lease()"
        )
    return dict(row)


def _check_ttl(ttl: float) -> None:
    if not (math.isfinite(ttl) and ttl > 0):
        raise SettingsError(f"ttl is {ttl}; it must be a finite number of seconds above 0")


def _state(item: Row, leased: set[str]) -> str:
    if item["accepted"] >= item["need"] or item["round"] is None:
        return "labeled"
    return "leased" if item["item"] in leased else "offered"
