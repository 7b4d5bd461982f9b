"""Answers: an append-only history, what each entry becomes, and the values to train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, bindparam, func, select

from rayal.errors import LedgerError
from rayal.ledger.agreement_rules import value_text
from rayal.ledger.columns import plain
from rayal.ledger.label_transaction import (
    ACCEPTED,
    RETRACTED,
    SKIPPED,
    SURPLUS,
    UPDATED,
    Desk,
    is_label,
    last_seq,
)
from rayal.ledger.leases import EXPIRED, LABELED, sweep
from rayal.ledger.leases import SKIPPED as SKIPPED_LEASE
from rayal.ledger.records import LabelEntry, LabelResult, LabelRow, SkipEntry
from rayal.ledger.schema import items, labels
from rayal.ledger.store import Row, Store, check_name

Entry = LabelEntry | SkipEntry


def _resolved() -> Select[Any]:
    """Select item and value by the last row of each item's history until ``until``."""
    row, winner = labels.alias("row"), labels.alias("held")
    project = bindparam("project", type_=labels.c.project.type)
    history = (labels.c.project == project) & (labels.c.seq <= bindparam("until"))
    last = select(func.max(labels.c.seq)).where(history).group_by(labels.c.item)
    return (
        select(winner.c.item, winner.c.value)
        .join_from(row, winner, winner.c.seq == row.c.resolution)
        .join(items, items.c.item == winner.c.item)
        .where(row.c.project == project, winner.c.project == project)
        .where(items.c.project == project, items.c.forgotten.is_(False))
        .where(row.c.seq.in_(last))
    )


# Statements are made once: that costs more than running them.
_RESOLVED = _resolved()
_HISTORY = (
    labels.select()
    .where(labels.c.project == bindparam("project"), labels.c.seq > bindparam("since"))
    .order_by(labels.c.seq)
)
_NEW = (
    select(func.count(labels.c.item.distinct()))
    .join(items, (items.c.project == labels.c.project) & (items.c.item == labels.c.item))
    .where(labels.c.project == bindparam("project"), labels.c.seq > bindparam("since"))
    .where(labels.c.slot.is_not(None), labels.c.superseded_by.is_(None))
    .where(items.c["round"].is_not(None))
)


class Labels(Store):
    """The part of the ledger that records the annotators' answers.

    The last answer of an annotator on an item counts, be it a label, a skip or a retraction; all
    answers are kept.

    - A label fills a free slot of its item, with or without a lease; an item that is full keeps
      it as surplus (``rayal.ledger.agreement_rules`` says what that is good for). A label that says
      what the annotator's standing label says is a duplicate and changes nothing. Another one
      replaces it, and takes over its slot; if that was surplus, it takes a free slot if there is
      one.
    - A skip hides the item from the annotator, and a label that comes later ends it. After a
      label it is rejected, so that a message that comes twice or late destroys no work: retract
      the label first.
    - A retraction takes back a label or a skip, and frees the label's slot. The annotator has then
      said nothing of the item, and may be asked for it again. A surplus label of another annotator
      stays surplus.
    - Whatever the answers are, active leases + filled slots of an item ≤ its need: open leases of
      others that have no slot left are revoked, the newest first.
    """

    def label(
        self,
        project: str,
        annotator: str,
        entries: Sequence[Entry],
        *,
        now: float | None = None,
    ) -> list[LabelResult]:
        """Record answers in one transaction, and return the result of each, in order.

        An entry that names a lease which is not this annotator's lease of the item, a value that
        is no JSON value, or a forgotten item is rejected alone; a late one is kept always.
        """
        check_name("annotator", annotator)
        with self._write("label", project, now) as tx:
            sweep(tx, project)
            named = [entry.lease for entry in entries if entry.lease is not None]
            clerk = _Clerk(Desk(tx, project, [e.item for e in entries], named), annotator)
            results = [clerk.take(entry) for entry in entries]
            clerk.desk.write()
        return results

    def retract(
        self, project: str, annotator: str, item: str, *, now: float | None = None
    ) -> LabelResult:
        """Take back the annotator's label or skip of an item; a second call changes nothing.

        Rejected where the annotator never said anything of it, or the item is forgotten.
        """
        check_name("annotator", annotator)
        with self._write("retract", project, now) as tx:
            sweep(tx, project)
            clerk = _Clerk(Desk(tx, project, [item]), annotator)
            result = clerk.retract(item)
            clerk.desk.write()
        return result

    def resolved(self, project: str, up_to: int | None = None) -> dict[str, Any]:
        """Return the value to train on per item, sorted by item id.

        It is what the project's agreement made of the labels as the history stood at ``up_to``:
        later answers do not count. Items without such a value are left out, among them those in
        conflict; so are forgotten ones.

        Args:
            project: its name.
            up_to: the last row of the history to look at; all by default.
        """
        with self._read(project) as conn:
            until = last_seq(conn, project) if up_to is None else up_to
            rows = conn.execute(_RESOLVED, {"project": project, "until": until})
            values = {item: value for item, value in rows}
        return dict(sorted(values.items()))

    def labels_seq(self, project: str) -> int:
        """Return the number of the last row of the project's history, 0 at first."""
        with self._read(project) as conn:
            return last_seq(conn, project)

    def labels(self, project: str, since: int = 0, limit: int | None = None) -> list[LabelRow]:
        """Return the history of answers after row ``since``, in order, at most ``limit`` rows."""
        with self._read(project) as conn:
            rows = conn.execute(_HISTORY.limit(limit), {"project": project, "since": since})
            return [LabelRow(**row) for row in rows.mappings()]

    def new_labels(self, project: str, since: int) -> int:
        """Return how many offered items have a label in a slot that came after row ``since``.

        Labels that were replaced or taken back since do not count, nor do those of items that were
        never offered, such as imports and test items.
        """
        with self._read(project) as conn:
            return int(conn.scalar(_NEW, {"project": project, "since": since}) or 0)


class _Clerk:
    """Takes one annotator's entries at a desk."""

    def __init__(self, desk: Desk, annotator: str) -> None:
        self.desk = desk
        self.annotator = annotator

    def take(self, entry: Entry) -> LabelResult:
        """Record an entry, or say why it is rejected."""
        try:
            return self._skip(entry) if isinstance(entry, SkipEntry) else self._label(entry)
        except LedgerError as error:
            return LabelResult(entry.item, "rejected", False, None, str(error))

    def retract(self, item: str) -> LabelResult:
        """Record a retraction, or say why it is rejected."""
        old = self._answer(item)
        if old is None or self._forgotten(item):
            why = "is forgotten" if old else f"has no answer of annotator {self.annotator!r}"
            return LabelResult(item, "rejected", False, None, f"item {item!r} {why}")
        if old["status"] == RETRACTED:
            return LabelResult(item, "retracted", False, old["seq"])
        row, _ = self.desk.add(
            {
                **{"item": item, "annotator": self.annotator, "value": None, "slot": None},
                **{"status": RETRACTED, "late": False, "lease": None, "reason": None},
                "provenance": {},
            }
        )
        return LabelResult(item, "retracted", False, row["seq"])

    def _label(self, entry: LabelEntry) -> LabelResult:
        base = self._base(entry)
        value = plain(entry.value, f"the label of item {entry.item!r}")
        old = self._answer(entry.item)
        stands = old is not None and is_label(old)
        if old is not None and stands and value_text(old["value"]) == value_text(value):
            return LabelResult(entry.item, "duplicate", old["late"], old["seq"])
        slot = old["slot"] if old is not None else None
        slot = self.desk.free_slot(entry.item) if slot is None else slot
        status = UPDATED if stands else SURPLUS if slot is None else ACCEPTED
        self.desk.end_own_leases(entry.item, self.annotator, LABELED)
        answer = {**base, "value": value, "status": status, "slot": slot, "reason": None}
        row, verdict = self.desk.add(answer)
        conflict = status == ACCEPTED and verdict.conflict
        return LabelResult(
            entry.item, "conflict" if conflict else row["status"], row["late"], row["seq"]
        )

    def _skip(self, entry: SkipEntry) -> LabelResult:
        base = self._base(entry)
        old = self._answer(entry.item)
        if old is not None and is_label(old):
            raise LedgerError(
                f"annotator {self.annotator!r} labeled item {entry.item!r}; to skip it, retract "
                "the label first"
            )
        if old is not None and old["status"] == SKIPPED:
            return LabelResult(entry.item, "duplicate", old["late"], old["seq"])
        self.desk.end_own_leases(entry.item, self.annotator, SKIPPED_LEASE)
        reason = None if entry.reason is None else check_name("reason", entry.reason)
        answer = {**base, "value": None, "status": SKIPPED, "slot": None, "reason": reason}
        row, _ = self.desk.add(answer)
        return LabelResult(entry.item, "skipped", row["late"], row["seq"])

    def _base(self, entry: Entry) -> dict[str, Any]:
        """Return the columns that every answer takes from its entry, or raise LedgerError."""
        check_name("item", entry.item)
        if self._forgotten(entry.item):
            raise LedgerError(f"item {entry.item!r} is forgotten; it takes no answers any more")
        what = f"the provenance of item {entry.item!r}"
        lease = self._lease(entry)
        return {
            "item": entry.item,
            "annotator": self.annotator,
            "late": lease is not None and lease["state"] == EXPIRED,
            "lease": None if lease is None else lease["lease"],
            "provenance": plain(dict(entry.provenance), what),
        }

    def _lease(self, entry: Entry) -> Row | None:
        """Return the lease of an entry: the annotator's open one on the item, or one it names.

        An entry that names an expired lease is not late if the annotator got the item again.
        """
        row = None
        if entry.lease is not None:
            row = self.desk.leases.get(entry.lease)
            if row is None or (row["item"], row["annotator"]) != (entry.item, self.annotator):
                raise LedgerError(
                    f"lease {entry.lease!r} is not a lease of item {entry.item!r} by annotator "
                    f"{self.annotator!r} in project {self.desk.project!r}; send the label with "
                    "its own lease, or without one"
                )
        own = [r for r in self.desk.active[entry.item] if r["annotator"] == self.annotator]
        return own[0] if own and (row is None or row["state"] == EXPIRED) else row

    def _answer(self, item: str) -> dict[str, Any] | None:
        return self.desk.answers[item].get(self.annotator)

    def _forgotten(self, item: str) -> bool:
        return bool(self.desk.items.get(item, {}).get("forgotten", False))
