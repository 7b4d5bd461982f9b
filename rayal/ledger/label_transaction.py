"""The items that a write touches, as they stand while answers are taken one after another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, bindparam, func, select

from rayal.failpoints import failpoint
from rayal.ledger.agreement_rules import Labeling, Verdict
from rayal.ledger.leases import REVOKED, is_active
from rayal.ledger.schema import items, labels, leases
from rayal.ledger.store import Row, Transaction, chunks, storable

ACCEPTED, SURPLUS, UPDATED, SKIPPED, RETRACTED = (
    "accepted",
    "surplus",
    "updated",
    "skipped",
    "retracted",
)


def _of_project(table: Table, name: str, *more: ColumnElement[bool]) -> Select[Any]:
    """Return the query for a project's rows with one of some values in a column."""
    among = table.c[name].in_(bindparam("values", expanding=True))
    return table.select().where(table.c.project == bindparam("project"), among, *more)


_ITEMS = _of_project(items, "item")
_ANSWERS = _of_project(labels, "item", labels.c.superseded_by.is_(None))
_ACTIVE = _of_project(leases, "item", is_active())
_LEASES = _of_project(leases, "lease")
_LAST = select(func.max(labels.c.seq)).where(labels.c.project == bindparam("project"))


class Desk:
    """Touched items with their answers and open leases, and the changes to be written.

    Args:
        tx: the transaction.
        project: its name.
        touched: ids of the items, known to the ledger or not.
        named: leases to look up, whatever their state.
    """

    def __init__(
        self, tx: Transaction, project: str, touched: Sequence[str], named: Sequence[str] = ()
    ) -> None:
        self.tx = tx
        self.project = project
        self.rules = Labeling.of(tx.row["settings"])
        self.last = last_seq(tx.conn, project)
        self.items = {row["item"]: dict(row) for row in self._rows(_ITEMS, touched)}
        self._before = {item: dict(row) for item, row in self.items.items()}
        # The last answer of each annotator, whatever it was.
        self.answers: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        self.active: dict[str, list[Row]] = defaultdict(list)
        if self.items:  # an untouched item has neither answers nor leases
            for row in self._rows(_ANSWERS, touched):
                self.answers[row["item"]][row["annotator"]] = row
            for row in self._rows(_ACTIVE, touched):
                self.active[row["item"]].append(row)
        self.leases = {row["lease"]: row for row in self._rows(_LEASES, named)}
        self._new: dict[int, dict[str, Any]] = {}  # history rows by seq
        self._superseded: dict[int, int] = {}  # old history row -> new one
        self._ended: dict[str, str] = {}  # lease -> state

    def _rows(self, query: Select[Any], values: Sequence[str]) -> list[dict[str, Any]]:
        """Return the project's rows of a query with one of these values."""
        rows: list[dict[str, Any]] = []
        for some in chunks(sorted({value for value in values if storable(value)})):
            named = {"project": self.project, "values": some}
            rows += map(dict, self.tx.conn.execute(query, named).mappings())
        return rows

    def item(self, item: str) -> dict[str, Any]:
        """Return an item's row; one without a row was never touched, and gets one."""
        new = {
            "project": self.project,
            "item": item,
            **{"round": None, "rank": None, "score": None},
            **{"need": self.rules.labels_per_item, "accepted": 0},
            **{name: False for name in ("conflict", "skipped", "forgotten", "open")},
        }
        return self.items.setdefault(item, new)

    def labels_of(self, item: str) -> list[dict[str, Any]]:
        """Return the standing labels of an item: skips and retractions are none."""
        return [row for row in self.answers[item].values() if is_label(row)]

    def free_slot(self, item: str) -> int | None:
        """Return the number that a label in a free slot gets; None if the item is full."""
        slots = [row["slot"] for row in self.labels_of(item) if row["slot"] is not None]
        return max(slots, default=0) + 1 if len(slots) < self.item(item)["need"] else None

    def add(self, answer: Row) -> tuple[dict[str, Any], Verdict]:
        """Append an answer to the history; return its row and the verdict on the item's labels.

        Args:
            answer: item, annotator, value, status, slot, late, lease, reason and provenance.
        """
        self.last += 1
        item, annotator = answer["item"], answer["annotator"]
        row = {
            "project": self.project,
            "seq": self.last,
            **answer,
            "resolution": None,
            "superseded_by": None,
            "time": self.tx.time,
        }
        old = self.answers[item].get(annotator)
        if old is not None and old["seq"] in self._new:
            old["superseded_by"] = self.last
        elif old is not None:
            self._superseded[old["seq"]] = self.last
        self._new[self.last] = self.answers[item][annotator] = row
        verdict = self.settle(item)
        row["resolution"] = verdict.resolution
        return row, verdict

    def end_own_leases(self, item: str, annotator: str, state: str) -> None:
        """End the annotator's open lease on an item."""
        mine = [row for row in self.active[item] if row["annotator"] == annotator]
        self._ended |= {row["lease"]: state for row in mine}
        self.active[item] = [row for row in self.active[item] if row["annotator"] != annotator]

    def settle(self, item: str) -> Verdict:
        """Bring an item's row up to date with its answers, and end leases that have no slot left.

        The newest leases are ended first. What max_skips hides is not offered; leases on it live.
        """
        row, standing = self.item(item), self.labels_of(item)
        verdict = self.rules.judge(standing, offered=row["round"] is not None)
        skips = sum(answer["status"] == SKIPPED for answer in self.answers[item].values())
        accepted = sum(label["slot"] is not None for label in standing)
        row["need"], row["conflict"] = verdict.need, verdict.conflict
        row["accepted"], row["skipped"] = accepted, skips >= self.rules.max_skips
        closed = row["round"] is None or row["skipped"] or row["forgotten"]
        row["open"] = accepted < row["need"] and not closed
        active = sorted(self.active[item], key=lambda lease: (lease["granted"], lease["lease"]))
        free = 0 if row["forgotten"] else row["need"] - accepted
        self._ended |= {lease["lease"]: REVOKED for lease in active[free:]}
        self.active[item] = active[:free]
        return verdict

    def write(self) -> None:
        """Write what the answers became."""
        tx, key = self.tx, {"project": self.project}
        tx.insert(items, [row for item, row in self.items.items() if item not in self._before])
        rows = list(self._new.values())
        tx.insert(labels, rows[:1])
        failpoint("label.insert")
        tx.insert(labels, rows[1:])
        tx.update(
            labels, [{**key, "seq": s, "superseded_by": by} for s, by in self._superseded.items()]
        )
        before = self._before.items()
        tx.update(items, [self.items[item] for item, row in before if self.items[item] != row])
        tx.update(leases, [{"lease": i, "state": state} for i, state in self._ended.items()])


def is_label(answer: Row) -> bool:
    """Return whether an answer is a label: neither a skip nor a retraction."""
    return answer["status"] not in (SKIPPED, RETRACTED)


def last_seq(conn: Connection, project: str) -> int:
    """Return the number of the last row of a project's history, 0 at first."""
    return conn.scalar(_LAST, {"project": project}) or 0
