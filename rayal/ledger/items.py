"""What became of the items that were touched, and which of them can be handed out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Label,
    and_,
    bindparam,
    case,
    exists,
    func,
    or_,
    select,
    tuple_,
)

from rayal.ledger.answers import ItemRow, OfferedRow
from rayal.ledger.leases import has_free_slot, is_active, on_item
from rayal.ledger.schema import items, leases, picks
from rayal.ledger.store import Store, chunks, clock, storable

STATES = ("unlabeled", "offered", "leased", "labeled", "skipped", "conflict", "forgotten")


def _state() -> Label[str]:
    """Return the state of an item at ``moment``."""
    lasts = leases.c.expires > bindparam("moment")
    held = exists().where(on_item(leases), is_active(), lasts)
    full = items.c.accepted >= items.c.need
    unasked = and_(items.c["round"].is_(None), items.c.accepted > 0)
    return case(
        (items.c.forgotten.is_(True), "forgotten"),
        (items.c.conflict.is_(True), "conflict"),
        (or_(full, unasked), "labeled"),
        (held.correlate(items), "leased"),
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
    """Looking at items. Leases that are past their time count as over.

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
        found = dict.fromkeys(wanted, "unlabeled")
        with self._read(project) as conn:
            asked = _at(conn, project, now)
            for some in chunks([item for item in found if storable(item)]):
                rows = conn.execute(_SOME, {**asked, "some": some})
                found |= {item: state for item, state in rows}
        return found

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
            told = _STATE.not_in(["forgotten"]) if state is None else _STATE.in_([state])
            query = _PAGE.where(told)
            if after is not None:
                query = query.where(items.c.item > after)
            rows = conn.execute(query.limit(limit), _at(conn, project, now)).mappings()
            return [ItemRow(**row) for row in rows]

    def ready(self, project: str, *, now: float | None = None) -> int:
        """Return how many offered items have a slot that nobody fills or holds."""
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
        """Return what may be leased, in the order in which it is handed out.

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
        """Return how many touched items are in each state, and ``wanted``: how many were offered.

        Args:
            project: its name.
            round: only the items that this round offered; all by default.
            now: seconds since the epoch; None takes the ledger's clock.
        """
        with self._read(project) as conn:
            query = _COUNTS if round is None else _COUNTS.where(items.c["round"] == round)
            rows = conn.execute(query, _at(conn, project, now))
            found = {state: (count, offered) for state, count, offered in rows}
        wanted = sum(offered for state, (_, offered) in found.items() if state != "forgotten")
        shown = ("offered", "leased", "labeled", "skipped", "conflict")
        return {"wanted": wanted} | {state: found.get(state, (0, 0))[0] for state in shown}


def _at(conn: Connection, project: str, now: float | None) -> dict[str, Any]:
    return {"project": project, "moment": clock(conn) if now is None else now}
