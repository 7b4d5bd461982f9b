"""Labels: an append-only history, what each entry becomes, and the values to train on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from rayal.errors import LedgerError
from rayal.failpoints import failpoint
from rayal.project.pools import labels_per_item
from rayal.project.records import LabelEntry, LabelResult, LabelRow
from rayal.project.schema import items, labels, leases, plain, to_json
from rayal.project.store import Row, Store, Transaction, chunks, known_project
from rayal.project.work import EXPIRED, LABELED, REVOKED, is_active, sweep


class Labels(Store):
    """Taking the annotators' answers."""

    def label(
        self,
        project: str,
        annotator: str,
        entries: Sequence[LabelEntry],
        *,
        now: float | None = None,
    ) -> list[LabelResult]:
        """Record answers in one transaction, and return what became of each, in order.

        A label that fills a slot revokes open leases of others, the newest first, as far as the
        item's need asks for it; a late one is kept always.

        Raises:
            LedgerError: an entry names a lease that is not this annotator's lease of the item, or
                a value that is not JSON; nothing is recorded then.
        """
        with self._write("label", project, now) as tx:
            sweep(tx, project)
            desk = _Desk(tx, project, annotator, entries)
            results = [desk.take(entry) for entry in entries]
            desk.write()
        return results

    def resolved(self, project: str, up_to: int | None = None) -> dict[str, Any]:
        """Return the value to train on per item, sorted by item id.

        That is the current label of whoever filled the item's first slot, as the history stood at
        ``up_to``: later labels and corrections do not count.

        Args:
            project: its name.
            up_to: the last row of the history to look at; all by default.
        """
        with self._read(project) as conn:
            last = _last_seq(conn, project) if up_to is None else up_to
            replaced = labels.c.superseded_by
            query = (
                select(labels.c.item, labels.c.value)
                .where(labels.c.project == project, labels.c.seq <= last)
                .where(labels.c.slot.is_not(None), replaced.is_(None) | (replaced > last))
                .order_by(labels.c.slot.desc())
            )
            values = {item: value for item, value in conn.execute(query)}
        return dict(sorted(values.items()))

    def labels_seq(self, project: str) -> int:
        """Return the number of the last row of the project's label history, 0 at first."""
        with self._read(project) as conn:
            return _last_seq(conn, project)

    def labels(self, project: str) -> list[LabelRow]:
        """Return the whole label history, in order."""
        with self._read(project) as conn:
            query = labels.select().where(labels.c.project == project).order_by(labels.c.seq)
            return [LabelRow(**row) for row in conn.execute(query).mappings()]


class _Desk:
    """The touched items as they stand while entries are taken one after another."""

    def __init__(
        self, tx: Transaction, project: str, annotator: str, entries: Sequence[LabelEntry]
    ) -> None:
        self.tx = tx
        self.project = project
        self.annotator = annotator
        self.need = labels_per_item(known_project(tx.conn, project)["settings"])
        self.last = _last_seq(tx.conn, project)
        self.rows: dict[int, dict[str, Any]] = {}  # new history rows by seq
        self.superseded: dict[int, int] = {}  # old history row -> new one
        self.ended: dict[str, str] = {}  # lease -> state
        touched = sorted({entry.item for entry in entries})
        self.items = {r["item"]: dict(r) for r in self._rows(items, "item", touched)}
        self.known = {item: row["accepted"] for item, row in self.items.items()}
        mine = (labels.c.annotator == annotator) & labels.c.superseded_by.is_(None)
        self.current = {r["item"]: dict(r) for r in self._rows(labels, "item", touched, mine)}
        self.active: dict[str, list[Row]] = defaultdict(list)
        for row in self._rows(leases, "item", touched, is_active()):
            self.active[row["item"]].append(row)
        named = sorted({entry.lease for entry in entries if entry.lease is not None})
        self.leases = {row["lease"]: row for row in self._rows(leases, "lease", named)}

    def _rows(self, table: Any, name: str, values: Sequence[str], *more: Any) -> list[Row]:
        query = table.select().where(table.c.project == self.project, *more)
        found: list[Row] = []
        for some in chunks(values):
            rows = self.tx.conn.execute(query.where(table.c[name].in_(some))).mappings()
            found += [dict(row) for row in rows]
        return found

    def take(self, entry: LabelEntry) -> LabelResult:
        """Decide what an entry becomes, and note what is to be written."""
        value = plain(entry.value, f"the label of item {entry.item!r}")
        lease = self._lease(entry)
        late = lease is not None and lease["state"] == EXPIRED
        current = self.current.get(entry.item)
        if current is not None and _same(current["value"], value):
            return LabelResult(entry.item, "duplicate", late, current["seq"])
        row = self._row(entry.item, value, current)
        row |= {"late": late, "lease": None if lease is None else lease["lease"]}
        self.rows[row["seq"]] = self.current[entry.item] = row
        self._end_leases(entry.item)
        return LabelResult(entry.item, row["status"], late, row["seq"])

    def _row(self, item: str, value: Any, current: dict[str, Any] | None) -> dict[str, Any]:
        self.last += 1
        row = {
            "project": self.project,
            "seq": self.last,
            "item": item,
            "annotator": self.annotator,
            "value": value,
            "superseded_by": None,
            "time": self.tx.time,
        }
        if current is None:
            return row | self._slot(item)
        if current["seq"] in self.rows:
            current["superseded_by"] = self.last
        else:
            self.superseded[current["seq"]] = self.last
        return row | {"status": "updated", "slot": current["slot"]}

    def _slot(self, item: str) -> dict[str, Any]:
        """Fill a slot of the item if one is left. An item without a row was never offered."""
        new = {"round": None, "rank": None, "score": None, "need": self.need, "accepted": 0}
        row = self.items.setdefault(item, {"project": self.project, "item": item, **new})
        if row["accepted"] >= row["need"]:
            return {"status": "surplus", "slot": None}
        row["accepted"] += 1
        return {"status": "accepted", "slot": row["accepted"]}

    def _lease(self, entry: LabelEntry) -> Row | None:
        """Return the lease that an entry names, else the annotator's open one on the item."""
        if entry.lease is None:
            own = [r for r in self.active[entry.item] if r["annotator"] == self.annotator]
            return own[0] if own else None
        row = self.leases.get(entry.lease)
        if row is None or (row["item"], row["annotator"]) != (entry.item, self.annotator):
            raise LedgerError(
                f"lease {entry.lease!r} is not a lease of item {entry.item!r} by annotator "
                f"{self.annotator!r} in project {self.project!r}; send the label with its own "
                "lease, or without one"
            )
        return row

    def _end_leases(self, item: str) -> None:
        """End the annotator's lease on the item, and the newest of others that have no slot."""
        others = []
        for row in self.active[item]:
            if row["annotator"] == self.annotator:
                self.ended[row["lease"]] = LABELED
            else:
                others.append(row)
        others.sort(key=lambda row: (row["granted"], row["lease"]))
        free = max(self.items[item]["need"] - self.items[item]["accepted"], 0)
        self.ended |= {row["lease"]: REVOKED for row in others[free:]}
        self.active[item] = others[:free]

    def write(self) -> None:
        """Write what the entries became."""
        tx, key = self.tx, {"project": self.project}
        tx.insert(items, [row for item, row in self.items.items() if item not in self.known])
        rows = list(self.rows.values())
        tx.insert(labels, rows[:1])
        failpoint("label.insert")
        tx.insert(labels, rows[1:])
        tx.update(
            labels, [{**key, "seq": s, "superseded_by": by} for s, by in self.superseded.items()]
        )
        filled = {i: self.items[i]["accepted"] for i in self.known}
        changed = [i for i, accepted in filled.items() if accepted != self.known[i]]
        tx.update(items, [{**key, "item": i, "accepted": filled[i]} for i in changed])
        tx.update(leases, [{"lease": i, "state": state} for i, state in self.ended.items()])


def _same(one: Any, other: Any) -> bool:
    """Compare as JSON text: in Python 1, 1.0 and True would be equal."""
    return to_json(one, sort_keys=True) == to_json(other, sort_keys=True)


def _last_seq(conn: Connection, project: str) -> int:
    return conn.scalar(select(func.max(labels.c.seq)).where(labels.c.project == project)) or 0
