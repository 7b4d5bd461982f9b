"""The items that a write touches, as they stand while answers are taken one after another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from rayal.failpoints import failpoint
from rayal.project.agreement import Labeling, Verdict
from rayal.project.schema import items, labels, leases
from rayal.project.store import Row, Transaction, chunks, known_project, storable
from rayal.project.work import REVOKED, is_active

ACCEPTED, SURPLUS, UPDATED, SKIPPED, RETRACTED = (
    "accepted",
    "surplus",
    "updated",
    "skipped",
    "retracted",
)


class Desk:
    """Touched items with their answers and open leases, and what is to be written of them.

    Args:
        tx: the transaction.
        project: its name.
        touched: ids of the items, known to the ledger or not.
    """

    def __init__(self, tx: Transaction, project: str, touched: Sequence[str]) -> None:
        self.tx = tx
        self.project = project
        self.rules = Labeling.of(known_project(tx.conn, project)["settings"])
        self.last = last_seq(tx.conn, project)
        self.items = {row["item"]: dict(row) for row in self.rows(items, "item", touched)}
        self._before = {item: dict(row) for item, row in self.items.items()}
        # The last answer of each annotator, whatever it was.
        self.answers: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
        for row in self.rows(labels, "item", touched, labels.c.superseded_by.is_(None)):
            self.answers[row["item"]][row["annotator"]] = dict(row)
        self.active: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows(leases, "item", touched, is_active()):
            self.active[row["item"]].append(row)
        self._new: dict[int, dict[str, Any]] = {}  # history rows by seq
        self._superseded: dict[int, int] = {}  # old history row -> new one
        self._ended: dict[str, str] = {}  # lease -> state

    def rows(self, table: Any, name: str, values: Sequence[str], *more: Any) -> list[Row]:
        """Return the project's rows of a table whose column has one of these values."""
        query = table.select().where(table.c.project == self.project, *more)
        found: list[Row] = []
        for some in chunks(sorted({value for value in values if storable(value)})):
            rows = self.tx.conn.execute(query.where(table.c[name].in_(some))).mappings()
            found += [dict(row) for row in rows]
        return found

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
        """Append an answer to the history; return its row and what the item's labels now make.

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
        """Let an item be what its answers make of it, and end leases that have no slot left.

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
        held = sorted(self.active[item], key=lambda lease: (lease["granted"], lease["lease"]))
        free = 0 if row["forgotten"] else row["need"] - accepted
        self._ended |= {lease["lease"]: REVOKED for lease in held[free:]}
        self.active[item] = held[:free]
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
    """Whether an answer is a label: neither a skip nor a retraction."""
    return answer["status"] not in (SKIPPED, RETRACTED)


def last_seq(conn: Connection, project: str) -> int:
    """Return the number of the last row of a project's history, 0 at first."""
    return conn.scalar(select(func.max(labels.c.seq)).where(labels.c.project == project)) or 0
