"""Jobs: long work behind an answer 202, and what became of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query
from starlette.responses import FileResponse, Response

from rayal.ledger.records import JobRow
from rayal.service.auth import ANY, PROJECT, READ, READ_JOB, WRITE_JOB, allows, require
from rayal.service.call import Answer, Here
from rayal.service.inbox import RESULTS
from rayal.service.problems import ProblemError
from rayal.service.routing import Section
from rayal.service.schemas.base import Cursor, JobId, Limit
from rayal.service.schemas.rounds import Accepted, JobInfo, JobPage

routes = Section("jobs")
_LOOKED_AT = 10_000  # jobs of one page, those of other projects included


def accepted(row: JobRow) -> Answer:
    """Return the answer to a request whose work goes on as a job."""
    return Answer(Accepted(job=shown(row)), 202, {"Location": f"/v1/jobs/{row.job}"})


@routes.route("GET", "/v1/jobs", ANY, answers=JobPage, problems=["not-found"])
def list_jobs(
    call: Here,
    *,
    project: Annotated[
        str | None,
        Query(pattern=f"^({PROJECT})$", description="jobs of this project"),
    ] = None,
    state: Annotated[
        Literal["queued", "running", "done", "failed", "cancelled"] | None,
        Query(),
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Answer:
    """List jobs of projects that the token may read, in the order in which they were asked for."""
    at = call.position(cursor, str(project), str(state))
    after, looked = (at[0] if at else None), 0
    jobs: list[JobRow] = []
    scopes = call.token.scopes if call.token else ()
    if project is not None and call.token is not None:
        require(call.token, READ, project)
        call.project(project)
    while len(jobs) < limit and looked < _LOOKED_AT:
        page = call.backend.ledger.jobs(project, state=state, after=after, limit=limit)
        looked += len(page)
        for row in page:
            after = row.job
            if allows(scopes, READ, row.project):
                jobs.append(row)
            if len(jobs) == limit:
                break
        if len(page) < limit:
            break
    full = len(jobs) == limit or looked >= _LOOKED_AT
    more = call.cursor([after] if full else None, str(project), str(state))
    return call.linked(JobPage(jobs=[shown(row) for row in jobs], next=more), more)


@routes.route("GET", "/v1/jobs/{job}", READ_JOB, answers=JobInfo)
def get_job(call: Here, job: JobId) -> JobInfo:
    """Return a job: its state, how far it is, what it gave or why it failed."""
    return shown(call.backend.ledger.job(job))


@routes.route("DELETE", "/v1/jobs/{job}", WRITE_JOB, answers=JobInfo, problems=["conflict"])
def cancel_job(call: Here, job: JobId) -> JobInfo:
    """Let a job not be done, or stop soon; one that is over stays as it is."""
    return shown(call.backend.ledger.cancel_job(job))


@routes.route(
    "POST", "/v1/jobs/{job}:retry", WRITE_JOB, answers=Accepted, status=202, problems=["conflict"]
)
def retry_job(call: Here, job: JobId) -> Answer:
    """Let a failed or cancelled job be done after all."""
    return accepted(call.backend.ledger.retry_job(job))


@routes.route(
    "GET",
    "/v1/jobs/{job}/result",
    READ_JOB,
    answers={
        "description": "one JSON object a line",
        "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
    },
    problems=["conflict"],
)
def get_result(call: Here, job: JobId) -> Response:
    """Return the file that a finished job of predictions wrote; it is kept for a week."""
    row = call.backend.ledger.job(job)
    if row.state != "done":
        raise ProblemError(
            "conflict", f"job {job} is {row.state}; its result comes when it is done"
        )
    path = call.backend.ledger.root / RESULTS / f"{job}.jsonl"
    if not path.is_file():
        raise ProblemError("not-found", f"job {job} has no file of results, or has it no more")
    return FileResponse(path, media_type="application/x-ndjson")


def shown(row: JobRow) -> JobInfo:
    """Return a job as the API shows it."""
    same: dict[str, Any] = {
        name: getattr(row, name)
        for name in ("job", "project", "kind", "state", "progress", "result", "error", "attempts")
    }
    return JobInfo(**same, created_at=row.created, started_at=row.started, finished_at=row.finished)
