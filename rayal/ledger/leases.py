"""Leases: an annotator's hold on an offered item until a point in time.

At every commit, active leases + accepted labels of an item ≤ its need, and no annotator holds an
item twice, or one that they labeled or skipped. Every write first expires what is past its time,
so that a lease whose row says active holds its slot.
"""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    ScalarSelect,
    Select,
    Table,
    and_,
    bindparam,
    func,
    select,
)

from rayal.errors import LeaseError, SettingsError, UnknownLeaseError
from rayal.ledger.agreement_rules import Labeling, check_seconds
from rayal.ledger.records import Lease
from rayal.ledger.schema import items, labels, leases
from rayal.ledger.store import Row, Store, Transaction, check_name, storable

ACTIVE, EXPIRED, RETURNED, REVOKED = "active", "expired", "returned", "revoked"
LABELED, SKIPPED = "labeled", "skipped"


class Leases(Store):
    """Handing out the offered items."""

    def lease(
        self,
        project: str,
        annotator: str,
        count: int,
        *,
        ttl: float | None = None,
        now: float | None = None,
    ) -> list[Lease]:
        """Return up to ``count`` items to label: the annotator's open leases, then new ones.

        Open leases come back unchanged, so a client that crashed loses nothing; new ones follow
        the offers by (round, rank), without items that the annotator labeled or skipped.

        Args:
            project: its name.
            annotator: the annotator who asks.
            count: number of items, counting those already leased to the annotator.
            ttl: seconds that a new lease lasts; by default what the project's settings say.
            now: seconds since the epoch; None takes the ledger's clock.
        """
        if count < 0:
            raise SettingsError(f"count is {count}; it must be 0 or more")
        check_name("annotator", annotator)
        if ttl is not None:
            check_seconds("ttl", ttl)
        with self._write("lease", project, now) as tx:
            sweep(tx, project)
            if ttl is None:
                ttl = Labeling.of(tx.row["settings"]).lease_ttl
            asked = {"project": project, "annotator": annotator}
            active = tx.conn.execute(_HELD, asked).mappings()
            renewed = [_lease(dict(row)) for row in active][:count]
            free = {**asked, "count": count - len(renewed)}
            offers = [dict(row) for row in tx.conn.execute(_OFFERS, free).mappings()]
            rows = [_new_lease(offer, annotator, tx.time, ttl) for offer in offers]
            tx.insert(leases, rows)
            new = [_lease({**o, **r}) for o, r in zip(offers, rows, strict=True)]
        return renewed + new

    def extend(
        self,
        project: str,
        lease: str,
        ttl: float,
        annotator: str | None = None,
        *,
        now: float | None = None,
    ) -> Lease:
        """Extend a lease to last at least ``ttl`` seconds from now, and return it.

        One that expired lives again if the annotator could get the item still.

        Args:
            project: its name.
            lease: the lease.
            ttl: seconds.
            annotator: required holder of the lease; anybody by default.
            now: seconds since the epoch; None takes the ledger's clock.

        Raises:
            LeaseError: it is over, and its slot is taken.
            UnknownLeaseError: there is no such lease, or it is another annotator's.
        """
        check_seconds("ttl", ttl)
        with self._write("extend", project, now) as tx:
            sweep(tx, project)
            row = _known_lease(tx.conn, project, lease, annotator)
            if row["state"] != ACTIVE and not (row["state"] == EXPIRED and _free(tx.conn, row)):
                taken = ", and its slot is taken" if row["state"] == EXPIRED else ""
                raise LeaseError(
                    f"lease {lease} of item {row['item']!r} is {row['state']}{taken}; ask for "
                    "other work, or send the label all the same: it is kept"
                )
            expires = max(row["expires"], tx.time + ttl)
            tx.update(leases, [{"lease": lease, "state": ACTIVE, "expires": expires}])
            return _lease(dict(tx.conn.execute(_LEASE, {"lease": lease}).mappings().one()))

    def give_back(
        self, project: str, lease: str, annotator: str | None = None, *, now: float | None = None
    ) -> None:
        """End a lease without a label; one that is over already stays as it is.

        Raises:
            UnknownLeaseError: there is no such lease, or it is another annotator's.
        """
        with self._write("give_back", project, now) as tx:
            sweep(tx, project)
            if _known_lease(tx.conn, project, lease, annotator)["state"] == ACTIVE:
                tx.update(leases, [{"lease": lease, "state": RETURNED}])


def is_active() -> ColumnElement[bool]:
    """Return the condition that a lease holds a slot."""
    return leases.c.state == ACTIVE


def sweep(tx: Transaction, project: str) -> None:
    """Expire the leases of a project that are past their time."""
    overdue = sorted(tx.conn.scalars(_OVER, {"project": project, "time": tx.time}))
    tx.update(leases, [{"lease": lease, "state": EXPIRED} for lease in overdue])


def on_item(table: Any) -> ColumnElement[bool]:
    """Return the condition that a row of a table belongs to the item's row."""
    return and_(table.c.project == items.c.project, table.c.item == items.c.item)


def has_free_slot(*, lasting: bool = False) -> ColumnElement[bool]:
    """Return the condition that an item may be leased by somebody.

    Args:
        lasting: count only leases that last beyond ``moment``, not all that say they are active.
    """
    active = is_active()
    if lasting:
        active &= leases.c.expires > bindparam("moment")
    return and_(items.c.open.is_(True), items.c.accepted + _count(leases, active) < items.c.need)


def _open_items() -> Select[Any]:
    """Select the items with a free slot that the annotator neither holds, labeled nor skipped.

    Rows are counted, not tested for existence: of that PostgreSQL makes joins which, before it has
    statistics, read every lease for every item.
    """
    annotator: BindParameter[str] = bindparam("annotator")
    holds = is_active() & (leases.c.annotator == annotator)
    answered = (labels.c.annotator == annotator) & labels.c.superseded_by.is_(None)
    return select(items).where(
        items.c.project == bindparam("project"),
        has_free_slot(),
        _count(leases, holds) == 0,
        _count(labels, answered & (labels.c.status != "retracted")) == 0,
    )


def _count(table: Table, condition: ColumnElement[bool]) -> ScalarSelect[int]:
    """Return the number of an item's rows in a table."""
    query = select(func.count()).select_from(table).where(on_item(table), condition)
    return query.correlate(items).scalar_subquery()


def _holding(*conditions: ColumnElement[bool]) -> Select[Any]:
    return (
        select(leases, items.c["round"], items.c.rank, items.c.score)
        .join_from(leases, items)
        .where(*conditions)
        .order_by(items.c["round"], items.c.rank)
    )


_OFFERS = _open_items().order_by(items.c["round"], items.c.rank).limit(bindparam("count"))
_FREE = _open_items().where(items.c.item == bindparam("item"))
_LEASE = _holding(leases.c.lease == bindparam("lease"))
_HELD = _holding(
    leases.c.project == bindparam("project"),
    is_active(),
    leases.c.annotator == bindparam("annotator"),
)
_OVER = select(leases.c.lease).where(
    leases.c.project == bindparam("project"),
    is_active(),
    leases.c.expires <= bindparam("time"),
)


def _free(conn: Connection, lease: Row) -> bool:
    named = {name: lease[name] for name in ("project", "item", "annotator")}
    return conn.execute(_FREE, named).first() is not None


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


def _known_lease(conn: Connection, project: str, lease: str, annotator: str | None) -> Row:
    named = (leases.c.project == project) & (leases.c.lease == lease)
    row = conn.execute(leases.select().where(named)).mappings().first() if storable(lease) else None
    if row is None or annotator not in (None, row["annotator"]):
        of = "" if annotator is None else f" for annotator {annotator!r}"
        raise UnknownLeaseError(
            f"lease {lease!r} does not exist in project {project!r}{of}; ask for work by lease()"
        )
    return dict(row)
