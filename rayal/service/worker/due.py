"""Find the projects whose rounds are due: labels enough are new, or no item is open any more."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select

from rayal.ledger import Ledger, ProjectRow
from rayal.ledger.database import reading
from rayal.ledger.schema import jobs, labels, projects, rounds
from rayal.service.settings import ServiceOptions


class Due:
    """Looks for projects whose next round is due; one query where nothing has changed.

    A round is due when as many offered items were labeled since the last one began as the project's
    quorum says (by default as many as a batch has, and before round 0 as many as the first choice
    has), or when some were and no offered item is open any more. Labels of items that were never
    offered, such as imports and test items, do not count. A project whose last round failed or was
    cancelled waits for somebody to ask.

    Args:
        ledger: the storage root's ledger.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._seen: dict[str, tuple[Any, ...]] = {}  # how projects stood that were not due

    def projects(self) -> list[str]:
        """Return the projects whose next round is due now."""
        with reading(self._ledger.engine) as conn:
            states = [tuple(row) for row in conn.execute(_STATES)]
        due_now = []
        for project, *state in states:
            last, begun, round, _ = state
            if (last or 0) <= (begun or 0) or self._seen.get(project) == tuple(state):
                continue
            due = self._is_due(project, begun or 0, round)
            if due:
                due_now.append(project)
            elif due is False:
                self._seen[project] = tuple(state)
        return due_now

    def _is_due(self, project: str, begun: int, round: int | None) -> bool | None:
        """Return whether it is due; None where that may change without a label or a new setting."""
        row = self._ledger.project(project)
        last = row.settings.get("rounds")
        ended = None not in (last, round) and int(round or 0) >= int(last or 0)
        if ended or not ServiceOptions.of(row).start:
            return False
        with reading(self._ledger.engine) as conn:
            if conn.execute(_last_job(project)).scalar() not in (None, "done"):
                return None
        new = self._ledger.new_labels(project, begun)
        enough = new >= _quorum(row, first=round is None)
        return new > 0 and (enough or not self._ledger.open_items(project))


def _quorum(row: ProjectRow, *, first: bool) -> int:
    quorum = ServiceOptions.of(row).quorum
    if first:
        count = int(row.settings["initial"]["count"])
        return min(int(quorum or count), count)
    return int(quorum or row.settings["batch"])


def _last_job(project: str) -> Any:
    of = (jobs.c.project == project) & (jobs.c.kind == "round")
    return select(jobs.c.state).where(of).order_by(jobs.c.number.desc()).limit(1)


def _of(table: Any, column: Any) -> Any:
    mine = table.c.project == projects.c.project
    return select(func.max(column)).where(mine).correlate(projects).scalar_subquery()


_STATES = select(
    projects.c.project,
    _of(labels, labels.c.seq),
    _of(rounds, rounds.c.labels_seq),
    _of(rounds, rounds.c["round"]),
    projects.c.version,
).where(projects.c.deleted.is_(None))
