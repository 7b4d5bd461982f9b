"""Ranked items of a project without a lease, and choices among columns that a client sends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rayal.service.auth import ANY, READ
from rayal.service.call import Answer, Here
from rayal.service.problems import ProblemError
from rayal.service.routing import Section
from rayal.service.schemas.base import ProjectName
from rayal.service.schemas.items import Picks, QueryBody, Ranked, RankedBody, RankedPage

routes = Section("query")


@routes.route("POST", "/v1/projects/{project}/query", READ, answers=RankedPage, once="never")
def query_project(call: Here, project: ProjectName, body: RankedBody) -> Answer:
    """Return the open items that come next, the best first; no lease is taken."""
    at = call.position(body.cursor)
    after = None if at is None else (at[0], at[1])
    rows = call.backend.ledger.offered(project, after=after, limit=body.count)
    last = [rows[-1].round, rows[-1].rank] if len(rows) == body.count else None
    items = [
        Ranked(id=r.item, key=f"{r.key:016x}", round=r.round, rank=r.rank, score=r.score)
        for r in rows
    ]
    return Answer(RankedPage(items=items, next=call.cursor(last)))


@routes.route(
    "POST",
    "/v1/query",
    ANY,
    answers=Picks,
    once="never",
    limit="body_bytes",
    problems=["not-found", "too-large"],
)
async def query_columns(call: Here, body: QueryBody) -> Picks:
    """Choose among columns that the request holds, as ``rayal.select`` does; nothing is kept."""
    most = call.backend.limits.query_rows
    rows = _rows("columns", body.columns, most)
    if body.labeled:
        _rows("labeled", body.labeled, most)
    if body.ids is not None and len(body.ids) != rows:
        raise ProblemError("validation", f"ids: {len(body.ids)} are given for {rows} rows")
    return Picks(**await call.backend.query(body.model_dump()))


def _rows(what: str, columns: Mapping[str, Sequence[Any]], most: int) -> int:
    """Return the number of rows, which all columns have."""
    counts = {len(column) for column in columns.values()}
    if len(counts) != 1:
        raise ProblemError("validation", f"{what}: rows of one number are needed, not {counts}")
    rows = counts.pop()
    if rows > most:
        raise ProblemError("too-large", f"{what}: {rows} rows are given; {most} are the most")
    return rows
