"""Make routes, each with a scope, a limit, and every problem that it can answer."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from anyio.to_thread import run_sync
from fastapi.routing import APIRoute
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from rayal.service import auth
from rayal.service.auth import Need
from rayal.service.backend import Backend
from rayal.service.call import IDEMPOTENCY_KEY, Call, respond
from rayal.service.problems import ProblemError, documented
from rayal.service.requests import BoundedRequest
from rayal.service.signing import check_content

PATTERNS = {
    "project": auth.PROJECT,
    "item": r"[0-9a-f]{16}",
    "lease": r"[0-9a-f]{32}",
    "annotator": r"[^/\x00-\x1f]{1,128}",
    "round": r"-1|[0-9]{1,6}",
    "version": r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
    "job": r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}",
    "token": r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}",
}
Limit = Literal["body_bytes", "label_body_bytes", "stream_bytes"]
Handler = Callable[..., Any]


def _convertor(pattern: str) -> StringConvertor:
    convertor = type("_Convertor", (StringConvertor,), {"regex": pattern})
    return cast(StringConvertor, convertor())


for _name, _pattern in PATTERNS.items():
    register_url_convertor(f"rayal_{_name}", _convertor(_pattern))


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    Args:
        method: in capitals.
        path: the path with parameters in braces, each with a name of ``PATTERNS``.
        handler: takes ``call`` and the parameters of path, query and body.
        need: the rights that the token must have.
        tag: the group in the OpenAPI document.
        answers: model of the body, or the OpenAPI response where it is not JSON; None: no body.
        status: the HTTP status of the usual answer.
        more: OpenAPI responses of further statuses that are no problems.
        problems: types beyond those that follow from the rest.
        limit: the limit of the body's size.
        types: content types of the body, where that is not JSON alone.
        once: how POST and PATCH take an Idempotency-Key: the answer is stored in the transaction
            of the effect; so too where the handler only checks, and returns the effect; or after
            it, where that is long and may be repeated; or never, where there is none.
        body: the OpenAPI request body of a handler that reads it by itself.
    """

    method: str
    path: str
    handler: Handler
    need: Need
    tag: str
    answers: Any
    status: int = 200
    more: dict[int | str, dict[str, Any]] = field(default_factory=dict)
    problems: Sequence[str] = ()
    limit: Limit = "label_body_bytes"
    types: tuple[str, ...] = ()
    once: Literal["joined", "checked", "after", "never"] = "joined"
    body: dict[str, Any] | None = None

    @property
    def idempotent(self) -> bool:
        """True where an Idempotency-Key makes a repeated request have its effect only once.

        PUT and DELETE have their effect once by nature.
        """
        return self.method in ("POST", "PATCH") and self.once != "never"

    def responses(self) -> dict[int | str, dict[str, Any]]:
        """Return every response that is not the usual one, for the OpenAPI document."""
        names = ["validation", "rate-limited", "internal", "overloaded", "not-ready"]
        if self.need.level != "none":
            names += ["unauthenticated", "forbidden"]
        if "{" in self.path:
            names += ["not-found"]
        if self.method in ("POST", "PUT", "PATCH"):
            names += ["too-large", "unsupported-media-type"]
        if self.idempotent:
            names += ["idempotency-mismatch"]
        usual: dict[int | str, dict[str, Any]] = {}
        if isinstance(self.answers, dict):
            usual[self.status] = self.answers
        return documented(*names, *self.problems) | usual | self.more

    def extra(self) -> dict[str, Any]:
        """Return what FastAPI does not know of the operation, for the OpenAPI document."""
        extra: dict[str, Any] = {"x-rayal-scope": self.need.level}
        if self.need.level != "none":
            extra["security"] = [{"bearer": []}, *([{}] if self.need.signed else [])]
        if self.body is not None:
            extra["requestBody"] = self.body
        if self.idempotent:
            schema = {"type": "string", "pattern": IDEMPOTENCY_KEY}
            text = "the same key with the same body has its effect once, for 24 hours"
            header = {"name": "Idempotency-Key", "in": "header", "required": False}
            extra["parameters"] = [{**header, "description": text, "schema": schema}]
        return extra


class Section:
    """The operations of one group.

    Args:
        tag: its name in the OpenAPI document.
    """

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.operations: list[Operation] = []

    def route(
        self, method: str, path: str, need: Need, **more: Any
    ) -> Callable[[Handler], Handler]:
        """Return a decorator that makes a function the handler of an operation."""

        def enter(handler: Handler) -> Handler:
            options = {"answers": None, **more}
            self.operations.append(Operation(method, path, handler, need, self.tag, **options))
            return handler

        return enter


class ScopedRoute(APIRoute):
    """A route that authorizes, and bounds the body, before anything of it is read."""

    def __init__(self, operation: Operation, backend: Backend) -> None:
        self.operation = operation
        self._backend = backend
        model = None if isinstance(operation.answers, dict) else operation.answers
        super().__init__(
            re.sub(r"\{(\w+)\}", r"{\1:rayal_\1}", operation.path),
            _answering(operation),
            methods=[operation.method],
            response_model=model,
            status_code=operation.status,
            tags=[operation.tag],
            operation_id=operation.handler.__name__,
            summary=(operation.handler.__doc__ or "").partition("\n")[0].rstrip("."),
            description=operation.handler.__doc__,
            responses=operation.responses(),
            openapi_extra=operation.extra(),
        )
        self._query = frozenset(parameter.alias for parameter in self.dependant.query_params)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, behind the checks of the request."""
        answer = super().get_route_handler()
        operation, backend = self.operation, self._backend

        async def handle(given: Request) -> Response:
            request = BoundedRequest(given.scope, given.receive)
            request.limit = getattr(backend.limits, operation.limit)
            token = await run_sync(authorize, backend, request, operation.need)
            self._check_query(request)
            if self.body_field is not None or operation.types:
                check_type(request, operation.types or ("application/json",))
            request.scope["rayal.call"] = Call(backend, request, token)
            return await answer(request)

        return handle

    def _check_query(self, request: Request) -> None:
        seen: set[str] = set()
        for name, _ in request.query_params.multi_items():
            if name not in self._query or name in seen:
                known = ", ".join(sorted(self._query)) or "none"
                detail = f"unknown parameter {name!r}; known: {known}"
                detail = f"{name!r} is given twice" if name in seen else detail
                raise ProblemError("validation", detail, errors=[(f"query:{name}", detail)])
            seen.add(name)


def authorize(backend: Backend, request: Request, need: Need) -> Any:
    """Return the row of the request's token, or raise the problem of what it lacks."""
    if need.level == "none":
        return None
    if need.signed and "signature" in request.query_params:
        _check_signature(backend, request)
        return None
    hashed = auth.hash_of(auth.presented(request.headers.get("authorization")))
    row = auth.check(backend.ledger.token_by_hash(hashed), hashed, backend.clock())
    if need.level not in ("any", "admin"):
        named = request.path_params[need.of]
        project = backend.ledger.job(named).project if need.of == "job" else named
    else:
        project = None
    auth.require(row, need, project)
    return row


def _check_signature(backend: Backend, request: Request) -> None:
    query, path = request.query_params, request.path_params
    expires = query.get("expires", "")
    check_content(
        backend.secret,
        path["project"],
        path["item"],
        expires=int(expires) if expires.isdecimal() and len(expires) < 16 else 0,
        signature=query["signature"],
        now=backend.clock(),
    )


def check_type(request: Request, allowed: Sequence[str]) -> None:
    """Refuse a body of another content type, or in another charset than UTF-8."""
    first, *parameters = request.headers.get("content-type", "").lower().split(";")
    sent = first.strip()
    charset = [p.strip() for p in parameters if p.strip().startswith("charset=")]
    if sent not in allowed or charset not in ([], ["charset=utf-8"], ['charset="utf-8"']):
        raise ProblemError(
            "unsupported-media-type",
            f"send {' or '.join(allowed)} in UTF-8, not {sent or 'a body without type'}",
            headers={"Accept": ", ".join(allowed)},
        )


def _answering(operation: Operation) -> Handler:
    """Return the handler, its answer made a response, with its effect once where that is asked."""
    handler = operation.handler
    if _is_async(handler):

        @functools.wraps(handler)
        async def later(**given: Any) -> Response:
            return respond(await handler(**given))

        return later

    @functools.wraps(handler)
    def now(**given: Any) -> Response:
        if operation.idempotent:
            return _performer(given["call"], operation.once)(lambda: handler(**given))
        return respond(handler(**given))

    return now


def _performer(call: Call, once: str) -> Callable[[Callable[[], Any]], Response]:
    """Return how a call has the effect of a handler once."""
    return {
        "joined": call.perform,
        "checked": call.perform_checked,
        "after": call.perform_then_store,
    }[once]


def _is_async(handler: Handler) -> bool:
    return inspect.iscoroutinefunction(handler)
