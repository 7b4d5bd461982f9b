"""One request on its way: who sent it, what it may do, and how it is answered, once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from rayal.errors import UnknownNameError
from rayal.service import signing
from rayal.service.backend import Backend
from rayal.service.problems import ProblemError
from rayal.service.requests import BoundedRequest

if TYPE_CHECKING:
    from rayal.ledger import ProjectRow
    from rayal.ledger.idempotency import Once
    from rayal.ledger.records import Stored, TokenRow

IDEMPOTENCY_KEY = r"^[!-~]{1,255}$"
REPLAYED = {"Idempotency-Replayed": "true"}


@dataclass(frozen=True)
class Answer:
    """The result of a handler.

    Args:
        body: a model, plain JSON, or None for no body.
        status: the HTTP status of the answer.
        headers: headers of the answer beside the usual ones.
        stored: what a repeated request gets instead of ``body``, where that holds a secret.
    """

    body: BaseModel | Mapping[str, Any] | None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    stored: BaseModel | None = None


@dataclass(frozen=True)
class Call:
    """One request, authorized.

    Args:
        backend: the objects that handlers use.
        request: the request as it came.
        token: the token of the client; None where the route needs none.
    """

    backend: Backend
    request: BoundedRequest
    token: TokenRow | None

    def project(self, name: str) -> ProjectRow:
        """Return a project's row; an unknown name lists no other names, which may be secret."""
        try:
            return self.backend.ledger.project(name)
        except UnknownNameError:
            raise ProblemError("not-found", f"project {name!r} does not exist") from None

    def cursor(self, position: list[Any] | None, *more: str) -> str | None:
        """Return the cursor of a position in the list that is asked for; None after the last."""
        if position is None:
            return None
        return signing.cursor(self.backend.secret, self._list(more), position)

    def position(self, cursor: str | None, *more: str) -> list[Any] | None:
        """Return the position that a cursor names."""
        return signing.position(self.backend.secret, self._list(more), cursor)

    def linked(self, body: BaseModel, cursor: str | None) -> Answer:
        """Return a page, with a link to the next one."""
        if cursor is None:
            return Answer(body)
        url = self.request.url.include_query_params(cursor=cursor)
        return Answer(body, headers={"Link": f'<{url.path}?{url.query}>; rel="next"'})

    def perform(self, effect: Callable[[], Any]) -> Response:
        """Return the answer to a request, which with an Idempotency-Key has its effect once.

        The answer is stored in the transaction of the effect; a repeated request gets it again.
        """
        key = self._key()
        if key is None:
            return respond(effect())
        with self.backend.ledger.once(self._scope(), key, self._fingerprint()) as once:
            return replayed(once.replay) if once.replay else _kept(once, as_answer(effect()))

    def perform_then_store(
        self, effect: Callable[[], Any], fingerprint: str | None = None
    ) -> Response:
        """Like ``perform``, for an effect that is long and may safely be repeated.

        No transaction is open while it lasts, so other writers do not wait; a request that is
        repeated after a crash has its effect again.
        """
        key = self._key()
        if key is None:
            return respond(effect())
        named = (self._scope(), key, fingerprint or self._fingerprint())
        with self.backend.ledger.once(*named) as once:
            if once.replay:
                return replayed(once.replay)
        answer = as_answer(effect())
        with self.backend.ledger.once(*named) as once:
            return replayed(once.replay) if once.replay else _kept(once, answer)

    def perform_checked(self, check: Callable[[], Callable[[], Any]]) -> Response:
        """Like ``perform``, for an effect that a long check comes before.

        No transaction is open while ``check`` lasts; what it returns is the effect, which looks
        once more at whatever may have changed since, and commits with its answer.
        """
        key = self._key()
        if key is None:
            return respond(check()())
        named = (self._scope(), key, self._fingerprint())
        with self.backend.ledger.once(*named) as once:
            if once.replay:
                return replayed(once.replay)
        try:
            effect = check()
        except Exception:
            with self.backend.ledger.once(*named) as once:
                if once.replay:  # by now the same request has had its effect
                    return replayed(once.replay)
            raise
        with self.backend.ledger.once(*named) as once:
            return replayed(once.replay) if once.replay else _kept(once, as_answer(effect()))

    def _key(self) -> str | None:
        key = self.request.headers.get("idempotency-key")
        if key is not None and not re.fullmatch(IDEMPOTENCY_KEY, key):
            detail = "Idempotency-Key must be 1 to 255 visible ASCII characters"
            raise ProblemError("validation", detail, errors=[("header:Idempotency-Key", detail)])
        return key

    def _list(self, more: tuple[str, ...]) -> str:
        return "\n".join((self.request.url.path, *more))

    def _scope(self) -> str:
        who = "" if self.token is None else self.token.token_id
        return f"{who} {self.request.method} {self.request.url.path}"

    def _fingerprint(self) -> str:
        """Return a hash of query and body, as they came."""
        body = getattr(self.request, "_body", b"")
        return sha256(self.request.url.query.encode() + b"\n" + body).hexdigest()


async def _here(request: Request) -> Call:
    call: Call = request.scope["rayal.call"]
    return call


Here = Annotated[Call, Depends(_here)]


def as_answer(given: Answer | BaseModel | Mapping[str, Any]) -> Answer:
    """Return what a handler gave as an answer."""
    return given if isinstance(given, Answer) else Answer(given)


def respond(given: Any) -> Response:
    """Return the response of what a handler gave; a number that is not finite is an error."""
    if isinstance(given, Response):
        return given
    answer = as_answer(given)
    headers = {"Cache-Control": "no-store", **answer.headers}
    if answer.body is None:
        return Response(None, answer.status, headers)
    body = answer.body
    value = body.model_dump() if isinstance(body, BaseModel) else body
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return Response(text.encode(), answer.status, headers, media_type="application/json")


def replayed(stored: Stored) -> Response:
    """Return the answer that a request got before."""
    return Response(stored.body, stored.status, {**stored.headers, **REPLAYED})


def _kept(once: Once, answer: Answer) -> Response:
    response = respond(answer)
    kept = response if answer.stored is None else respond(Answer(answer.stored))
    once.store(answer.status, bytes(kept.body), _headers(response))
    return response


def _headers(response: Response) -> dict[str, str]:
    return {k: v for k, v in response.headers.items() if k not in ("content-length",)}
