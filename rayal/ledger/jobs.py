"""Jobs: long work of projects, one at a time per project, that outlives whoever works on it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, exists, func, or_, select

from rayal.errors import LedgerError, UnknownNameError
from rayal.ledger.columns import plain
from rayal.ledger.database import lock
from rayal.ledger.records import JobRow
from rayal.ledger.schema import beats, jobs, projects
from rayal.ledger.store import Row, Store, Transaction

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
UNFINISHED = (QUEUED, RUNNING)


class Jobs(Store):
    """Asking for work, doing it, and telling how far it is."""

    def add_job(
        self,
        project: str,
        kind: str,
        args: Mapping[str, Any],
        *,
        once: bool = True,
        now: float | None = None,
    ) -> JobRow:
        """Queue a job.

        Args:
            project: its name.
            kind: kind of the work.
            args: arguments of the kind, a JSON object.
            once: return the project's unfinished job of this kind instead, if there is one.
            now: seconds since the epoch; None takes the ledger's clock.
        """
        with self._write("job", project, now, locks=("jobs",)) as tx:
            same = (jobs.c.project == project) & (jobs.c.kind == kind)
            if once:
                query = _rows().where(same, jobs.c.state.in_(UNFINISHED)).order_by(jobs.c.number)
                known = tx.conn.execute(query.limit(1)).mappings().first()
                if known is not None:
                    return _job(dict(known))
            row = {
                "job": uuid.uuid4().hex,
                "number": (tx.conn.scalar(select(func.max(jobs.c.number))) or 0) + 1,
                "project": project,
                "kind": kind,
                "args": plain(dict(args), f"arguments of a {kind!r} job"),
                "state": QUEUED,
                "result": None,
                "error": None,
                "attempts": 0,
                "created": tx.time,
                "started": None,
                "finished": None,
                "owner": None,
            }
            tx.insert(jobs, [row])
        return _job({**row, "heartbeat": None, "progress": None})

    def claim_job(
        self,
        owner: str,
        *,
        kinds: Sequence[str] | None = None,
        stale: float = 60.0,
        now: float | None = None,
    ) -> JobRow | None:
        """Take the oldest job that waits, of a project on which no other job runs.

        Args:
            owner: worker that takes it; each worker has a name of its own.
            kinds: kinds that it can do; all by default.
            stale: a running job whose owner was silent for so many seconds waits again.
            now: seconds since the epoch; None takes the ledger's clock.
        """
        with self._write("claim", None, now, locks=("jobs",)) as tx:
            silent = func.coalesce(beats.c.heartbeat, jobs.c.started) <= tx.time - stale
            query = (
                _rows()
                .where(_waiting(silent))
                .where(projects.c.project == jobs.c.project, projects.c.deleted.is_(None))
                .order_by(jobs.c.number)
                .limit(1)
                .with_for_update(skip_locked=True, of=jobs)
            )
            if kinds is not None:
                query = query.where(jobs.c.kind.in_(list(kinds)))
            row = tx.conn.execute(query).mappings().first()
            if row is None:
                return None
            tx.project = row["project"]
            change = {
                "state": RUNNING,
                "owner": owner,
                "attempts": row["attempts"] + 1,
                "started": tx.time,
                "finished": None,
                "error": None,
                "result": None,
            }
            tx.update(jobs, [{"job": row["job"], **change}])
            lock(tx.conn, f"job {row['job']}")
            _beat(tx.conn, row["job"], tx.time, {})
        return _job({**row, **change, "heartbeat": tx.time, "progress": {}})

    def beat(
        self, job: str, owner: str, progress: Mapping[str, Any], *, now: float | None = None
    ) -> bool:
        """Record a job's progress; False: it was cancelled or has another owner now, so stop.

        Beats are no events: the tables can be built again without them.
        """
        with self._write("beat", None, now, locks=(f"job {job}",)) as tx:
            row = _known(tx.conn, job)
            mine = _is_mine(row, owner)
            if mine:
                plain_progress = plain(dict(progress), f"the progress of job {job!r}")
                _beat(tx.conn, job, tx.time, plain_progress)
            return mine

    def finish_job(self, job: str, owner: str, result: Any, *, now: float | None = None) -> bool:
        """Record a job's result; False, and nothing is recorded, where ``beat`` returns False."""
        plain_result = plain(result, f"the result of job {job!r}")
        return self._end(job, owner, {"state": DONE, "result": plain_result}, now)

    def fail_job(self, job: str, owner: str, error: str, *, now: float | None = None) -> bool:
        """Record why a job failed; False, and nothing is recorded, where ``beat`` would say so."""
        return self._end(job, owner, {"state": FAILED, "error": str(error)}, now)

    def cancel_job(self, job: str, *, now: float | None = None) -> JobRow:
        """Cancel a job, which stops at its next beat if it runs; a finished one stays so."""
        with self._write("job", None, now, locks=("jobs",)) as tx:
            row = _known(tx.conn, job)
            if row["state"] in UNFINISHED:
                _change(tx, [row], {"state": CANCELLED, "finished": tx.time})
            return _job(_known(tx.conn, job))

    def retry_job(self, job: str, *, now: float | None = None) -> JobRow:
        """Queue a failed or cancelled job again; one that waits or runs stays so.

        Raises:
            LedgerError: it is done.
        """
        with self._write("job", None, now, locks=("jobs",)) as tx:
            row = _known(tx.conn, job)
            if row["state"] == DONE:
                raise LedgerError(f"job {job!r} is done; ask for a new one by add_job()")
            if row["state"] not in UNFINISHED:
                _change(tx, [row], {"state": QUEUED, "error": None, "finished": None})
            return _job(_known(tx.conn, job))

    def release_jobs(self, owner: str, *, now: float | None = None) -> int:
        """Queue the running jobs of an owner that ends again; return their number."""
        with self._write("release", None, now, locks=("jobs",)) as tx:
            mine = _rows().where(jobs.c.state == RUNNING, jobs.c.owner == owner)
            rows = [dict(row) for row in tx.conn.execute(mine.order_by(jobs.c.number)).mappings()]
            _change(tx, rows, {"state": QUEUED, "owner": None})
            return len(rows)

    def job(self, job: str) -> JobRow:
        """Return a job; UnknownNameError if there is none of that id."""
        with self._read() as conn:
            return _job(_known(conn, job))

    def jobs(
        self,
        project: str | None = None,
        *,
        state: str | None = None,
        after: str | None = None,
        limit: int = 1000,
    ) -> list[JobRow]:
        """Return jobs in the order in which they were asked for.

        Args:
            project: only jobs of this project; all by default.
            state: in which state; all by default.
            after: a job's id: those after it.
            limit: most jobs to return.
        """
        with self._read(project) as conn:
            query = _rows().order_by(jobs.c.number).limit(limit)
            if project is not None:
                query = query.where(jobs.c.project == project)
            if state is not None:
                query = query.where(jobs.c.state == state)
            if after is not None:
                query = query.where(jobs.c.number > _known(conn, after)["number"])
            return [_job(dict(row)) for row in conn.execute(query).mappings()]

    def _end(self, job: str, owner: str, change: Row, now: float | None) -> bool:
        with self._write("job", None, now, locks=("jobs",)) as tx:
            row = _known(tx.conn, job)
            mine = _is_mine(row, owner)
            if mine:
                _change(tx, [row], {**change, "finished": tx.time})
            return mine


def cancel_jobs(tx: Transaction, project: str) -> None:
    """Cancel a project's unfinished jobs within a transaction."""
    mine = _rows().where(jobs.c.project == project, jobs.c.state.in_(UNFINISHED))
    rows = [dict(row) for row in tx.conn.execute(mine.order_by(jobs.c.number)).mappings()]
    _change(tx, rows, {"state": CANCELLED, "finished": tx.time})


def _rows() -> Select[Any]:
    beat = jobs.outerjoin(beats, beats.c.job == jobs.c.job)
    return select(jobs, beats.c.heartbeat, beats.c.progress).select_from(beat)


def _waiting(silent: ColumnElement[bool]) -> ColumnElement[bool]:
    """Return the condition that a job may be begun: stale itself, or next to no running one."""
    other = jobs.alias("other")
    runs = exists().where(other.c.project == jobs.c.project, other.c.state == RUNNING)
    return or_(
        (jobs.c.state == QUEUED) & ~runs.correlate(jobs),
        (jobs.c.state == RUNNING) & silent,
    )


def _known(conn: Connection, job: str) -> Row:
    row = conn.execute(_rows().where(jobs.c.job == job)).mappings().first()
    if row is None:
        raise UnknownNameError(f"job {job!r} does not exist; list them by jobs()")
    return dict(row)


def _is_mine(row: Row, owner: str) -> bool:
    return bool(row["state"] == RUNNING and row["owner"] == owner)


def _change(tx: Transaction, rows: Sequence[Row], change: Row) -> None:
    """Change jobs; the event is that of their project, if it is one."""
    tx.update(jobs, [{"job": row["job"], **change} for row in rows])
    owners = {row["project"] for row in rows}
    tx.project = owners.pop() if len(owners) == 1 else tx.project


def _beat(conn: Connection, job: str, time: float, progress: Row) -> None:
    conn.execute(delete(beats).where(beats.c.job == job))
    conn.execute(beats.insert().values(job=job, heartbeat=time, progress=progress))


def _job(row: Row) -> JobRow:
    values = {name: row[name] for name in JobRow.__dataclass_fields__}
    return JobRow(**{**values, "progress": row["progress"] or {}})
