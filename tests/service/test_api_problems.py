from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from api_cases import InProcess, Service, png, problem, service
from sqlalchemy import event

from rayal import errors
from rayal.ledger import LabelEntry
from rayal.service import problems
from rayal.service.app import create_app

LABELS = "/v1/projects/birds/labels"


@pytest.fixture
def birds(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path) as made:
        made.pictures()
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Give a client for requests that change nothing."""
    with service(tmp_path_factory.mktemp("shared")) as made, made.client() as client:
        made.pictures()
        yield client


@pytest.fixture
def client(birds: Service) -> Iterator[httpx.Client]:
    with birds.client() as made:
        yield made


def limited(birds: Service, call: Callable[[httpx.Client], Any], **limits: Any) -> Any:
    changed = replace(birds.backend.limits, **limits)
    with birds.changed(limits=changed) as other, other.client() as client:
        return call(client)


def _unauthenticated(birds: Service, client: httpx.Client) -> httpx.Response:
    return client.get("/v1/projects", headers={"Authorization": "Bearer x"})


def _forbidden(birds: Service, client: httpx.Client) -> httpx.Response:
    with birds.client(birds.token("project:birds:read")) as reader:
        return reader.post(LABELS, json={"labels": []})


def _lease_expired(birds: Service, client: httpx.Client) -> httpx.Response:
    now = birds.ledger.now()
    (mine,) = birds.ledger.lease("birds", "ada", 1, ttl=10, now=now - 100)
    birds.ledger.label("birds", "bob", [LabelEntry(mine.item, "cat")])
    path = f"/v1/projects/birds/leases/{mine.lease}:extend"
    return client.post(path, json={"ttl_s": 10})


def _idempotency_mismatch(birds: Service, client: httpx.Client) -> httpx.Response:
    path, headers = "/v1/projects/birds/leases", {"Idempotency-Key": "k"}
    client.post(path, json={"annotator": "ada"}, headers=headers)
    return client.post(path, json={"annotator": "bob"}, headers=headers)


def _precondition_failed(birds: Service, client: httpx.Client) -> httpx.Response:
    def patch(*args: Any, **more: Any) -> Callable[[], int]:
        return lambda: birds.ledger.update_project("birds", {}, version=99)

    settings = birds.ledger.project("birds").settings
    settings["service"]["request"] = {}
    birds.ledger.update_project("birds", settings, version=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("rayal.service.creation.checked_patch", patch)
        return client.patch(
            "/v1/projects/birds", json={"batch_size": 5}, headers={"If-Match": '"99"'}
        )


def _rate_limited(birds: Service, client: httpx.Client) -> httpx.Response:
    def call(few: httpx.Client) -> httpx.Response:
        return [few.get("/v1/projects/birds") for _ in range(3)][-1]

    answer: httpx.Response = limited(birds, call, rate=0.01, burst=2)
    return answer


def _internal(birds: Service, client: httpx.Client) -> httpx.Response:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(birds.ledger, "counts", lambda *_: 1 / 0)
        return client.get("/v1/projects/birds")


def _not_ready(birds: Service, client: httpx.Client) -> httpx.Response:
    def down() -> float:
        raise OSError("no such disk")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(birds.ledger, "now", down)
        return client.get("/readyz")


def _overloaded(birds: Service, client: httpx.Client) -> httpx.Response:
    answer: httpx.Response = limited(birds, lambda c: c.get("/v1/projects"), in_flight=0)
    return answer


PRODUCED: dict[str, Callable[[Service, httpx.Client], httpx.Response]] = {
    "validation": lambda _, c: c.post(LABELS, json={}),
    "unauthenticated": _unauthenticated,
    "forbidden": _forbidden,
    "not-found": lambda _, c: c.get("/v1/projects/nothing"),
    "method-not-allowed": lambda _, c: c.put("/v1/projects", json={}),
    "conflict": lambda _, c: c.post("/v1/projects/birds/rounds:close", json={}),
    "lease-expired": _lease_expired,
    "precondition-failed": _precondition_failed,
    "too-large": lambda _, c: c.post(LABELS, json={"labels": ["x" * 1_000_000]}),
    "unsupported-media-type": lambda _, c: c.post(LABELS, content=b"<a/>"),
    "idempotency-mismatch": _idempotency_mismatch,
    "precondition-required": lambda _, c: c.patch("/v1/projects/birds", json={"batch_size": 5}),
    "rate-limited": _rate_limited,
    "internal": _internal,
    "not-ready": _not_ready,
    "overloaded": _overloaded,
}


@pytest.mark.parametrize("kind", PRODUCED)
def test_every_type_of_problem_is_produced(birds: Service, client: httpx.Client, kind: str) -> None:
    answer = PRODUCED[kind](birds, client)
    known = problems.KINDS[kind]
    document = problem(answer, known.status, kind)
    assert document["title"] == known.title
    assert ("retry-after" in answer.headers) == known.retry
    if known.retry:
        assert int(answer.headers["retry-after"]) > 0


def test_the_types_produced_are_the_types_documented(birds: Service, client: httpx.Client) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    documented = schemas["Problem"]["properties"]["type"]["enum"]
    assert set(documented) == {f"urn:rayal:problem:{kind}" for kind in PRODUCED}


def test_every_error_of_the_family_has_a_type() -> None:
    def family(cls: type[errors.RayalError]) -> Iterator[type[errors.RayalError]]:
        yield cls
        for child in cls.__subclasses__():
            yield from family(child)

    for cls in family(errors.RayalError):
        if not cls.__module__.startswith("rayal.errors"):
            continue
        made = problems.as_problem(cls("/srv/secret is broken"))
        assert made is not None
        assert (made.kind.status >= 500) == ("/srv/secret" not in made.detail)


def test_an_allowed_method_is_named_where_another_is_not(client: httpx.Client) -> None:
    for method, path, allowed in [
        ("PUT", "/v1/projects", "GET, POST"),
        ("POST", "/v1/projects/birds", "DELETE, GET, PATCH"),
        ("GET", f"/v1/projects/birds/leases/{'0' * 32}:extend", "POST"),
        ("GET", "/v1/projects/birds/models/r0000-abcd:activate", "POST"),
        ("GET", "/v1/projects/birds/rounds:close", "POST"),
        ("OPTIONS", "/v1/query", "POST"),
        ("TRACE", f"/v1/jobs/{'0' * 32}", "DELETE, GET"),
        ("HEAD", "/v1/tokens", "GET, POST"),
        ("DELETE", "/healthz", "GET"),
    ]:
        answer = client.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "required"),
        (b"{", "not JSON"),
        (b"null", ""),
        (b'{"labels": [{"item": "a\x00b"}]}', "not JSON"),
        (b'{"labels": [{"item": "a\\u0000b"}]}', "NUL"),
        (b'{"labels": [{"item": "\xff"}]}', "UTF-8"),
        (b'{"labels": [{"item": "\\ud800"}]}', "surrogate"),
        (b'{"labels": [{"item": "a", "annotator": "b", "label": NaN}]}', "NaN"),
        (b'{"labels": [{"item": "a", "annotator": "b", "label": 1e999}]}', "double"),
        (b'{"labels": [{"item": "a", "annotator": "b", "label": 1' + b"0" * 500 + b"}]}", "64"),
        (b'{"labels":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "deeper"),
    ],
)
def test_what_is_no_json_text_is_refused(shared: httpx.Client, body: bytes, told: str) -> None:
    answer = shared.post(LABELS, content=body, headers={"Content-Type": "application/json"})
    assert told in problem(answer, 422, "validation")["detail"]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("application/json", True),
        ("Application/JSON; charset=UTF-8", True),
        ('application/json; charset="utf-8"', True),
        ("application/json; charset=latin-1", False),
        ("application/problem+json", False),
        ("text/plain", False),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=x", False),
        ("", False),
    ],
)
def test_only_json_is_taken(shared: httpx.Client, given: str, taken: bool) -> None:
    headers = {"Content-Type": given} if given else {}
    answer = shared.post(LABELS, content=b'{"labels": []}', headers=headers)
    kind = ("validation", 422) if taken else ("unsupported-media-type", 415)
    problem(answer, kind[1], kind[0])


def test_a_body_is_bounded_however_it_comes(birds: Service, client: httpx.Client) -> None:
    most = birds.backend.limits.label_body_bytes
    headers = {"Content-Type": "application/json"}
    fits = client.post(LABELS, content=b" " * most, headers=headers)
    problem(fits, 422, "validation")
    over = b" " * (most + 1)
    problem(client.post(LABELS, content=over, headers=headers), 413, "too-large")
    streamed = client.post(LABELS, content=iter([over[:1000], over[1000:]]), headers=headers)
    problem(streamed, 413, "too-large")
    lied = client.post(LABELS, content=b"{}", headers={**headers, "Content-Length": str(10**12)})
    problem(lied, 413, "too-large")
    items = {"items": [{"id": "a", "data": png()}]}
    path = "/v1/projects/pictures/items"

    def push(few: httpx.Client) -> None:
        problem(few.post(path, json=items), 413, "too-large")
        lines = {"Content-Type": "application/x-ndjson"}
        assert few.post(path, content=b'{"id": "a"}\n', headers=lines).status_code == 200
        problem(few.post(path, content=b" " * 2000, headers=lines), 413, "too-large")

    limited(birds, push, body_bytes=50, stream_bytes=1000)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/projects?unknown=1",
        "/v1/projects?limit=0",
        "/v1/projects?limit=1001",
        "/v1/projects?limit=x",
        "/v1/projects?limit=1&limit=2",
        "/v1/projects?cursor=%00",
        "/v1/projects?cursor=",
        "/v1/projects/birds/labels?since=-1",
        "/v1/projects/birds/labels?since=99999999999999999999999",
        "/v1/projects/birds/items?state=",
        "/healthz?x",
        "/v1/jobs?state=odd",
        "/v1/jobs?project=%00",
    ],
)
def test_parameters_that_are_wrong_are_refused(shared: httpx.Client, path: str) -> None:
    document = problem(shared.get(path), 422, "validation")
    assert document["errors"][0]["pointer"].startswith("query:")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/projects/..%2f..%2fetc%2fpasswd",
        "/v1/projects/%00",
        "/v1/projects/birds%00",
        "/v1/projects/%ff",
        "/v1/projects/" + "x" * 81,
        "/v1/projects/.hidden",
        "/v1/projects/birds/",
        "/v1//projects",
        "/v1/projects/birds/items/00F3A1C45BE27D98",
        "/v1/projects/birds/rounds/1e3",
        "/v1/jobs/..",
    ],
)
def test_a_path_that_names_nothing_is_not_found(shared: httpx.Client, path: str) -> None:
    problem(shared.get(path), 404, "not-found")


def test_a_client_that_is_too_fast_is_told_when_to_come_again(birds: Service) -> None:
    other = birds.token("project:birds:read")

    def call(client: httpx.Client) -> None:
        codes = [client.get("/v1/projects/birds").status_code for _ in range(6)]
        assert codes == [200] * 5 + [429]
        mine = {"Authorization": f"Bearer {other}"}
        assert client.get("/v1/projects/birds", headers=mine).status_code == 200
        assert client.get("/healthz").status_code == 200
        nobody = {"Authorization": ""}
        codes = [client.get("/v1/projects", headers=nobody).status_code for _ in range(6)]
        assert codes == [401] * 5 + [429]

    limited(birds, call, rate=0.001, burst=5)


def test_requests_above_those_in_flight_are_refused_and_health_is_not(birds: Service) -> None:
    started: list[str] = []

    async def slow(body: Any) -> Any:
        started.append("asked")
        await release.wait()
        return {"picks": [], "approximation": None}

    import asyncio

    limits = replace(birds.backend.limits, in_flight=1)
    query = {"strategy": "margin", "columns": {"log_probs": [[0.0]]}, "k": 1}
    headers = {"Authorization": f"Bearer {birds.tokens['admin']}"}
    release: asyncio.Event

    async def both() -> list[httpx.Response]:
        nonlocal release
        release = asyncio.Event()
        transport = httpx.ASGITransport(
            create_app(replace(birds.backend, limits=limits, query=slow))
        )
        async with httpx.AsyncClient(
            transport=transport, base_url="http://service", headers=headers
        ) as client:
            first = asyncio.create_task(client.post("/v1/query", json=query))
            while not started:
                await asyncio.sleep(0.01)
            second = await client.get("/v1/projects")
            health = await client.get("/healthz")
            release.set()
            return [await first, second, health, await client.get("/v1/projects")]

    first, second, health, after = asyncio.run(both())
    assert (first.status_code, health.status_code, after.status_code) == (200, 200, 200)
    problem(second, 503, "overloaded")


def test_an_unexpected_error_tells_its_place_to_the_log_alone(
    birds: Service, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    secret = birds.tokens["admin"]

    def broken(*args: Any) -> None:
        raise RuntimeError(f"cannot use {secret}\n[parameters: ('a label',)]")

    with pytest.MonkeyPatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr(birds.ledger, "counts", broken)
        document = problem(client.get("/v1/projects/birds"), 500, "internal")
    assert "RuntimeError" not in str(document)
    (record,) = [r for r in caplog.records if r.name == "rayal.service"]
    told = record.getMessage()
    assert document["request_id"] in told
    assert "RuntimeError: cannot use ryl_…" in told
    assert "projects.py" in told
    assert secret not in caplog.text
    assert "a label" not in caplog.text


def test_every_answer_carries_its_id_and_what_browsers_must_know(client: httpx.Client) -> None:
    for path in ("/healthz", "/v1/projects", "/nothing", "/v1/projects?x=1"):
        answer = client.get(
            path, headers={"Origin": "http://elsewhere", "X-Request-Id": "mine-1234"}
        )
        assert answer.headers["x-request-id"] == "mine-1234"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert not any(name.startswith("access-control") for name in answer.headers)
    for odd in ("x", "a b" * 5, "x" * 65, "<script>alert</script>"):
        assert client.get("/healthz", headers={"X-Request-Id": odd}).headers["x-request-id"] != odd


def test_health_is_answered_while_the_ledger_is_down(birds: Service, client: httpx.Client) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(birds.ledger), "engine", None, raising=False)
        assert client.get("/healthz").json() == {"status": "up"}


def test_a_storage_that_cannot_be_written_is_not_ready(birds: Service) -> None:
    with start_blocking_portal() as portal, pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.access", lambda *_: False)
        carrier = InProcess(create_app(birds.backend), portal)
        with httpx.Client(transport=carrier, base_url="http://service") as client:
            problem(client.get("/readyz"), 503, "not-ready")


def test_a_full_disk_is_told_and_nothing_is_lost(birds: Service, client: httpx.Client) -> None:
    def full(connection: Any, *_: Any) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # as many pages as there are

    def post(number: int) -> httpx.Response:
        body = {"name": f"{number:03}" * 40, "scopes": ["project:birds:read"] * 50}
        return client.post("/v1/tokens", json=body)

    event.listen(birds.ledger.engine, "checkout", full)
    made = 0
    while (answer := post(made)).status_code == 201:
        made += 1
        assert made < 500
    problem(answer, 503, "not-ready")
    assert int(answer.headers["Retry-After"]) > 0
    event.remove(birds.ledger.engine, "checkout", full)
    birds.ledger.engine.dispose()
    assert post(made).status_code == 201
    assert len(birds.ledger.tokens()) >= made + 1


def test_a_ledger_that_others_hold_is_not_ready() -> None:
    found = problems.as_problem(errors.BusyError("another process held the ledger"))
    assert found is not None
    assert found.kind.name == "not-ready"
