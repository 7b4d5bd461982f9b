"""The service against its own OpenAPI document: requests are drawn from it, answers checked by it.

Names in paths are mostly those of things that exist, so that handlers answer and not only 404.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from api_cases import IMAGES, Service, key, png, service
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.config import SchemathesisConfig

from rayal.service.app import create_app
from rayal.service.limits import Limits

SEED = 20
SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}
CHECKS: dict[str, Any] = {}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("openapi"), Limits(rate=1e6, burst=10**6)) as made:
        with made.client() as client:
            client.post("/v1/projects", json=IMAGES)
            item = {"id": "a.png", "data": png(3)}
            client.post("/v1/projects/pictures/items", json={"items": [item]})
        made.ledger.commit_model("birds", "r0000-abcd", 0, "abcd", {"labels": 8, "metrics": {}})
        yield made


@pytest.fixture(scope="module")
def document(made: Service) -> Any:
    config = SchemathesisConfig.from_dict(
        {"headers": {"Authorization": f"Bearer {made.tokens['admin']}"}, "checks": CHECKS}
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(made.backend), config=config)

    @schema.hook
    def map_path_parameters(context: Any, path_parameters: dict[str, Any]) -> dict[str, Any]:
        return {name: _known(made, name, value) for name, value in (path_parameters or {}).items()}

    return schema


def _known(made: Service, name: str, drawn: Any) -> Any:
    """Return the name of something that exists for three of four drawn ones."""
    if len(str(drawn)) % 4 == 0 and name != "item":
        return drawn
    jobs = [job.job for job in made.ledger.jobs(limit=1)]
    known = {
        "project": "birds",
        "item": key("row/00"),
        "annotator": "ann",
        "version": "r0000-abcd",
        "job": jobs[0] if jobs else drawn,
        "round": -1,
    }
    return known.get(name, drawn)


schema = schemathesis.pytest.from_fixture("document")


@schema.parametrize()
@settings(max_examples=3, **SETTINGS)
def test_few_requests(case: Case) -> None:
    case.call_and_validate()


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=25, **SETTINGS)
def test_many_requests(case: Case) -> None:
    case.call_and_validate()
