"""One connection to a rayal service, which retries calls and names the cause of a failure.

Every call may safely be made twice. Reads, PUT and DELETE are so by nature; POST and PATCH carry an
Idempotency-Key that all tries of one call share, so that the service answers a repeated one with
what it answered first.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast
from urllib.parse import urlsplit

import httpx

from rayal.errors import RayalError, SettingsError

AGAIN = frozenset({408, 429, 500, 502, 503, 504})  # answers that another try may better
PROBLEM = "urn:rayal:problem:"
FIRST_DELAY, LONGEST_DELAY = 0.5, 10.0
LONGEST_WAIT = 300.0  # a service that asks for more is taken at its word: the call fails

Row = TypeVar("Row")


class ApiError(RayalError, RuntimeError):
    """The service refused a call, or did not answer it.

    Args:
        sentence: text of the message.
        type: the last part of the problem's type, as ``not-found``; ``unreachable`` where no answer
            came, ``late`` and ``failed`` of what was waited for.
        status: HTTP status; None where the error is no answer.
        problem: the members of the problem document (RFC 9457), empty where there was none.

    Attributes:
        detail: the service's own sentence.
        errors: faults of the request with their places, as ``{"pointer": …, "detail": …}``.
        request_id: name of the call in the service's log.
    """

    def __init__(
        self,
        sentence: str,
        type: str,
        *,
        status: int | None = None,
        problem: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(sentence)
        self.type, self.status = type, status
        self.problem = dict(problem or {})
        self.detail = str(self.problem.get("detail", ""))
        self.errors: list[dict[str, Any]] = list(self.problem.get("errors") or [])
        self.request_id = self.problem.get("request_id")


@dataclass(frozen=True)
class Pages(Generic[Row]):
    """All rows of a list, fetched page by page while one iterates.

    Args:
        fetch: returns the page at a cursor: its rows and the next cursor, None after the last.
        cursor: where to begin.
    """

    fetch: Callable[[str | None], tuple[list[Row], str | None]]
    cursor: str | None = None

    def __iter__(self) -> Iterator[Row]:
        for page in self.pages():
            yield from page

    def pages(self) -> Iterator[list[Row]]:
        """Yield the rows of one page after the other."""
        cursor = self.cursor
        while True:
            rows, cursor = self.fetch(cursor)
            yield rows
            if cursor is None:
                return


class Connection:
    """HTTP calls to one service, each retried until its answer is final.

    Args:
        url: address of the service, as ``http://127.0.0.1:8000``.
        token: bearer token; it appears in no message and no log.
        timeout: seconds that one try may take.
        retries: tries after the first. Their pauses double from half a second to ten, are shortened
            at random by up to a half, and are never shorter than the service's Retry-After; ten
            last at least 32 seconds, longer than a proxy of Ray Serve takes to come back.
        transport: transport of the requests; by default the network.

    Raises:
        SettingsError: the url is not one of http or https.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 10,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SettingsError(
                f"{url!r} is no address of a service; give one such as http://127.0.0.1:8000"
            )
        self.url = url.rstrip("/")
        self._retries = retries
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        here = parts.hostname in {"127.0.0.1", "localhost", "::1"}  # no proxy leads back here
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers | {"User-Agent": "rayal-client"},
            timeout=timeout,
            transport=transport,
            trust_env=not here,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | Path | None = None,
    ) -> httpx.Response:
        """Return the answer to one call, tried again as long as that may help.

        Args:
            method: GET, POST, PUT, PATCH or DELETE.
            path: from the service's root, as ``/v1/projects``; its parts are quoted.
            json: body.
            params: query parameters; those that are None are left out.
            headers: further ones.
            content: in place of ``json`` a body as bytes, or the file that holds it.

        Raises:
            ApiError: the service refused, or did not answer.
        """
        sent = dict(headers or {})
        if method in {"POST", "PATCH"}:
            sent.setdefault("Idempotency-Key", uuid.uuid4().hex)
        query = {k: v for k, v in (params or {}).items() if v is not None}

        def request() -> httpx.Request:
            body = blocks(content) if isinstance(content, Path) else content
            return self._http.build_request(
                method, path, json=json, params=query or None, headers=sent, content=body
            )

        answer, tries = self._answered(request)
        if answer.is_success or (method == "DELETE" and tries > 1 and answer.status_code == 404):
            return answer  # an earlier try, whose answer was lost, has deleted it
        raise refusal(method, path, answer)

    def _answered(self, request_of: Callable[[], httpx.Request]) -> tuple[httpx.Response, int]:
        """Return the last answer and the number of tries that it took."""
        started, tries = time.monotonic(), 0
        while True:
            tries += 1
            answer: httpx.Response | None = None
            request = request_of()
            try:
                answer = self._http.send(request)
                fault = f"{answer.status_code} {answer.reason_phrase}".strip()
            except httpx.TransportError as error:
                fault = str(error) or type(error).__name__
            if answer is not None and not may_change(answer):
                return answer, tries
            asked = 0.0 if answer is None else asked_pause(answer)
            if tries > self._retries or asked > LONGEST_WAIT:
                if answer is not None:
                    return answer, tries
                seconds = time.monotonic() - started
                raise ApiError(
                    f"{request.method} {request.url.path}: no answer from {self.url} in {tries} "
                    f"tries over {seconds:.0f} s ({fault}); is the service running there?",
                    "unreachable",
                )
            time.sleep(max(pause(tries), asked))

    def pages(
        self, path: str, rows: str, params: Mapping[str, Any] | None = None
    ) -> Pages[dict[str, Any]]:
        """Return a list's rows, page by page.

        Args:
            path: path of the list.
            rows: member of a page that holds them.
            params: query parameters.
        """

        def fetch(cursor: str | None) -> tuple[list[dict[str, Any]], str | None]:
            query = dict(params or {}) | ({} if cursor is None else {"cursor": cursor})
            page = self.call("GET", path, params=query).json()
            return page[rows], page.get("next")

        return Pages(fetch)


def may_change(answer: httpx.Response) -> bool:
    """Return whether another try may be answered otherwise.

    A conflict that names a time is a first try that still runs.
    """
    waits = "Retry-After" in answer.headers
    if answer.status_code == 404 and "problem+json" not in answer.headers.get("content-type", ""):
        return True  # a proxy that is up again before the service that it stands for
    return answer.status_code in AGAIN or (answer.status_code == 409 and waits)


def pause(tries: int) -> float:
    """Return the seconds to wait after so many tries: doubled each time, shortened at random."""
    longest = min(FIRST_DELAY * 2.0 ** min(tries - 1, 16), LONGEST_DELAY)
    return longest * random.uniform(0.5, 1.0)


def asked_pause(answer: httpx.Response) -> float:
    """Return the seconds that the answer's Retry-After asks for; 0 without one."""
    text = answer.headers.get("Retry-After", "")
    try:
        return max(float(text), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0


def blocks(file: Path) -> Iterator[bytes]:
    """Yield what a file holds, a megabyte at a time."""
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            yield block


def refusal(method: str, path: str, answer: httpx.Response) -> ApiError:
    """Return the error that an answer stands for, with a sentence of what, where and why."""
    problem = _problem(answer)
    named = str(problem.get("type", "")).removeprefix(PROBLEM) or "no problem document"
    why = problem.get("detail") or problem.get("title") or answer.reason_phrase or "no reason given"
    where = "".join(
        f"; {e.get('pointer', '')}: {e.get('detail', '')}" for e in problem.get("errors") or ()
    )
    known = f" (request {problem['request_id']})" if problem.get("request_id") else ""
    sentence = f"{method} {path.partition('?')[0]}: {answer.status_code} {named}: {why}"
    return ApiError(f"{sentence}{where}{known}", named, status=answer.status_code, problem=problem)


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        problem = answer.json()
    except ValueError:
        return {}
    return cast(dict[str, Any], problem) if isinstance(problem, dict) else {}
