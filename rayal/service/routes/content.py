"""The bytes of items, for whoever holds a token or a signed URL."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from rayal.service.auth import READ_OR_SIGNED
from rayal.service.call import Here
from rayal.service.inbox import content_of
from rayal.service.routes.items import item_named
from rayal.service.routing import Section
from rayal.service.schemas.base import ItemKey, ProjectName

routes = Section("items")
_BYTES = {"schema": {"type": "string", "contentMediaType": "application/octet-stream"}}
_TEXT = {"schema": {"type": "string"}}
_ROW = {"schema": {"type": "object"}}
_HEADERS = {
    "Cache-Control": "private, max-age=300",
    "Content-Disposition": "inline",
    "Content-Security-Policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "cross-origin",  # signed URLs are shown by labeling tools
}


@routes.route(
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
