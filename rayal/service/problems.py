"""Errors as documents of RFC 9457: every type that a client can meet, in one table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy.exc
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from rayal import errors

MEDIA_TYPE = "application/problem+json"
BASE = "urn:rayal:problem:"
_SHOWN = 20  # errors of one body that a document names


@dataclass(frozen=True)
class Kind:
    """One type of problem.

    Args:
        name: the last part of its ``type``.
        status: the HTTP status of the answer.
        title: a title that is the same for every occurrence.
        retry: whether ``Retry-After`` says when to come again.
    """

    name: str
    status: int
    title: str
    retry: bool = False

    @property
    def type(self) -> str:
        """The URI that names the type."""
        return BASE + self.name


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("validation", 422, "The request is not valid"),
        Kind("unauthenticated", 401, "A valid token is missing"),
        Kind("forbidden", 403, "The token does not allow this"),
        Kind("not-found", 404, "There is no such thing"),
        Kind("method-not-allowed", 405, "The method does not exist here"),
        Kind("conflict", 409, "The request does not fit the present state"),
        Kind("lease-expired", 410, "The lease is over"),
        Kind("precondition-failed", 412, "The thing has changed meanwhile"),
        Kind("too-large", 413, "The request is too large"),
        Kind("unsupported-media-type", 415, "The content type is not understood"),
        Kind("idempotency-mismatch", 422, "The idempotency key belongs to another request"),
        Kind("precondition-required", 428, "If-Match is missing"),
        Kind("rate-limited", 429, "Too many requests", retry=True),
        Kind("internal", 500, "The service failed"),
        Kind("not-ready", 503, "The service cannot do this now", retry=True),
        Kind("overloaded", 503, "Too many requests are being answered", retry=True),
    )
}

# the nearest ancestor of an error decides
_OF_ERRORS: dict[str, str] = {
    "UnknownNameError": "not-found",
    "ConflictError": "conflict",
    "SettingsError": "validation",
    "PoolError": "validation",
    "NeedsError": "validation",
    "ScoreError": "validation",
    "LabelError": "validation",
    "BudgetError": "validation",
    "UriError": "validation",
    "ResourceError": "too-large",
    "LedgerError": "conflict",
    "BusyError": "not-ready",
    "LeaseError": "lease-expired",
    "UnknownLeaseError": "not-found",
    "PreconditionError": "precondition-failed",
    "IdempotencyError": "idempotency-mismatch",
    "StorageError": "not-ready",
    "ClusterError": "not-ready",
    "WorkerError": "not-ready",
    "RayalError": "internal",
}


# a full disk, a database that is away or starts again, no connection left: nothing was written
_OUT_OF_ORDER = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.InternalError,
    sqlalchemy.exc.TimeoutError,
)


class ProblemError(HTTPException):
    """An answer that is a problem document.

    Args:
        kind: name of a type.
        detail: what happened this time, and what to do.
        errors: the places of the request at fault, as (JSON pointer, detail).
        headers: headers of the answer.
        retry_after: seconds until it is worth to try again.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        errors: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.kind = KINDS[kind]
        self.errors = tuple(errors)
        more = dict(headers or {})
        if retry_after is not None or self.kind.retry:
            more["Retry-After"] = str(max(1, math.ceil(retry_after or 1)))
        super().__init__(self.kind.status, detail, more)


def kind_of(error: errors.RayalError) -> str:
    """Return the name of the type that an error of the family becomes."""
    return next(_OF_ERRORS[c.__name__] for c in type(error).__mro__ if c.__name__ in _OF_ERRORS)


def as_problem(error: Exception) -> ProblemError | None:
    """Return what a client is told of an error; None for one that nobody expected.

    What goes wrong with files and workers is told without its message, which names paths.
    """
    error = getattr(error, "cause", None) or error  # of a failed task of a cluster
    if isinstance(error, ProblemError):
        return error
    if isinstance(error, _OUT_OF_ORDER):
        return ProblemError(
            "not-ready", "the ledger or its disk does not answer; try again", retry_after=5
        )
    if isinstance(error, TimeoutError):
        return ProblemError("not-ready", "no answer in time; try again later", retry_after=5)
    if isinstance(error, RequestValidationError):
        return _invalid(error)
    if isinstance(error, HTTPException):
        return _plain(error)
    if not isinstance(error, errors.RayalError):
        return None
    kind = kind_of(error)
    if KINDS[kind].status >= 500:
        return ProblemError(kind, "storage or workers do not answer; try again", retry_after=5)
    return ProblemError(kind, str(error))


def render(problem: ProblemError, instance: str, request_id: str) -> Response:
    """Return the answer to a request that met a problem."""
    document: dict[str, Any] = {
        "type": problem.kind.type,
        "title": problem.kind.title,
        "status": problem.kind.status,
        "detail": problem.detail,
        "instance": instance,
        "request_id": request_id,
    }
    if problem.errors:
        document["errors"] = [{"pointer": p, "detail": d} for p, d in problem.errors]
    # ascii: what a client sent may come back, even what is no text
    body = json.dumps(document, ensure_ascii=True).encode()
    return Response(body, problem.kind.status, problem.headers, media_type=MEDIA_TYPE)


def internal() -> ProblemError:
    """Return what a client is told of an unexpected error: nothing but where to look."""
    return ProblemError("internal", "the service's log has the reason under this request_id")


def documented(*names: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of problem types, by status."""
    responses: dict[int | str, dict[str, Any]] = {}
    for kind in (KINDS[name] for name in dict.fromkeys(names)):
        entry = responses.setdefault(kind.status, _response(kind))
        entry["content"][MEDIA_TYPE]["examples"][kind.name] = {"value": _example(kind)}
    return responses


def schema() -> dict[str, Any]:
    """Return the JSON schema of a problem document."""
    texts = {name: {"type": "string"} for name in ("title", "detail", "instance", "request_id")}
    place = {"pointer": {"type": "string"}, "detail": {"type": "string"}}
    return {
        "type": "object",
        "title": "Problem",
        "description": "An error (RFC 9457).",
        "required": ["type", "title", "status", "detail", "instance", "request_id"],
        "additionalProperties": False,
        "properties": {
            "type": {"type": "string", "enum": [kind.type for kind in KINDS.values()]},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            **texts,
            "errors": {
                "type": "array",
                "items": {"type": "object", "required": ["pointer", "detail"], "properties": place},
            },
        },
    }


def _response(kind: Kind) -> dict[str, Any]:
    content = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": {}}
    response: dict[str, Any] = {"description": kind.title, "content": {MEDIA_TYPE: content}}
    if kind.retry:
        seconds = {"schema": {"type": "integer", "minimum": 1}}
        response["headers"] = {"Retry-After": {"description": "seconds", **seconds}}
    return response


def _example(kind: Kind) -> dict[str, Any]:
    return {
        "type": kind.type,
        "title": kind.title,
        "status": kind.status,
        "detail": "what happened, what is allowed, what to do",
        "instance": "/v1/projects/birds",
        "request_id": "0f9b3f3e6f2f4d0a8d3c2b1a09876543",
    }


def _invalid(error: RequestValidationError) -> ProblemError:
    places = [(_pointer(e["loc"]), str(e["msg"])) for e in error.errors()[:_SHOWN]]
    more = len(error.errors()) - len(places)
    first = f"{places[0][0] or 'the request'}: {places[0][1]}"
    return ProblemError("validation", first + (f", and {more} more" if more else ""), errors=places)


def _pointer(loc: Sequence[Any]) -> str:
    """Return where in the request a value stands; within the body as a JSON pointer."""
    place, *path = (str(step).replace("~", "~0").replace("/", "~1") for step in loc)
    inner = "".join(f"/{step}" for step in path)
    return inner if place == "body" else f"{place}:{inner.removeprefix('/')}"


def _plain(error: HTTPException) -> ProblemError:
    names = {404: "not-found", 405: "method-not-allowed", 413: "too-large"}
    details = {
        404: "no route has this path; /openapi.json lists all of them",
        405: "the path exists, the method does not; Allow lists those that do",
    }
    detail = details.get(error.status_code, str(error.detail))
    headers = dict(error.headers or {})
    return ProblemError(names.get(error.status_code, "validation"), detail, headers=headers)
