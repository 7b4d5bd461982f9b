"""Selections: the picks of each round, the best items it did not pick, and the reasons."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from rayal.errors import LedgerError, ScoreError
from rayal.failpoints import failpoint
from rayal.ledger.columns import plain
from rayal.ledger.items import blank_forgotten
from rayal.ledger.label_transaction import Desk
from rayal.ledger.records import Appearance, LabelRow, LeaseRow, Pick, SelectionRow
from rayal.ledger.rounds import write_stage
from rayal.ledger.schema import labels, leases, picks, selections
from rayal.ledger.store import Row, Store, Transaction, unsigned

INITIAL = -1  # the round of the initial choice, which has no stages


class Selections(Store):
    """The part of the ledger that keeps selections."""

    def commit_selection(
        self,
        project: str,
        round: int,
        picks: Sequence[Pick],
        runners_up: Sequence[Pick],
        provenance: Mapping[str, Any],
        *,
        stage: str | None,
        output: Mapping[str, Any],
        seconds: float,
    ) -> None:
        """Record a selection, offer its picks and finish its stage, in one transaction.

        Args:
            project: its name.
            round: the round; -1 for the initial choice.
            picks: the chosen items, in any order; work is handed out by (round, rank).
            runners_up: the best items not picked.
            provenance: the basis of the choice: strategy, parameters, seed, model hashes, ….
            stage: the stage that this finishes; None for the initial choice alone, whose
                ``output`` must then be empty.
            output: output of the stage.
            seconds: duration of the stage.

        Raises:
            LedgerError: the round has a selection, an item stands twice or was offered before.
            ScoreError: a score or a probability is not a finite number.
        """
        rows = _pick_rows(project, round, picks, picked=True)
        others = _pick_rows(project, round, runners_up, picked=False)
        _check_picks(rows, others)
        _check_stage(round, stage, output)
        with self._write("selection", project) as tx:
            blank_forgotten(tx, project, [*rows, *others])
            _write_selection(tx, project, round, provenance)
            half = len(rows) // 2
            tx.insert(_PICKS, rows[:half])
            failpoint("select.insert")
            tx.insert(_PICKS, [*rows[half:], *others])
            _offer(tx, project, rows)
            if stage is not None:
                key = {"round": round, "stage": stage}
                write_stage(tx, project, key, output, seconds=seconds)

    def selection(self, project: str, round: int) -> SelectionRow | None:
        """Return the selection of a round, by rank; None if there is none yet."""
        with self._read(project) as conn:
            row = _selection(conn, project, round)
            if row is None:
                return None
            of_round = (picks.c.project == project) & (picks.c["round"] == round)
            chosen = conn.execute(picks.select().where(of_round).order_by(picks.c.rank)).mappings()
            both: dict[bool, list[Pick]] = {True: [], False: []}
            for pick in chosen:
                both[pick["picked"]].append(Pick(**{n: pick[n] for n in _PICK_FIELDS}))
        return SelectionRow(**row, picks=tuple(both[True]), runners_up=tuple(both[False]))

    def why(self, project: str, item: str) -> list[Appearance | LeaseRow | LabelRow]:
        """Return an item's story: its appearances by round, then leases and answers by time.

        Answers are labels, skips and retractions, by their status. An item that no selection,
        lease or answer ever named has none.
        """
        with self._read(project) as conn:
            story: list[Appearance | LeaseRow | LabelRow] = list(_appearances(conn, project, item))
            work: list[LeaseRow | LabelRow] = []
            for table, cls in ((leases, LeaseRow), (labels, LabelRow)):
                of_item = (table.c.project == project) & (table.c.item == item)
                rows = conn.execute(table.select().where(of_item)).mappings()
                work += [cls(**row) for row in rows]
        return story + sorted(work, key=_moment)


_PICKS = picks  # an argument has the same name
_PICK_FIELDS = tuple(Pick.__dataclass_fields__)


def _pick_rows(
    project: str, round: int, chosen: Sequence[Pick], *, picked: bool
) -> list[dict[str, Any]]:
    return [
        {
            "project": project,
            "round": round,
            "item": pick.item,
            "key": unsigned(pick.key, f"the key of item {pick.item!r}"),
            "rank": int(pick.rank),
            "score": _finite(pick.score, "score", pick.item),
            "probability": _finite(pick.probability, "probability", pick.item),
            "picked": picked,
        }
        for pick in chosen
    ]


def _finite(value: float | None, what: str, item: str) -> float | None:
    if value is None:
        return None
    if not math.isfinite(value):
        raise ScoreError(
            f"{what} of item {item!r} is {value}; give a finite number, or None where it is "
            "undefined"
        )
    return float(value)


def _check_picks(rows: Sequence[Row], others: Sequence[Row]) -> None:
    """Raise LedgerError if an item stands twice, or two picks share a rank."""
    for name, of in (("item", [*rows, *others]), ("rank", rows)):
        seen = set()
        for row in of:
            if row[name] in seen:
                raise LedgerError(
                    f"{name} {row[name]!r} stands twice in the selection; each item may be picked "
                    "or runner-up once, and each pick has a rank of its own"
                )
            seen.add(row[name])


def _check_stage(round: int, stage: str | None, output: Mapping[str, Any]) -> None:
    if stage is None and round != INITIAL:
        raise LedgerError(
            f"the selection of round {round} must finish a stage; only the initial choice "
            f"(round {INITIAL}) has none"
        )
    if stage is None and output:
        raise LedgerError(
            f"output {sorted(output)} has no stage to belong to; put it into the provenance"
        )


def _write_selection(
    tx: Transaction, project: str, round: int, provenance: Mapping[str, Any]
) -> None:
    if _selection(tx.conn, project, round) is not None:
        raise LedgerError(
            f"round {round} of project {project!r} has a selection already; read it instead of "
            "selecting again"
        )
    what = f"provenance of round {round}"
    row = {"project": project, "round": round, "provenance": plain(dict(provenance), what)}
    tx.insert(selections, [{**row, "committed": tx.time}])


def _offer(tx: Transaction, project: str, rows: Sequence[Row]) -> None:
    """Offer the picks; an item that got a label without ever being offered keeps it."""
    desk = Desk(tx, project, [row["item"] for row in rows])
    for row in rows:
        known = desk.items.get(row["item"])
        if known is not None and known["forgotten"]:
            continue
        if known is not None and known["round"] is not None:
            raise LedgerError(
                f"item {row['item']!r} was offered in round {known['round']} already; exclude "
                "offered, leased and labeled items (states) before selecting"
            )
        desk.item(row["item"]).update({name: row[name] for name in ("round", "rank", "score")})
        desk.settle(row["item"])
    desk.write()


def _selection(conn: Connection, project: str, round: int) -> dict[str, Any] | None:
    of_round = (selections.c.project == project) & (selections.c["round"] == round)
    row = conn.execute(selections.select().where(of_round)).mappings().first()
    return None if row is None else dict(row)


def _appearances(conn: Connection, project: str, item: str) -> list[Appearance]:
    query = (
        select(picks, selections.c.provenance)
        .join_from(picks, selections)
        .where(picks.c.project == project, picks.c.item == item)
        .order_by(picks.c["round"])
    )
    return [Appearance(**row) for row in conn.execute(query).mappings()]


def _moment(row: LeaseRow | LabelRow) -> tuple[float, int]:
    if isinstance(row, LeaseRow):
        return row.granted, 0
    return row.time, row.seq
