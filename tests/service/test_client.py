"""The client's tries, pauses and errors, against a service that answers as it is told."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest

import rayal
from rayal.client import connection as module
from rayal.client.connection import Connection
from rayal.client.labeling import MOST_BYTES, bodies
from rayal.errors import RayalError, SettingsError
from rayal.types import id_keys

TOKEN = "ryl_" + "s" * 43
Answer = httpx.Response | type[httpx.TransportError] | Callable[[httpx.Request], httpx.Response]


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self.now

    time = monotonic

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for name in ("monotonic", "time", "sleep"):
        monkeypatch.setattr(time, name, getattr(made, name))
    return made


class Told:
    """Gives the answers one after the other, the last one for ever, and keeps the requests."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, type):
            raise answer("connection refused")
        return answer if isinstance(answer, httpx.Response) else answer(request)

    @property
    def keys(self) -> list[str | None]:
        return [r.headers.get("Idempotency-Key") for r in self.requests]


def client(told: Told, **more: Any) -> rayal.Client:
    return rayal.Client("http://127.0.0.1:8000", TOKEN, transport=httpx.MockTransport(told), **more)


def leases(*items: str) -> httpx.Response:
    rows = [{"lease_id": f"l-{i}", "item": {"id": i}, "rank": 1, "round": 0} for i in items]
    return httpx.Response(200, json={"leases": rows})


def problem(status: int, name: str, **more: Any) -> httpx.Response:
    body = {"type": f"urn:rayal:problem:{name}", "title": "A title", "status": status, **more}
    return httpx.Response(status, json=body, headers={"content-type": "application/problem+json"})


# -- tries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_answers_that_may_change_are_tried_again_with_one_key(status: int, clock: Clock) -> None:
    told = Told(httpx.Response(status), httpx.ConnectError, httpx.ReadTimeout, leases("a"))
    assert [row["item"]["id"] for row in client(told).lease("p", "ann")] == ["a"]
    assert len(told.requests) == 4
    assert len(set(told.keys)) == 1 and re.fullmatch(r"[0-9a-f]{32}", str(told.keys[0]))
    assert len({r.content for r in told.requests}) == 1


def test_another_call_has_another_key(clock: Clock) -> None:
    told = Told(leases("a"))
    for _ in range(2):
        client(told).lease("p", "ann")
    assert len(set(told.keys)) == 2


def test_reads_have_no_key(clock: Clock) -> None:
    told = Told(httpx.Response(200, json={"name": "p", "version": 1}))
    client(told).project("p")
    assert told.keys == [None]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 412, 413, 422])
def test_a_refusal_is_not_tried_again(status: int, clock: Clock) -> None:
    told = Told(problem(status, "refused"))
    with pytest.raises(rayal.ApiError) as caught:
        client(told).lease("p", "ann")
    assert caught.value.status == status
    assert len(told.requests) == 1 and clock.sleeps == []


def test_a_first_try_that_still_runs_is_waited_for(clock: Clock) -> None:
    running = httpx.Response(409, headers={"Retry-After": "1"})
    told = Told(running, leases("a"))
    assert client(told).lease("p", "ann")
    assert len(set(told.keys)) == 1 and clock.sleeps == [1.0]


def test_tries_span_more_than_thirty_seconds(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: low)  # the shortest pauses
    told = Told(httpx.ConnectError)
    with pytest.raises(rayal.ApiError, match=r"11 tries over 3[2-9] s .*connection refused"):
        client(told).lease("p", "ann")
    assert len(told.requests) == 11
    assert clock.sleeps == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0, 5.0, 5.0]
    assert sum(clock.sleeps) > 30.0


def test_pauses_are_drawn_between_half_and_the_whole() -> None:
    drawn = [module.pause(tries) for tries in range(1, 9) for _ in range(200)]
    longest = [min(0.5 * 2 ** (tries - 1), 10.0) for tries in range(1, 9) for _ in range(200)]
    shares = [d / w for d, w in zip(drawn, longest, strict=True)]
    assert 0.5 <= min(shares) < 0.51 and 0.99 < max(shares) <= 1.0


def test_the_service_says_how_long_to_wait(clock: Clock) -> None:
    date = formatdate(clock.now + 20.0, usegmt=True)
    told = Told(
        httpx.Response(429, headers={"Retry-After": "17"}),
        httpx.Response(503, headers={"Retry-After": date}),
        httpx.Response(503, headers={"Retry-After": "soon"}),
        leases("a"),
    )
    assert client(told).lease("p", "ann")
    assert clock.sleeps[0] == 17.0
    assert clock.sleeps[1] == pytest.approx(3.0, abs=1.0)  # the date is counted from now
    assert clock.sleeps[2] <= 2.0


def test_who_is_told_to_come_back_much_later_is_told_so(clock: Clock) -> None:
    told = Told(httpx.Response(429, headers={"Retry-After": "3600"}))
    with pytest.raises(rayal.ApiError) as caught:
        client(told).lease("p", "ann")
    assert caught.value.status == 429 and clock.sleeps == []


def test_no_retries(clock: Clock) -> None:
    told = Told(httpx.Response(503), leases("a"))
    with pytest.raises(rayal.ApiError, match="503"):
        client(told, retries=0).lease("p", "ann")
    assert len(told.requests) == 1


def test_what_a_lost_answer_deleted_is_gone(clock: Clock) -> None:
    gone = problem(404, "not-found")
    client(Told(httpx.ReadError, gone)).revoke_token("t1")
    with pytest.raises(rayal.ApiError, match="404"):
        client(Told(gone)).revoke_token("t1")


# -- errors ----------------------------------------------------------------------------------


def test_an_error_says_what_where_and_why(clock: Clock) -> None:
    document = problem(
        422,
        "validation",
        detail="the request does not fit",
        errors=[{"pointer": "/strategy", "detail": "unknown name 'badg'"}],
        request_id="r-7",
    )
    with pytest.raises(rayal.ApiError) as caught:
        client(Told(document)).create_project({"name": "p"})
    error = caught.value
    assert isinstance(error, RayalError) and isinstance(error, RuntimeError)
    assert (error.status, error.type, error.request_id) == (422, "validation", "r-7")
    assert error.detail == "the request does not fit"
    assert error.errors[0]["pointer"] == "/strategy"
    assert str(error) == (
        "POST /v1/projects: 422 validation: the request does not fit; /strategy: unknown name "
        "'badg' (request r-7)"
    )


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[1]", b'"text"', b"\xff"])
def test_an_answer_that_is_no_problem_document(body: bytes, clock: Clock) -> None:
    with pytest.raises(rayal.ApiError, match="403 no problem document: Forbidden"):
        client(Told(httpx.Response(403, content=body))).project("p")


def test_the_token_is_sent_and_shown_nowhere(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    told = Told(httpx.ConnectError, problem(401, "unauthenticated", detail="unknown token"))
    with client(told) as made, pytest.raises(rayal.ApiError) as caught:
        made.project("p")
    assert told.requests[0].headers["Authorization"] == f"Bearer {TOKEN}"
    shown = [str(caught.value), repr(caught.value), repr(made), str(vars(caught.value))]
    assert TOKEN not in "".join(shown) + caplog.text


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x/", "http://", "", "file:///etc/passwd"])
def test_an_url_that_is_none(url: str) -> None:
    with pytest.raises(SettingsError, match=r"http://127\.0\.0\.1:8000"):
        rayal.Client(url, TOKEN)


def test_proxies_of_the_environment_are_not_asked_for_this_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    assert not Connection("http://127.0.0.1:8000", TOKEN)._http.trust_env
    assert Connection("http://service.invalid", TOKEN)._http.trust_env


# -- what the methods send --------------------------------------------------------------------


def test_pages_are_fetched_while_they_are_read(clock: Clock) -> None:
    def page(request: httpx.Request) -> httpx.Response:
        at = int(request.url.params.get("cursor", "0"))
        rows = [{"label_id": n} for n in range(at, min(at + 2, 5))]
        return httpx.Response(200, json={"labels": rows, "next": str(at + 2) if at < 4 else None})

    told = Told(page)
    rows = client(told).labels("p", since=7)
    assert told.requests == []
    first = iter(rows)
    assert [next(first)["label_id"], next(first)["label_id"]] == [0, 1]
    assert len(told.requests) == 1
    assert [row["label_id"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(r.url.params["since"] == "7" for r in told.requests)


def test_names_are_quoted(clock: Clock) -> None:
    told = Told(httpx.Response(204))
    client(told).retract("p", "ann/lee ?#", "cats/1.png")
    key = f"{int(id_keys(['cats/1.png'])[0]):016x}"
    assert told.requests[0].url.raw_path == (
        f"/v1/projects/p/labels/{key}/ann%2Flee%20%3F%23".encode()
    )


def test_the_signature_of_a_path_is_kept(clock: Clock) -> None:
    told = Told(httpx.Response(200, content=b"png"))
    assert client(told).fetch("/v1/projects/p/items/00/content?until=1&sig=ab%2B") == b"png"
    assert told.requests[0].url.raw_path.endswith(b"/content?until=1&sig=ab%2B")


def test_labels_go_in_bodies_of_a_thousand(clock: Clock) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        rows = json.loads(request.content)["labels"]
        made = [{"item": r["item"], "status": "accepted", "late": False} for r in rows]
        return httpx.Response(200, json={"results": made})

    told = Told(answer)
    outcomes = client(told).label(
        "p", "ann", {f"i{n}": "cat" for n in range(2500)}, leases={"i7": "l-7"}
    )
    sent = [json.loads(r.content)["labels"] for r in told.requests]
    assert [len(rows) for rows in sent] == [1000, 1000, 500]
    assert sent[0][7] == {"item": "i7", "annotator": "ann", "lease_id": "l-7", "label": "cat"}
    assert [row["item"] for row in outcomes] == [f"i{n}" for n in range(2500)]
    assert len(set(told.keys)) == 3


def test_pushed_bodies_are_bounded_and_summed(clock: Clock) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        rows = json.loads(request.content)["items"]
        conflicts = [{"id": r["id"]} for r in rows if r["id"] == "i1"]
        created = len(rows) - len(conflicts)
        return httpx.Response(
            200, json={"created": created, "unchanged": 0, "conflicts": conflicts, "rejected": []}
        )

    told = Told(answer)
    most = MOST_BYTES["items"]
    items = [{"id": f"i{n}", "data": "x" * (most // 3)} for n in range(5)]
    pushed = client(told).push("p", items)
    assert pushed["created"] == 4 and pushed["conflicts"] == [{"id": "i1"}]
    assert all(len(r.content) <= most + 100 for r in told.requests)
    assert sum(len(json.loads(body)["items"]) for body in bodies("items", items)) == 5


def test_a_lease_is_waited_for_as_the_service_says(clock: Clock) -> None:
    none = httpx.Response(200, json={"leases": []}, headers={"Retry-After": "4"})
    told = Told(none, none, leases("a"))
    assert client(told).lease("p", "ann", wait=60.0)[0]["item"]["id"] == "a"
    assert clock.sleeps == [4.0, 4.0]
    assert len(set(told.keys)) == 3  # each question is a call of its own
    assert client(Told(none)).lease("p", "ann", wait=10.0) == []
    assert client(Told(none)).lease("p", "ann") == []
    assert clock.sleeps == [4.0, 4.0, 4.0, 4.0, 2.0]
    over = httpx.Response(200, json={"leases": [], "reason": "finished"})
    assert client(Told(over)).lease("p", "ann", wait=60.0) == []
    assert client(Told(over)).lease_or_reason("p", "ann")["reason"] == "finished"


def test_a_round_is_waited_for(clock: Clock) -> None:
    def rows() -> Iterator[httpx.Response]:
        yield httpx.Response(200, json={"name": "p", "version": 1})
        yield problem(404, "not-found", detail="round 2 has not begun")
        for stage in ("train", "select", "label"):
            yield httpx.Response(200, json={"n": 2, "stage": stage, "error": None})

    seen: list[str] = []
    row = client(Told(*rows())).wait_for_round("p", 2, progress=lambda r: seen.append(r["stage"]))
    assert row["stage"] == "label" and seen == ["train", "select", "label"]


def test_a_round_that_fails_or_does_not_come(clock: Clock) -> None:
    project = httpx.Response(200, json={"name": "p", "version": 1})
    failed = httpx.Response(200, json={"n": 2, "stage": "failed", "error": "disk full"})
    with pytest.raises(rayal.ApiError, match="round 2 of 'p' failed: disk full") as caught:
        client(Told(project, failed)).wait_for_round("p", 2)
    assert caught.value.type == "failed"
    train = httpx.Response(200, json={"n": 2, "stage": "train", "error": None})
    with pytest.raises(rayal.ApiError, match="not done after 30 s") as caught:
        client(Told(project, train)).wait_for_round("p", 2, timeout=30.0)
    assert caught.value.type == "late"


def test_many_predictions_are_a_job_that_is_waited_for(clock: Clock) -> None:
    rows: Any = [{"item": i, "label": "cat", "probs": [0.9, 0.1]} for i in "ab"]
    told = Told(
        httpx.Response(202, json={"job": {"job": "j1", "state": "queued"}}),
        httpx.Response(200, json={"job": "j1", "state": "running", "progress": {}}),
        httpx.Response(200, json={"job": "j1", "state": "done", "result": {"rows": 2}}),
        httpx.Response(200, content=b"\n".join(json.dumps(row).encode() for row in rows)),
    )
    assert client(told).predict("p", items=["a", "b"]) == rows
    assert told.requests[-1].url.path == "/v1/jobs/j1/result"


def test_a_file_is_streamed_again_with_every_try(clock: Clock, tmp_path: Path) -> None:
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(request.read())
        if len(bodies) < 3:
            return httpx.Response(503)
        return httpx.Response(202, json={"job": {"job": "j1", "state": "queued"}})

    result = {"created": 1, "unchanged": 0, "conflicts": [], "rejected": []}
    done = httpx.Response(200, json={"job": "j1", "state": "done", "result": result})
    file = tmp_path / "items.jsonl"
    file.write_bytes(b'{"id": "a", "features": [1]}\n' * 100_000)
    told = Told(answer, answer, answer, done)
    assert client(told).push_file("p", file)["created"] == 1
    assert bodies == [file.read_bytes()] * 3 and len(set(told.keys[:3])) == 1
    assert told.requests[0].headers["content-type"] == "application/x-ndjson"


def test_a_proxy_that_is_up_before_the_service_is_asked_again(clock: Clock) -> None:
    told = Told(httpx.Response(404, text="Path '/v1/jobs' not found."), leases("a"))
    assert [row["item"]["id"] for row in client(told).lease("p", "ann")] == ["a"]
    assert len(told.requests) == 2
