"""Pools and their snapshots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from rayal.errors import LedgerError, UnknownNameError, nearest
from rayal.ledger.columns import plain
from rayal.ledger.records import PoolPart, Snapshot
from rayal.ledger.schema import parts as parts_table
from rayal.ledger.schema import snapshots
from rayal.ledger.store import Store, relative_file, unsigned


class Pools(Store):
    """The part of the ledger that keeps pools and their snapshots."""

    def commit_snapshot(self, pool: str, parts: Sequence[PoolPart], info: Mapping[str, Any]) -> int:
        """Add parts to a pool in one transaction and return the new snapshot's number: 1, 2, ….

        The snapshot holds every part of the one before it, then these.

        Raises:
            LedgerError: a part of that name is in the pool already.
        """
        with self._write("snapshot") as tx:
            last = tx.conn.scalar(
                select(func.max(snapshots.c.number)).where(snapshots.c.pool == pool)
            )
            number = (last or 0) + 1
            known = [p.part for p in _parts(tx.conn, pool, number)]
            rows = [_part_row(pool, number, i, p) for i, p in enumerate(parts, len(known))]
            _refuse_known(pool, known, [p.part for p in parts])
            info = plain(dict(info), f"info of pool {pool!r}")
            tx.insert(
                snapshots, [{"pool": pool, "number": number, "info": info, "created": tx.time}]
            )
            tx.insert(parts_table, rows)
        return number

    def replace_part(self, pool: str, part: PoolPart) -> None:
        """Record another file for a part of a pool, in every snapshot that holds it.

        Args:
            pool: the pool's name.
            part: with the same name, rows and keys as before, and the new file.

        Raises:
            LedgerError: the pool has no such part, or its rows are others.
        """
        with self._write("purge") as tx:
            named = (parts_table.c.pool == pool) & (parts_table.c.part == part.part)
            row = tx.conn.execute(parts_table.select().where(named)).mappings().first()
            same = ("role", "rows", "key_sum")
            if row is None or any(row[name] != getattr(part, name) for name in same):
                raise LedgerError(
                    f"pool {pool!r} has no part {part.part!r} of {part.rows} rows with key sum "
                    f"{part.key_sum}; only the file of a part can change"
                )
            new = {"file": relative_file(part.file), "bytes": int(part.bytes)}
            tx.update(parts_table, [{"pool": pool, "part": part.part, **new}])

    def snapshot(self, pool: str, number: int | None = None) -> Snapshot:
        """Return a snapshot of a pool, the latest by default.

        Raises:
            UnknownNameError: no pool of that name, or no snapshot of that number.
        """
        with self._read() as conn:
            return find_snapshot(conn, pool, number)

    def pools(self) -> list[str]:
        """Return the names of the pools, sorted."""
        with self._read() as conn:
            return sorted(conn.scalars(select(snapshots.c.pool).distinct()))


def find_snapshot(conn: Connection, pool: str, number: int | None) -> Snapshot:
    """Return a snapshot of a pool, the latest if no number is given."""
    of_pool = snapshots.select().where(snapshots.c.pool == pool)
    newest = of_pool.order_by(snapshots.c.number.desc()).limit(1)
    row = latest = conn.execute(newest).mappings().first()
    if latest is None:
        names = conn.scalars(select(snapshots.c.pool).distinct())
        raise UnknownNameError(f"pool {pool!r} does not exist; {nearest(pool, names)}")
    if number is not None:
        row = conn.execute(of_pool.where(snapshots.c.number == number)).mappings().first()
    if row is None:
        last = latest["number"]
        raise UnknownNameError(f"pool {pool!r} has no snapshot {number}; it has 1 to {last}")
    return Snapshot(**{**row, "parts": tuple(_parts(conn, pool, row["number"]))})


def _parts(conn: Connection, pool: str, number: int) -> list[PoolPart]:
    parts = parts_table
    names = [parts.c[f] for f in PoolPart.__dataclass_fields__]
    up_to = (parts.c.pool == pool) & (parts.c.number <= number)
    rows = conn.execute(select(*names).where(up_to).order_by(parts.c.position)).mappings()
    return [PoolPart(**row) for row in rows]


def _part_row(pool: str, number: int, position: int, part: PoolPart) -> dict[str, Any]:
    return {
        "pool": pool,
        "number": number,
        "position": position,
        "part": part.part,
        "file": relative_file(part.file),
        "role": part.role,
        "rows": int(part.rows),
        "key_sum": unsigned(part.key_sum, f"the key sum of part {part.part!r}"),
        "bytes": int(part.bytes),
    }


def _refuse_known(pool: str, known: Sequence[str], new: Sequence[str]) -> None:
    seen = set(known)
    for part in new:
        if part in seen:
            raise LedgerError(
                f"part {part!r} is in pool {pool!r} already; parts are immutable, so commit new "
                "items as a part of another name"
            )
        seen.add(part)
