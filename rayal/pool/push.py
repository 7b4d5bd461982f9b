"""Add items a few at a time: each call adds one snapshot, and reports on every item.

Beside ``ingest``, which takes whole sources and refuses them whole, this takes what it can. Of the
pool that is there only keys are read, and ids and hashes of items that come again: the cost is a
binary search in each part. A call makes one part for each role, so many small calls make many
small parts, which every later scan opens one by one: at most ``PARTS`` of them are taken. Larger
numbers of items belong into one call, whose parts then hold up to 16k rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rayal.errors import PoolError
from rayal.failpoints import failpoint
from rayal.ledger.ledger import Ledger
from rayal.ledger.records import PoolPart
from rayal.pool.deduplicate import refuse_changed
from rayal.pool.gather import Index, Progress, Spill, gather
from rayal.pool.ingest import locked
from rayal.pool.source import ROLES, Source
from rayal.pool.storage import open_random, present
from rayal.pool.write_parts import place

PARTS = 10_000  # of one pool
_KEPT = (
    "payload",
    "label_kind",
    "classes",
    "labels",
)  # information that the next snapshot inherits


class Refused(NamedTuple):
    """An item that was not taken, and why."""

    item: str
    reason: str


@dataclass(frozen=True)
class Pushed:
    """The result of a push of items.

    Args:
        created: items that are new in the pool.
        unchanged: items that were there, or stood twice, with the same content.
        conflicts: items whose id stands for another content.
        rejected: items that cannot be used.
        snapshot: the snapshot that holds them.
    """

    created: int
    unchanged: int
    conflicts: tuple[Refused, ...]
    rejected: tuple[Refused, ...]
    snapshot: int


def create_empty(
    ledger: Ledger, name: str, payload: dict[str, Any], classes: Sequence[str] | None
) -> int:
    """Make a pool without items and return its snapshot's number.

    Args:
        ledger: the storage root's ledger.
        name: the pool's name.
        payload: description of the bytes of future rows.
        classes: the names of the labels; None where they are numbers.
    """
    kind = {"label_kind": "number"} if classes is None else {"label_kind": "class"}
    info = {"payload": payload, **kind, **({} if classes is None else {"classes": list(classes)})}
    return ledger.commit_snapshot(name, [], info)


def push(
    ledger: Ledger,
    name: str,
    sources: Sequence[Source],
    *,
    progress: Progress | None = None,
    seconds: float = 30.0,
) -> Pushed:
    """Add the items of sources to an existing pool, and report the result for each of them.

    No transaction is open while payloads are written; it must not be called within one, since a
    second call waits for this one at the pool's folder.

    Args:
        ledger: the storage root's ledger.
        name: the pool's name.
        sources: sources of the items, each with its role; all have the pool's kind of row.
        progress: called with rows read and rows in all, None if not known.
        seconds: longest wait for another call that writes to the pool.

    Raises:
        PoolError: another call writes to the pool for too long, or it has too many parts.
        UnknownNameError: there is no such pool.
    """
    root = Path(ledger.root)
    with locked(root / "pools" / name, seconds) as folder, Spill(folder) as spill:
        before = ledger.snapshot(name)
        _check(name, before.parts, before.info["payload"], sources)
        read = gather(sources, spill, progress, strict=False)
        rejected = tuple(Refused(item, reason) for item, reason in read.quarantined)
        new, conflicts = admit(read.index, root, before.parts)
        unchanged = len(read.index) - len(new) - len(conflicts)
        if not len(new):
            return Pushed(0, unchanged, tuple(conflicts), rejected, before.number)
        committed = {part.part for part in before.parts}
        payload = before.info["payload"]
        parts = place(new, spill, root=root, pool=name, payload=payload, held=committed)
        failpoint("ingest.commit")
        info = {key: before.info[key] for key in _KEPT if key in before.info}
        number = ledger.commit_snapshot(name, parts, {**info, "added": _counts(new)})
        return Pushed(len(new), unchanged, tuple(conflicts), rejected, number)


def admit(index: Index, root: Path, parts: Sequence[PoolPart]) -> tuple[Index, list[Refused]]:
    """Return the rows that are new, in id-key order, and those whose id has another content.

    Of rows of one id the first that came counts.

    Args:
        index: rows in order of arrival.
        root: the storage root.
        parts: parts of the pool.
    """
    rows = index.take(np.argsort(index.keys, kind="stable"))
    again = np.concatenate([[False], rows.keys[1:] == rows.keys[:-1]])[: len(rows)]
    conflicts = []
    for row in np.flatnonzero(again).tolist():
        first = int(np.searchsorted(rows.keys, rows.keys[row]))
        conflicts += _conflict(rows, row, _described(rows, first))
    fresh = rows.take(~again)
    new = np.ones(len(fresh), bool)
    for row, old in _known(fresh, root, parts):
        new[row] = False
        conflicts += _conflict(fresh, row, old)
    return fresh.take(new), conflicts


def _known(
    rows: Index, root: Path, parts: Sequence[PoolPart]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows whose key is in a part, with what stands there."""
    for part in parts if len(rows) else ():
        reader = open_random(present(root / part.file))
        for number in range(reader.num_record_batches):
            tile = reader.get_batch(number)
            keys = tile.column("key").to_numpy()
            first = int(np.searchsorted(rows.keys, keys[0]))
            mine = rows.keys[first : int(np.searchsorted(rows.keys, keys[-1], side="right"))]
            at = np.searchsorted(keys, mine)
            for row in np.flatnonzero(keys[at] == mine).tolist():
                there = {n: tile.column(n)[at[row]].as_py() for n in ("id", "content_hash")}
                yield first + row, {**there, "role": part.role}


def _conflict(rows: Index, row: int, old: dict[str, Any]) -> list[Refused]:
    if not str(old["content_hash"]).strip("0"):
        item = rows.ids[row].as_py()
        return [Refused(item, f"item {item!r} was forgotten, and its id is not free again")]
    try:
        refuse_changed(rows, row, old)
    except PoolError as error:
        return [Refused(rows.ids[row].as_py(), str(error))]
    return []


def _described(rows: Index, row: int) -> dict[str, Any]:
    role = ROLES[rows.roles[row]]
    return {"id": rows.ids[row].as_py(), "content_hash": rows.content_hash(row), "role": role}


def _check(
    name: str, parts: Sequence[PoolPart], payload: dict[str, Any], sources: Sequence[Source]
) -> None:
    if len(parts) >= PARTS:
        raise PoolError(
            f"pool {name!r} has {len(parts)} parts, {PARTS} are allowed; push many items at once, "
            "as one stream of JSON lines"
        )
    for source in sources:
        if dict(source.payload) != payload:
            raise PoolError(
                f"pool {name!r} holds {payload}, the items are {dict(source.payload)}; the items "
                "of a pool are of one kind"
            )


def _counts(rows: Index) -> dict[str, int]:
    return {role: int((rows.roles == number).sum()) for number, role in enumerate(ROLES)}
