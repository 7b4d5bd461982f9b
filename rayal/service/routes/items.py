"""Items: listed by state, looked at one by one, why they were chosen, and forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response

from rayal.errors import UnknownNameError
from rayal.ledger import Appearance, LabelRow, LeaseRow
from rayal.service import signing
from rayal.service.auth import READ, READ_OR_SIGNED, WRITE
from rayal.service.call import Answer, Call, Here
from rayal.service.inbox import content_of, item_of
from rayal.service.pools import items_from, pool_of
from rayal.service.problems import ProblemError
from rayal.service.routing import Section
from rayal.service.schemas.base import Cursor, ItemKey, Limit, ProjectName, key_of
from rayal.service.schemas.items import ItemInfo, ItemPage, State, Why

routes = Section("items")
_SCANNED = 10_000  # places of a pool that one page of unlabeled items looks at
_ONE = "/v1/projects/{project}/items/{item}"


@routes.route("GET", "/v1/projects/{project}/items", READ, answers=ItemPage)
def list_items(
    call: Here,
    project: ProjectName,
    *,
    state: Annotated[
        State | None,
        Query(description="left out: items that were ever offered or labeled"),
    ] = None,
    limit: Limit = 1000,
    cursor: Cursor = None,
) -> Answer:
    """List the items in a state, by id; unlabeled ones in the order of the pool.

    A page may be shorter than its limit while `next` still leads on.
    """
    at = call.position(cursor, str(state))
    if state == "unlabeled":
        rest: list[Any] | None
        items, rest = _untouched(call, project, at[0] if at else 0, limit)
    else:
        rows = call.backend.ledger.items_page(
            project, state=state, after=at[0] if at else None, limit=limit
        )
        items = [shown(call, project, (r.item, r.state), (r.round, r.rank, r.score)) for r in rows]
        rest = [rows[-1].item] if len(rows) == limit else None
    more = call.cursor(rest, str(state))
    return call.linked(ItemPage(items=items, next=more), more)


@routes.route("GET", _ONE, READ, answers=ItemInfo)
def get_item(call: Here, project: ProjectName, item: ItemKey) -> ItemInfo:
    """Return an item, and how it stands."""
    named = item_named(call, project, item)
    state = call.backend.ledger.item_states(project, [named])[named]
    return shown(call, project, (named, state), _offer(call, project, named))


@routes.route("DELETE", _ONE, WRITE, status=204)
def forget_item(call: Here, project: ProjectName, item: ItemKey) -> Answer:
    """Forget an item for privacy: its labels and scores are purged, it is never offered again.

    Of a project whose items were pushed, a job takes the content out of the storage as well, once
    every project of its pool has forgotten it. Files of other pools are left to whoever keeps them.
    """
    named = named_of(call, project, item)
    ledger = call.backend.ledger
    ledger.forget_item(project, named)
    if ledger.project(project).settings.get("service", {}).get("pushed"):
        ledger.add_job(project, "purge", {}, once=False)
    return Answer(None, 204)


@routes.route("GET", _ONE + "/why", READ, answers=Why)
def explain_item(call: Here, project: ProjectName, item: ItemKey) -> Why:
    """Tell an item's story: the choices that named it with their provenance, leases and labels."""
    named = item_named(call, project, item)
    rows = call.backend.ledger.why(project, named)
    chosen = [asdict(row) for row in rows if isinstance(row, Appearance)]
    worked = [
        {"kind": "lease" if isinstance(row, LeaseRow) else "label", **asdict(row)}
        for row in rows
        if isinstance(row, LeaseRow | LabelRow)
    ]
    for row in (*chosen, *worked):
        for name in ("project", "item", "key"):
            row.pop(name, None)
    state = call.backend.ledger.item_states(project, [named])[named]
    return Why.model_validate(
        {"id": named, "key": item, "state": state, "selections": chosen, "history": worked}
    )


def named_of(call: Call, project: str, key: str) -> str:
    """Return the id of an item by its key, forgotten ones too."""
    try:
        return item_of(call.backend.ledger, project, int(key, 16))
    except UnknownNameError:
        raise ProblemError("not-found", f"project {project!r} has no item of key {key}") from None


def item_named(call: Call, project: str, key: str) -> str:
    """Return the id of an item by its key; one that was forgotten is not found."""
    named = named_of(call, project, key)
    if call.backend.ledger.item_states(project, [named])[named] == "forgotten":
        raise ProblemError("not-found", f"the item of key {key} was forgotten")
    return named


def shown(
    call: Call,
    project: str,
    item: tuple[str, str],
    offer: tuple[int | None, int | None, float | None],
) -> ItemInfo:
    """Return an item, given as id and state, as the API shows it."""
    named, state = item
    backend, key = call.backend, key_of(named)
    until = backend.clock() + backend.limits.url_seconds
    round, rank, score = offer
    return ItemInfo.model_validate(
        {
            "id": named,
            "key": key,
            "state": state,
            "round": round,
            "rank": rank,
            "score": score,
            "content": signing.content_path(backend.secret, project, key, until),
        }
    )


def _untouched(
    call: Call, project: str, place: int, limit: int
) -> tuple[list[ItemInfo], list[int] | None]:
    """Return unlabeled items from a place of the pool on, and where the next page begins."""
    ledger = call.backend.ledger
    walk = items_from(pool_of(ledger, project, ()), place)
    items: list[ItemInfo] = []
    start = place
    while len(items) < limit and place - start < _SCANNED:
        seen = list(islice(walk, limit))
        for at, named in _unlabeled(call, project, seen):
            items.append(shown(call, project, (named, "unlabeled"), (None, None, None)))
            place = at + 1
            if len(items) == limit:
                return items, [place]
        if len(seen) < limit:
            return items, None
        place = seen[-1][0] + 1
    return items, [place]


def _unlabeled(call: Call, project: str, seen: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    states = call.backend.ledger.item_states(project, [named for _, named in seen])
    return [(at, named) for at, named in seen if states[named] == "unlabeled"]


def _offer(call: Call, project: str, item: str) -> tuple[int | None, int | None, float | None]:
    """Return round, rank and score by which an item was offered."""
    rows = call.backend.ledger.why(project, item)
    picked = [row for row in rows if isinstance(row, Appearance) and row.picked]
    return (picked[-1].round, picked[-1].rank, picked[-1].score) if picked else (None, None, None)


content = Section("items")
_BYTES = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
_TEXT = {"schema": {"type": "string"}}
_ROW = {"schema": {"type": "object"}}
_HEADERS = {
    "Cache-Control": "private, max-age=300",
    "Content-Disposition": "inline",
    "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",  # signed URLs are shown by labeling tools
}


@content.route(
    "GET",
    "/v1/projects/{project}/items/{item}/content",
    READ_OR_SIGNED,
    answers={
        "description": "the image as it was pushed, the text, or the row's features",
        "content": {"image/*": _BYTES, "text/plain": _TEXT, "application/json": _ROW},
    },
)
def get_content(
    call: Here,
    project: ProjectName,
    item: ItemKey,
    *,
    expires: Annotated[int | None, Query(ge=0, lt=10**15)] = None,
    signature: Annotated[str | None, Query(max_length=64)] = None,
) -> Response:
    """Return an item's content, to a token or to a signed URL that has not expired."""
    data, media_type = content_of(call.backend.ledger, project, item_named(call, project, item))
    return Response(data, headers=_HEADERS, media_type=media_type)
