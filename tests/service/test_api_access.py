from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_cases import Service, key, problem, service

from rayal.service.app import create_app
from rayal.service.auth import hash_of
from rayal.service.routes import SECTIONS
from rayal.service.routing import Operation, ScopedRoute, Section

OPERATIONS = [operation for section in SECTIONS for operation in section.operations]
VALUES = {
    "project": "birds",
    "item": key("row/00"),
    "lease": "0" * 32,
    "annotator": "ada",
    "round": "0",
    "version": "r0000-0000",
    "job": "0" * 32,
    "token": "0" * 12,
}
SCOPES = {
    "other": "project:cats:write",
    **{level: f"project:birds:{level}" for level in ("read", "label", "write")},
    "admin": "admin",
}


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("birds")) as made:
        yield made


def path_of(operation: Operation, **values: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda m: {**VALUES, **values}[m[1]], operation.path)


def named(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


def send(client: httpx.Client, operation: Operation, **values: str) -> httpx.Response:
    return client.request(operation.method, path_of(operation, **values))


def test_every_route_of_the_application_has_a_scope(birds: Service) -> None:
    routes = [
        r for r in create_app(birds.backend).routes if getattr(r, "path", "") != "/openapi.json"
    ]
    assert all(isinstance(route, ScopedRoute) for route in routes)
    assert len(routes) == len(OPERATIONS)
    open_routes = [named(o) for o in OPERATIONS if o.need.level == "none"]
    assert open_routes == ["GET /healthz", "GET /readyz", "GET /docs"]


def test_a_route_without_a_scope_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="need"):
        Section("x").route("GET", "/x")  # type: ignore[call-arg]


def test_no_route_but_health_answers_without_a_token(
    birds: Service, subtests: pytest.Subtests
) -> None:
    for operation in OPERATIONS:
        with subtests.test(named(operation)), birds.client("") as client:
            answer = send(client, operation)
            if operation.need.level == "none":
                assert answer.status_code == 200
                continue
            problem(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"].startswith('Bearer realm="rayal"')


def test_each_scope_opens_what_it_should(birds: Service, subtests: pytest.Subtests) -> None:
    for operation in OPERATIONS:
        with subtests.test(named(operation)):
            check_scopes(birds, operation)


def check_scopes(birds: Service, operation: Operation) -> None:
    """Ask for an operation with a token of every scope."""
    job = birds.ledger.add_job("birds", "test", {}).job
    allowed = {
        "none": ("other", "read", "label", "write", "admin"),
        "any": ("other", "read", "label", "write", "admin"),
        "read": ("read", "label", "write", "admin"),
        "label": ("label", "write", "admin"),
        "write": ("write", "admin"),
        "admin": ("admin",),
    }[operation.need.level]
    for name, scope in SCOPES.items():
        if name not in birds.tokens:
            birds.tokens[name] = birds.token(scope)
        with birds.client(birds.tokens[name]) as client:
            # a body of no known type: what is let through is refused behind the check of scopes
            answer = client.request(
                operation.method,
                path_of(operation, job=job),
                params={"unknown": "1"},
            )
        if name in allowed:
            assert answer.status_code not in (401, 403), (name, answer.text)
        else:
            document = problem(answer, 403, "forbidden")
            assert scope in document["detail"]
            assert "insufficient_scope" in answer.headers["www-authenticate"]


@pytest.mark.parametrize(
    "header",
    [
        "Basic dXNlcjpwYXNz",
        "Bearer",
        "Bearer ",
        "Bearer ryl_short",
        "ryl_" + "a" * 43,
        "Bearer ryl_" + "a" * 44,
        "Bearer ryl_" + "!" * 43,
        "Bearer ryl_" + "a" * 43,
    ],
)
def test_a_header_without_a_known_token_is_refused(birds: Service, header: str) -> None:
    with birds.client("") as client:
        answer = client.get("/v1/projects", headers={"Authorization": header})
    problem(answer, 401, "unauthenticated")
    assert "invalid_token" in answer.headers["www-authenticate"]


def test_an_expired_and_a_revoked_token_are_refused(birds: Service) -> None:
    until = birds.clock.now + 10
    text = birds.token("admin", expires=until)
    with birds.client(text) as client:
        assert client.get("/v1/projects").status_code == 200
        birds.clock.now = until
        assert "expired" in problem(client.get("/v1/projects"), 401, "unauthenticated")["detail"]
        birds.clock.now = until - 1
        row = birds.ledger.token_by_hash(hash_of(text))
        assert row is not None
        assert client.delete(f"/v1/tokens/{row.token_id}").status_code == 204
        assert "revoked" in problem(client.get("/v1/projects"), 401, "unauthenticated")["detail"]


def test_tokens_are_shown_once(birds: Service) -> None:
    body = {"name": "tool", "scopes": ["project:birds:label", "project:birds:label"], "ttl_s": 60}
    with birds.client() as client:
        answer = client.post("/v1/tokens", json=body)
        assert answer.status_code == 201
        made = answer.json()
        text = made.pop("token")
        assert made["scopes"] == ["project:birds:label"]
        assert made["expires_at"] == birds.clock.now + 60
        assert answer.headers["location"] == f"/v1/tokens/{made['token_id']}"
        assert client.get(answer.headers["location"]).json() == made
        listed = client.get("/v1/tokens")
        assert made in listed.json()["tokens"]
        assert text not in listed.text
        assert hash_of(text) not in listed.text
        problem(client.get("/v1/tokens/unknown"), 404, "not-found")
        problem(client.delete("/v1/tokens/unknown"), 404, "not-found")
    with birds.client(text) as client:
        assert client.get("/v1/projects").json()["projects"][0]["name"] == "birds"


def test_a_repeated_request_for_a_token_makes_one_and_keeps_no_secret(birds: Service) -> None:
    body = {"name": "once", "scopes": ["admin"]}
    with birds.client() as client:
        first, second = (
            client.post("/v1/tokens", json=body, headers={"Idempotency-Key": "once"})
            for _ in range(2)
        )
    assert first.json()["token"].startswith("ryl_")
    assert second.json() == {**first.json(), "token": None}
    assert (second.status_code, second.headers["idempotency-replayed"]) == (201, "true")
    assert sum(row.name == "once" for row in birds.ledger.tokens()) == 1
    files = [p for p in Path(birds.ledger.root).rglob("*") if p.is_file()]
    secret = first.json()["token"].encode()
    assert not any(secret in p.read_bytes() for p in files)


@pytest.mark.parametrize(
    "change",
    [
        {"scopes": []},
        {"scopes": ["root"]},
        {"scopes": ["project:birds:own"]},
        {"scopes": "admin"},
        {"name": ""},
        {"name": "a\nb"},
        {"name": 1},
        {"ttl_s": 0},
        {"ttl_s": -1},
        {"ttl_s": "60"},
        {"more": 1},
    ],
)
def test_a_token_that_cannot_be_is_refused(birds: Service, change: dict[str, Any]) -> None:
    body = {"name": "tool", "scopes": ["admin"], **change}
    with birds.client() as client:
        document = problem(client.post("/v1/tokens", json=body), 422, "validation")
    assert document["errors"][0]["pointer"].startswith("/" + next(iter(change)))


def test_a_project_s_name_tells_nothing_to_other_tokens(birds: Service) -> None:
    with birds.client(birds.token("project:cats:read")) as client:
        there = client.get("/v1/projects/birds").json()
        gone = client.get("/v1/projects/nothing").json()
        assert client.get("/v1/projects").json()["projects"] == []
    same = ("type", "status", "title")
    assert [there[n] for n in same] == [gone[n] for n in same]
    with birds.client(birds.token("project:cats:read")) as client:
        document = problem(client.get("/v1/projects/cats"), 404, "not-found")
    assert "birds" not in document["detail"]
