"""The limits of clients, and the middleware that refuses more before anything is parsed."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256

from anyio.to_thread import current_default_thread_limiter
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from rayal.service.content import ContentLimits
from rayal.service.problems import ProblemError

UNLIMITED = frozenset({"/healthz", "/readyz", "/metrics"})
OVERLOADED_SECONDS = 5  # to stay away: a refusal costs half of what an answer does
_BUCKETS = 10_000  # clients remembered; the one longest silent is forgotten first


@dataclass(frozen=True)
class Limits:
    """The most that a client may ask for.

    Args:
        body_bytes: bytes of a request's body.
        label_body_bytes: bytes of a body that holds no items and no columns.
        stream_bytes: bytes of a stream of items.
        rate: requests a second of one token, on average.
        burst: requests of one token at once.
        in_flight: requests that one process works on.
        threads: worker threads per process; more than four contend for the interpreter and
            starve the event loop.
        query_rows: rows of a stateless query.
        predict_items: items of a prediction that is answered at once; more become a job.
        page: rows of one page, and elements of one batch.
        image_bytes: bytes of an encoded image.
        image_pixels: pixels of a decoded image.
        text_bytes: bytes of a text in UTF-8.
        url_seconds: seconds for which a signed URL is valid.
    """

    body_bytes: int = 10 << 20
    label_body_bytes: int = 1 << 19
    stream_bytes: int = 4 << 30
    rate: float = 200.0
    burst: int = 400
    in_flight: int = 96
    threads: int = 4
    query_rows: int = 10_000
    predict_items: int = 256
    page: int = 1000
    image_bytes: int = ContentLimits.image_bytes
    image_pixels: int = ContentLimits.image_pixels
    text_bytes: int = ContentLimits.text_bytes
    url_seconds: float = 900.0


class Rates:
    """One bucket of requests a client, refilled steadily.

    Args:
        rate: requests a second.
        burst: requests that a full bucket holds.
        clock: seconds that only grow.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def take(self, client: bytes) -> float:
        """Take one request from a client's bucket; return the seconds to wait, 0 if it had one."""
        now = self._clock()
        level, then = self._buckets.pop(client, (self._burst, now))
        level = min(self._burst, level + (now - then) * self._rate)
        wait = 0.0 if level >= 1 else (1 - level) / self._rate
        self._buckets[client] = (level - (not wait), now)
        if len(self._buckets) > _BUCKETS:
            self._buckets.popitem(last=False)
        return wait


class LimitsMiddleware:
    """Refuses requests above the rate of a token (429) and above those in flight (503)."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._rates = Rates(limits.rate, limits.burst)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it at once."""
        threads = current_default_thread_limiter()
        if threads.total_tokens != self._limits.threads:  # Serve gives it one per request
            threads.total_tokens = self._limits.threads
        if scope["type"] != "http" or scope["path"] in UNLIMITED:
            await self._app(scope, receive, send)
            return
        wait = self._rates.take(_client(scope))
        if wait:
            raise ProblemError(
                "rate-limited",
                f"more than {self._limits.rate:g} requests a second; wait, then send again",
                retry_after=wait,
            )
        if self._in_flight >= self._limits.in_flight:
            detail = f"{self._in_flight} requests are being answered; send again later"
            raise ProblemError("overloaded", detail, retry_after=OVERLOADED_SECONDS)
        self._in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight -= 1


def _client(scope: Scope) -> bytes:
    """Return who asks: the token, as far as one is given, else the address."""
    token = HTTPConnection(scope).headers.get("authorization")
    host = (scope.get("client") or ("",))[0]
    return sha256((token or f"host {host}").encode(errors="replace")).digest()
