"""Leases: who holds which offered item, until when.

At every commit, active leases + accepted labels of an item ≤ its need, and no annotator holds an
item twice, or one that they labeled or skipped. Every write first expires what is past its time,
so that a lease whose row says active holds its slot.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, and_, exists, func, select

from rayal.errors import LeaseError, SettingsError, UnknownLeaseError
from rayal.project.agreement import Labeling, check_seconds
from rayal.project.answers import Lease
from rayal.project.schema import items, labels, leases
from rayal.project.store import Row, Store, Transaction, check_name, known_project, storable

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
            annotator: who asks.
            count: how many items, counting those already held.
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
                ttl = Labeling.of(known_project(tx.conn, project)["settings"]).lease_ttl
            held = _holding(tx.conn, _of(project, annotator) & is_active())[:count]
            offers = _offers(tx.conn, project, annotator, count - len(held))
            rows = [_new_lease(offer, annotator, tx.time, ttl) for offer in offers]
            tx.insert(leases, rows)
            new = [_lease({**o, **r}) for o, r in zip(offers, rows, strict=True)]
        return held + new

    def extend(
        self,
        project: str,
        lease: str,
        ttl: float,
        annotator: str | None = None,
        *,
        now: float | None = None,
    ) -> Lease:
        """Let a lease last at least ``ttl`` seconds from now, and return it.

        One that expired lives again if the annotator could get the item still.

        Args:
            project: its name.
            lease: the lease.
            ttl: seconds.
            annotator: whose lease it must be; anybody's by default.
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
            return _holding(tx.conn, leases.c.lease == lease)[0]

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
    over = (leases.c.project == project) & is_active() & (leases.c.expires <= tx.time)
    found = sorted(tx.conn.scalars(select(leases.c.lease).where(over)))
    tx.update(leases, [{"lease": lease, "state": EXPIRED} for lease in found])


def _of(project: str, annotator: str) -> ColumnElement[bool]:
    return (leases.c.project == project) & (leases.c.annotator == annotator)


def on_item(table: Any) -> ColumnElement[bool]:
    """Return the condition that a row of a table belongs to the item's row."""
    return and_(table.c.project == items.c.project, table.c.item == items.c.item)


def has_free_slot(moment: float | None = None) -> ColumnElement[bool]:
    """Return the condition that an item may be leased by somebody.

    Args:
        moment: count only leases that last beyond it; None counts all that say they are active.
    """
    active = select(func.count()).select_from(leases).where(on_item(leases), is_active())
    if moment is not None:
        active = active.where(leases.c.expires > moment)
    taken = items.c.accepted + active.correlate(items).scalar_subquery()
    return and_(items.c.open.is_(True), taken < items.c.need)


def _open_items(annotator: str) -> Select[Any]:
    """Select the items with a free slot that the annotator neither holds, labeled nor skipped."""
    holds = exists().where(on_item(leases), is_active(), leases.c.annotator == annotator)
    answered = exists().where(
        on_item(labels),
        labels.c.annotator == annotator,
        labels.c.superseded_by.is_(None),
        labels.c.status != "retracted",
    )
    return select(items).where(has_free_slot(), ~holds.correlate(items), ~answered.correlate(items))


def _offers(conn: Connection, project: str, annotator: str, count: int) -> Sequence[Row]:
    query = (
        _open_items(annotator)
        .where(items.c.project == project)
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


def _known_lease(conn: Connection, project: str, lease: str, annotator: str | None) -> Row:
    named = (leases.c.project == project) & (leases.c.lease == lease)
    row = conn.execute(leases.select().where(named)).mappings().first() if storable(lease) else None
    if row is None or annotator not in (None, row["annotator"]):
        of = "" if annotator is None else f" for annotator {annotator!r}"
        raise UnknownLeaseError(
            f"lease {lease!r} does not exist in project {project!r}{of}; ask for work by lease()"
        )
    return dict(row)
