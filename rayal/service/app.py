"""The HTTP API: FastAPI over a backend, every request named, counted, bounded and answered."""

from __future__ import annotations

import logging
import re
import time
import traceback
import uuid
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rayal import __version__
from rayal.errors import RayalError
from rayal.service import problems
from rayal.service.backend import Backend
from rayal.service.limits import LimitsMiddleware
from rayal.service.metrics import Metrics
from rayal.service.openapi import document
from rayal.service.routes import SECTIONS
from rayal.service.routing import ScopedRoute

log = logging.getLogger("rayal.service")
_TOKENS = re.compile(r"ryl_[A-Za-z0-9_-]+")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{8,64}")
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


def create_app(backend: Backend) -> FastAPI:
    """Return the application over a backend; other origins may not read it (CORS is off)."""
    app = FastAPI(
        title="rayal",
        version=__version__,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.metrics = Metrics(backend.ledger)
    for section in SECTIONS:
        for operation in section.operations:
            app.router.routes.append(ScopedRoute(operation, backend))
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    for kind in (HTTPException, RequestValidationError, RayalError):
        app.add_exception_handler(kind, _handle)
    app.add_middleware(LimitsMiddleware, limits=backend.limits)
    app.add_middleware(EveryRequest, metrics=app.state.metrics)
    return app


class EveryRequest:
    """Give every request an id, headers, a count, and an answer whatever happens."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and answer what nobody else answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        request_id = request.headers.get("x-request-id", "")
        scope["rayal.id"] = request_id if _REQUEST_ID.fullmatch(request_id) else uuid.uuid4().hex
        started, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(message, scope["rayal.id"])
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if status:
                raise  # the answer is on its way: the connection must break
            await _answer(request, error)(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path_format", "unknown")
            seconds = time.perf_counter() - started
            self._metrics.answered(scope["method"], route, status, seconds)


async def _handle(request: Request, error: Exception) -> Response:
    return _answer(request, error)


def _answer(request: Request, error: Exception) -> Response:
    """Return the problem document of an error, and log one that nobody expected."""
    identity = request.scope["rayal.id"]
    problem = problems.as_problem(error)
    if problem is None or problem.kind.name in ("internal", "not-ready"):
        log.error("request %s %s: %s", identity, request.method, told(error))
    if problem is None:
        problem = problems.internal()
    if problem.kind.status == 405:
        problem.headers = {**(problem.headers or {}), "Allow": _allowed(request)}
    return problems.render(problem, request.url.path, identity)


def told(error: BaseException) -> str:
    """Return what the log says of an error: no token, no parameters of SQL, no values of a body."""
    first = _TOKENS.sub("ryl_…", str(error).partition("\n")[0])[:300]
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{f.filename}:{f.lineno} {f.name}" for f in reversed(frames[-12:]))
    return f"{type(error).__name__}: {first} at {places}"


def _add_headers(message: Message, identity: str) -> None:
    headers = MutableHeaders(scope=message)
    headers["X-Request-Id"] = identity
    for name, value in _SECURITY.items():
        headers.setdefault(name, value)


def _allowed(request: Request) -> str:
    app: Any = request.scope["app"]
    routes = [r for r in app.routes if r.matches(request.scope)[0] != Match.NONE]
    return ", ".join(sorted({method for route in routes for method in route.methods}))
