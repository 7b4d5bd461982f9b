"""Pools and their snapshots, and the projects that work on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from rayal.errors import LedgerError, SettingsError, UnknownNameError, nearest
from rayal.project import schema
from rayal.project.records import PoolPart, ProjectRow, Snapshot
from rayal.project.schema import plain, projects, snapshots, to_json
from rayal.project.store import Store, known_project, relative_file, unsigned

_ABSENT = object()
_SHOWN = 3  # differing settings that a message names


class Pools(Store):
    """What the ledger knows of pools and projects."""

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
            tx.insert(schema.parts, rows)
        return number

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

    def create_project(self, project: str, pool: str, settings: Mapping[str, Any]) -> None:
        """Make a project; once more with the same pool and settings, nothing happens.

        ``labels_per_item`` among the settings (1 by default) is how many annotators label an item.

        Raises:
            SettingsError: the project exists with other settings.
        """
        wanted = plain(dict(settings), f"settings of project {project!r}")
        labels_per_item(wanted)
        with self._write("project") as tx:
            row = (
                tx.conn.execute(projects.select().where(projects.c.project == project))
                .mappings()
                .first()
            )
            if row is not None:
                _refuse_other(project, dict(row), {"pool": pool, "settings": wanted})
                return
            tx.project = project  # from here on it exists
            tx.insert(
                projects,
                [{"project": project, "pool": pool, "settings": wanted, "created": tx.time}],
            )

    def project(self, project: str) -> ProjectRow:
        """Return a project; UnknownNameError offers the nearest name."""
        with self._read() as conn:
            return ProjectRow(**known_project(conn, project))

    def projects(self) -> list[str]:
        """Return the names of the projects, sorted."""
        with self._read() as conn:
            return sorted(conn.scalars(select(projects.c.project)))


def find_snapshot(conn: Connection, pool: str, number: int | None) -> Snapshot:
    """Return a snapshot of a pool, the latest if no number is given."""
    rows = conn.execute(
        snapshots.select().where(snapshots.c.pool == pool).order_by(snapshots.c.number)
    ).mappings()
    known = {row["number"]: row for row in rows}
    if not known:
        names = conn.scalars(select(snapshots.c.pool).distinct())
        raise UnknownNameError(f"pool {pool!r} does not exist; {nearest(pool, names)}")
    wanted = max(known) if number is None else number
    if wanted not in known:
        raise UnknownNameError(f"pool {pool!r} has no snapshot {wanted}; it has 1 to {max(known)}")
    return Snapshot(**{**known[wanted], "parts": tuple(_parts(conn, pool, wanted))})


def labels_per_item(settings: Mapping[str, Any]) -> int:
    """Return how many annotators label an item, or raise SettingsError."""
    need = settings.get("labels_per_item", 1)
    if not isinstance(need, int) or isinstance(need, bool) or need < 1:
        raise SettingsError(f"labels_per_item is {need!r}; it must be a whole number from 1 on")
    return need


def _parts(conn: Connection, pool: str, number: int) -> list[PoolPart]:
    parts = schema.parts
    names = [parts.c[f] for f in PoolPart.__dataclass_fields__]
    held = (parts.c.pool == pool) & (parts.c.number <= number)
    rows = conn.execute(select(*names).where(held).order_by(parts.c.position)).mappings()
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


def _refuse_other(project: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise SettingsError naming the first keys in which a project differs."""
    differing = list(_differences({k: old[k] for k in new}, new))
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise SettingsError(
            f"project {project!r} exists with other settings: {'; '.join(differing[:_SHOWN])}"
            f"{more}; use the settings it was made with, or another name"
        )


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Yield a sentence per key in which two JSON values differ, in the order of the old one."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            inner = f"{path}.{key}" if path else key
            yield from _differences(old.get(key, _ABSENT), new.get(key, _ABSENT), inner)
    elif _shown(old) != _shown(new):
        yield f"{path} was {_shown(old)}, now {_shown(new)}"


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else to_json(value, sort_keys=True)
