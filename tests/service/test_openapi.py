"""The service against its own OpenAPI document: requests are drawn from it, answers checked by it.

Names in paths are mostly those of things that exist, so that handlers answer and not only 404.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import schemathesis
from api_cases import Service, key, service
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.checks import CHECKS
from schemathesis.config import SchemathesisConfig

from rayal.service.app import create_app
from rayal.service.limits import Limits

SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
FEW, MANY = 2, 25
# what a JSON schema cannot say of a body, a query or a header: such a request is refused although
# the document allows it
UNSAYABLE = re.compile(
    r"cursor is not one of this list|does not fit 64 bits|larger than a double|nested deeper|"
    r"give one of uri, data, text and features|give either|a reason belongs to skip|"
    r"id is missing; only|NUL or a lone surrogate|rows asked for|are given for \d+ rows|"
    r"rows of one number are needed|"
    r"name the classes, or|has no classes; leave|it bounds a number|low must be below high|"
    r"is not among the \d+ classes|"  # of a label that is put
    r"should be a valid integer|"  # 163.0 is one to JSON Schema
    r"header:if-match|"  # schemathesis draws this header by a rule of its own, not by its pattern
    r"idempotency key '.*' was used for another request|send If-Match|has the key [0-9a-f]{16}, not"
)
few = schemathesis.pytest.from_fixture("described_for_few")
many = schemathesis.pytest.from_fixture("described_for_many")


@pytest.fixture(scope="module")
def described_for_few() -> Any:
    return _schema(coverage={"enabled": False})


@pytest.fixture(scope="module")
def described_for_many() -> Any:
    return _schema()


def _schema(**phases: Any) -> Any:
    config = SchemathesisConfig.from_dict({"phases": phases})
    described = create_app(cast(Any, SimpleNamespace(limits=Limits(), ledger=None)))
    made = schemathesis.openapi.from_asgi("/openapi.json", described, config=config)
    made.hook("map_path_parameters")(_named)
    return made


def _named(context: Any, path_parameters: dict[str, Any] | None) -> Any:
    """Name things that exist, in three of four paths."""
    return {name: _known(name, drawn) for name, drawn in (path_parameters or {}).items()}


def _known(name: str, drawn: Any) -> Any:
    known: dict[str, Any] = {
        "project": "birds",
        "item": key("row/00"),
        "annotator": "ann",
        "version": "r0000-abcd",
        "round": -1,
    }
    return drawn if len(str(drawn)) % 4 == 0 and name != "item" else known.get(name, drawn)


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    """Send what was drawn as one line."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


@pytest.fixture(autouse=True)
def node_id(request: pytest.FixtureRequest) -> None:
    """Give the test the attribute that schemathesis renames, and pytest 9.2 no longer has."""
    request.node._nodeid = request.node.nodeid


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("openapi")) as made:
        made.pictures()
        made.ledger.commit_model("birds", "r0000-abcd", 0, "abcd", {"labels": 8, "metrics": {}})
        made.ledger.add_job("birds", "round", {})
        yield made


def check(case: Case[Any], made: Service) -> None:
    """Make a drawn request as the administrator, and check the answer by all checks there are."""
    headers = {"Authorization": f"Bearer {made.tokens['admin']}"}
    answer = case.call(headers=headers, app=made.carrier.app)
    excluded: Any = []
    if answer.status_code in (409, 412, 422, 428) and UNSAYABLE.search(answer.text):
        excluded = CHECKS.get_by_names(["positive_data_acceptance"])
    case.validate_response(answer, headers=headers, excluded_checks=excluded)


@few.parametrize()
@settings(max_examples=FEW, **SETTINGS)
def test_few_requests(case: Case[Any], made: Service) -> None:
    check(case, made)


@pytest.mark.slow
@many.parametrize()
@settings(max_examples=MANY, **SETTINGS)
def test_many_requests(case: Case[Any], made: Service) -> None:
    check(case, made)
