from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from api_cases import Service, service

from rayal.service.openapi import document, page
from rayal.service.problems import KINDS
from rayal.service.routes import SECTIONS

ID = re.compile(r"[a-z]+(_[a-z]+)+")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("document")) as made:
        yield made


@pytest.fixture(scope="module")
def described(made: Service) -> dict[str, Any]:
    with made.client("") as client:
        answer: dict[str, Any] = client.get("/openapi.json").json()
    assert answer == document(made.carrier.app)
    return answer


def operations(described: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def test_every_operation_is_described(described: dict[str, Any]) -> None:
    assert described["openapi"] == "3.1.0"
    found = list(operations(described))
    known = [(o.method.lower(), o.path) for s in SECTIONS for o in s.operations]
    assert sorted((m, p) for m, p, _ in found) == sorted(known)
    names = [operation["operationId"] for _, _, operation in found]
    assert len(set(names)) == len(names)
    for _, path, operation in found:
        assert ID.fullmatch(operation["operationId"])
        assert operation["summary"]
        assert len(operation["tags"]) == 1
        for parameter in operation.get("parameters", []):
            assert {"type": "null"} not in parameter["schema"].get("anyOf", [])
            if parameter["in"] == "path":
                assert "pattern" in parameter["schema"] or parameter["name"] == "round"
        assert set(re.findall(r"\{(\w+)\}", path)) == {
            p["name"] for p in operation.get("parameters", []) if p["in"] == "path"
        }


def test_every_reference_leads_somewhere(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    names = {v["$ref"] for v in walk(described) if "$ref" in v}
    assert {n.removeprefix("#/components/schemas/") for n in names} <= set(schemas)
    assert "HTTPValidationError" not in schemas


def test_every_status_is_described_and_errors_are_problems(described: dict[str, Any]) -> None:
    known = {str(kind.status) for kind in KINDS.values()} - {"405"}
    seen = set()
    for method, path, operation in operations(described):
        responses = operation["responses"]
        for status, response in responses.items():
            if status >= "400":
                assert list(response["content"]) == ["application/problem+json"], (method, path)
                seen.add(status)
        wanted = {"422", "429", "500", "503"}
        if "security" in operation:
            assert operation["security"][0] == {"bearer": []}
            wanted |= {"401", "403"}
        if "{" in path:
            wanted |= {"404"}
        if "requestBody" in operation:
            wanted |= {"413", "415"}
        assert wanted <= set(responses), (method, path)
        assert any(status < "300" for status in responses)
    assert seen == known


def test_bodies_have_examples_that_are_taken(described: dict[str, Any], made: Service) -> None:
    schemas = described["components"]["schemas"]
    for _, path, operation in operations(described):
        content = operation.get("requestBody", {}).get("content", {})
        reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
        body = schemas.get(reference.rpartition("/")[2], {})
        if body:
            assert body["additionalProperties"] is False, path
    shown = [s["examples"][0] for s in schemas.values() if "examples" in s]
    assert len(shown) > 8
    with made.client() as client:
        query = client.post("/v1/query", json=schemas["QueryBody"]["examples"][0])
        lease = schemas["LeaseBody"]["examples"][0]
        assert query.status_code == 200
        assert client.post("/v1/projects/birds/leases", json=lease).status_code == 200
        token = client.post("/v1/tokens", json=schemas["TokenBody"]["examples"][0])
        assert token.status_code == 201


def test_the_page_shows_every_operation_and_loads_nothing(
    described: dict[str, Any], made: Service
) -> None:
    with made.client("") as client:
        answer = client.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for method, path, operation in operations(described):
        assert f"{method.upper()} {path}<" in answer.text
        assert f'id="{operation["operationId"]}"' in answer.text
    for loads in ("<script", "<link", "<img", "src=", "http://", "https://", "@import", "url("):
        assert loads not in answer.text
    HTMLParser().feed(answer.text)


def test_what_the_document_says_is_escaped() -> None:
    operation = {
        "tags": ["x"],
        "operationId": "x",
        "description": "<script>alert(1)</script>",
        "parameters": [{"name": "<b>", "in": "query", "description": "<b>"}],
        "responses": {"200": {"description": "<b>"}},
    }
    made = {
        "info": {"title": "<b>", "version": "1", "description": "<b>"},
        "paths": {"/<b>": {"get": operation}},
        "components": {"schemas": {}},
    }
    assert "<script>" not in page(made)
    assert "<b>" not in page(made)
