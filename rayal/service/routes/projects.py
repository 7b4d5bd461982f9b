"""Projects: made, listed, changed under a precondition, deleted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import Header
from pydantic import BeforeValidator, Field

from rayal.ledger import ProjectRow
from rayal.service.auth import ADMIN, ANY, READ, WRITE, allows
from rayal.service.bodies import ProjectBody
from rayal.service.call import Answer, Call, Here
from rayal.service.pools import pool_of
from rayal.service.problems import ProblemError
from rayal.service.routing import Section
from rayal.service.schemas.base import Cursor, Limit, ProjectName
from rayal.service.schemas.projects import ProjectInfo, ProjectPage, ProjectSummary
from rayal.service.settings import ServiceOptions
from rayal.settings.yamlfile import copied

routes = Section("projects")
_TAG = {"headers": {"ETag": {"description": "the version", "schema": {"type": "string"}}}}
_PATCH = ("application/json", "application/merge-patch+json")
_Tuples = BeforeValidator(lambda given: copied(given, tuple))
Member = Literal[
    "task",
    "model",
    "learner",
    "strategy",
    "initial",
    "batch_size",
    "rounds",
    "seeds",
    "scan",
    "labeling",
    "auto",
]
Patch = Annotated[
    dict[Member, Any],
    Field(
        min_length=1,
        description="a merge patch (RFC 7396) of what the project was made with",
        examples=[{"batch_size": 50, "auto": {"ready": 40}}],
    ),
]
IfMatch = Annotated[
    str | None,
    Header(description="the ETag of the project that was seen", pattern=r'^"[0-9]{1,18}"$'),
]


@routes.route(
    "POST",
    "/v1/projects",
    ADMIN,
    answers=ProjectInfo,
    status=201,
    problems=["conflict", "not-found"],
    once="after",
)
def create_project(call: Here, body: Annotated[ProjectBody, _Tuples]) -> Answer:
    """Make a project; once more with the same body, it is returned as it is.

    Only registered networks, learners and strategies can be named.
    """
    from rayal.service.creation import create_project as create

    fields = body.model_dump(mode="json", exclude_unset=True)
    row = create(call.backend.ledger, fields, prefixes=call.backend.prefixes)
    return _answer(call, row, 201, {"Location": f"/v1/projects/{row.project}"})


@routes.route("GET", "/v1/projects", ANY, answers=ProjectPage)
def list_projects(call: Here, limit: Limit = 100, cursor: Cursor = None) -> Answer:
    """List the projects that the token may read, by name."""
    at = call.position(cursor)
    scopes = call.token.scopes if call.token else ()
    names = [n for n in call.backend.ledger.projects() if allows(scopes, READ, n)]
    rest = [name for name in names if at is None or name > at[0]]
    rows = [call.project(name) for name in rest[:limit]]
    more = call.cursor([rest[limit - 1]] if len(rest) > limit else None)
    shown = [
        ProjectSummary(name=row.project, version=row.version, created_at=row.created)
        for row in rows
    ]
    return call.linked(ProjectPage(projects=shown, next=more), more)


@routes.route("GET", "/v1/projects/{project}", READ, answers=ProjectInfo)
def get_project(call: Here, project: ProjectName) -> Answer:
    """Return a project with its settings and how it stands; its ETag is what PATCH wants."""
    return _answer(call, call.project(project), 200, {})


@routes.route(
    "PATCH",
    "/v1/projects/{project}",
    WRITE,
    answers=ProjectInfo,
    problems=["conflict", "precondition-failed", "precondition-required"],
    types=_PATCH,
    once="checked",
)
def change_project(
    call: Here, project: ProjectName, body: Patch, if_match: IfMatch = None
) -> Callable[[], Answer]:
    """Change settings, unless somebody else has changed them since; classes may only grow."""
    from rayal.service.creation import checked_patch

    if if_match is None:
        raise ProblemError(
            "precondition-required", "send If-Match with the ETag that GET has given"
        )
    if ServiceOptions.of(call.project(project)).request is None:
        raise ProblemError("conflict", "the project was not made over HTTP; change it where it was")
    version = int(if_match.strip('"'))
    write = checked_patch(call.backend.ledger, project, dict(body.items()), version=version)
    return lambda: _answer(call, write(), 200, {})


@routes.route("DELETE", "/v1/projects/{project}", ADMIN, status=204)
def delete_project(call: Here, project: ProjectName) -> Answer:
    """Delete a project: it is unknown from now on, and its name stays taken."""
    call.project(project)
    call.backend.ledger.delete_project(project)
    return Answer(None, 204)


def _answer(call: Call, row: ProjectRow, status: int, headers: dict[str, str]) -> Answer:
    return Answer(_info(call, row), status, {"ETag": f'"{row.version}"', **headers})


def _info(call: Call, row: ProjectRow) -> ProjectInfo:
    ledger, name = call.backend.ledger, row.project
    active = [model.version for model in ledger.models(name) if model.active]
    waiting = [
        job.job
        for state in ("running", "queued")
        for job in ledger.jobs(name, state=state, limit=1)
    ]
    return ProjectInfo(
        name=name,
        version=row.version,
        pool=row.pool,
        items=len(pool_of(ledger, name, ())),
        settings={n: v for n, v in row.settings.items() if n != "service"}
        | {"auto": dict(ServiceOptions.of(row).auto)},
        labels=call.backend.labels(row).to_json(),
        counts=ledger.counts(name),
        ready=ledger.ready(name),
        model=active[0] if active else None,
        job=waiting[0] if waiting else None,
        created_at=row.created,
    )
