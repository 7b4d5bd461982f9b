"""The service against its own OpenAPI document: requests are drawn from it, answers checked by it.

Names in paths are mostly those of things that exist, so that handlers answer and not only 404.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import schemathesis
from api_cases import Service, key, service
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.config import SchemathesisConfig

from rayal.service.app import create_app
from rayal.service.limits import Limits

SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
CHECKS: dict[str, Any] = {}
_described = create_app(cast(Any, SimpleNamespace(limits=Limits(), ledger=None)))
schema = schemathesis.openapi.from_asgi(
    "/openapi.json", _described, config=SchemathesisConfig.from_dict({"checks": CHECKS})
)
FEW, MANY = 3, 25


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("openapi")) as made:
        made.pictures()
        made.ledger.commit_model("birds", "r0000-abcd", 0, "abcd", {"labels": 8, "metrics": {}})
        made.ledger.add_job("birds", "round", {})
        yield made


@schema.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> Any:
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


def check(case: Case, made: Service) -> None:
    """Make a drawn request as the administrator, and check the answer by all checks there are."""
    headers = {"Authorization": f"Bearer {made.tokens['admin']}"}
    case.call_and_validate(headers=headers, app=made.carrier.app)


@schema.parametrize()
@settings(max_examples=FEW, **SETTINGS)
def test_few_requests(case: Case, made: Service) -> None:
    check(case, made)


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=MANY, **SETTINGS)
def test_many_requests(case: Case, made: Service) -> None:
    check(case, made)
