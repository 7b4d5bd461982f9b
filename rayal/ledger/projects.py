"""Projects: their settings, versions of these, and their end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import select

from rayal.errors import LedgerError, PreconditionError, SettingsError
from rayal.ledger.agreement_rules import Labeling
from rayal.ledger.columns import plain, to_json
from rayal.ledger.jobs import cancel_jobs
from rayal.ledger.label_transaction import SKIPPED, Desk
from rayal.ledger.records import ProjectRow
from rayal.ledger.schema import labels, projects
from rayal.ledger.store import Store, Transaction, check_name, known_project

_ABSENT = object()
_SHOWN = 3  # differing settings that a message names
_FIXED = ("labels_per_item", "agreement", "max_labels", "tolerance")


class Projects(Store):
    """The part of the ledger that keeps projects."""

    def create_project(self, project: str, pool: str, settings: Mapping[str, Any]) -> None:
        """Make a project; a second call with the same pool and settings changes nothing.

        Args:
            project: its name.
            pool: name of the pool it works on.
            settings: a JSON object; its mapping ``labeling`` says how items are labeled
                (``Labeling``).

        Raises:
            SettingsError: the project exists with other settings, or ``labeling`` does not fit.
            LedgerError: a deleted project had the name.
        """
        wanted = plain(dict(settings), f"settings of project {project!r}")
        Labeling.of(wanted)
        check_name("project", project)
        with self._write("project") as tx:
            query = projects.select().where(projects.c.project == project)
            row = tx.conn.execute(query).mappings().first()
            if row is not None and row["deleted"] is not None:
                raise LedgerError(
                    f"project {project!r} was deleted, and its name is not free again; give "
                    "another name"
                )
            if row is not None:
                _refuse_other(project, dict(row), {"pool": pool, "settings": wanted})
                return
            tx.project = project  # from here on it exists
            new = {"project": project, "pool": pool, "settings": wanted, "created": tx.time}
            tx.insert(projects, [{**new, "version": 1, "deleted": None}])

    def update_project(
        self,
        project: str,
        settings: Mapping[str, Any],
        *,
        version: int,
        now: float | None = None,
    ) -> int:
        """Set a project's settings, and return its new version; equal ones change nothing.

        Args:
            project: its name.
            settings: all of them.
            version: the version that they were made from.
            now: seconds since the epoch; None takes the ledger's clock.

        Raises:
            PreconditionError: the project has another version.
            SettingsError: how many labels make an item's value would change: the training sets
                of past rounds rest on it.
        """
        wanted = plain(dict(settings), f"settings of project {project!r}")
        rules = Labeling.of(wanted)
        with self._write("project", project, now) as tx:
            row = tx.row
            if row["version"] != version:
                raise PreconditionError(
                    f"project {project!r} has version {row['version']}, not {version}; read it "
                    "again, and repeat the change on what it is now"
                )
            before = Labeling.of(row["settings"])
            for name in _FIXED:
                if getattr(before, name) != getattr(rules, name):
                    raise SettingsError(
                        f"labeling.{name} of project {project!r} is {getattr(before, name)!r} and "
                        "cannot change; make a new project on the same pool"
                    )
            if _shown(row["settings"]) == _shown(wanted):  # as values, in whatever order
                return version
            change = {"project": project, "settings": wanted, "version": version + 1}
            tx.update(projects, [change])
            tx.row = {**row, **change}
            if before.max_skips != rules.max_skips:
                _settle_skipped(tx, project)
            return version + 1

    def delete_project(self, project: str, *, now: float | None = None) -> None:
        """Delete a project and cancel its jobs; its name does not become free again.

        Its rows stay, so that the files they name still count.
        """
        with self._write("delete", project, now, locks=("jobs",)) as tx:
            tx.update(projects, [{"project": project, "deleted": tx.time}])
            cancel_jobs(tx, project)

    def project(self, project: str) -> ProjectRow:
        """Return a project; UnknownNameError offers the nearest name."""
        with self._read() as conn:
            return ProjectRow(**known_project(conn, project))

    def projects(self) -> list[str]:
        """Return the names of the projects, sorted."""
        with self._read() as conn:
            alive = projects.c.deleted.is_(None)
            return sorted(conn.scalars(select(projects.c.project).where(alive)))


def _settle_skipped(tx: Transaction, project: str) -> None:
    """Apply another max_skips to the items that somebody has skipped."""
    skips = (labels.c.project == project) & (labels.c.status == SKIPPED)
    query = select(labels.c.item).where(skips, labels.c.superseded_by.is_(None)).distinct()
    touched = sorted(tx.conn.scalars(query))
    desk = Desk(tx, project, touched)
    for item in touched:
        desk.settle(item)
    desk.write()


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
