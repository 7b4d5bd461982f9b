"""Report that the service lives, that it can work, its metrics, and its capabilities."""

from __future__ import annotations

import os
from typing import Literal

from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import HTMLResponse, Response

from rayal.errors import RayalError
from rayal.service.auth import ANY, OPEN
from rayal.service.call import Here
from rayal.service.openapi import document, page
from rayal.service.problems import ProblemError
from rayal.service.routing import Section
from rayal.service.schemas.base import Answered

routes = Section("health")
_PROMETHEUS = "text/plain; version=1.0.0; charset=utf-8"
_PAGE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "frame-ancestors 'none'"
}


class Health(Answered):
    """The service lives."""

    status: Literal["up"] = "up"


@routes.route("GET", "/healthz", OPEN, answers=Health)
async def get_health(call: Here) -> Health:
    """Answer at once, whatever else goes on; nothing is looked at."""
    return Health()


@routes.route("GET", "/readyz", OPEN, answers=Health)
def get_readiness(call: Here) -> Health:
    """Answer 503 until storage and ledger answer."""
    ledger = call.backend.ledger
    try:
        ledger.now()
    except (SQLAlchemyError, OSError, RayalError):
        raise ProblemError("not-ready", "the ledger does not answer", retry_after=2) from None
    if not os.access(ledger.root, os.W_OK):
        raise ProblemError("not-ready", "the storage cannot be written to", retry_after=2)
    return Health()


@routes.route(
    "GET",
    "/metrics",
    ANY,
    answers={
        "description": "Prometheus' text format",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    },
)
def get_metrics(call: Here) -> Response:
    """Return counters of this process and gauges of the ledger, over all projects."""
    text = call.request.app.state.metrics.text()
    return Response(text, media_type=_PROMETHEUS)


@routes.route(
    "GET",
    "/docs",
    OPEN,
    answers={
        "description": "a page of HTML",
        "content": {"text/html": {"schema": {"type": "string"}}},
    },
)
def get_page(call: Here) -> Response:
    """Return this document for people to read."""
    return HTMLResponse(page(document(call.request.app)), headers=_PAGE)
