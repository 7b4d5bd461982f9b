"""The API over a ledger in PostgreSQL, whose locks and whose order of texts are others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from api_cases import Service, key, problem, service
from postgres_server import PostgresServer

PROJECT = "/v1/projects/birds"


@pytest.fixture(scope="module")
def birds(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("postgresql")
    with service(root, database=postgres.database()) as made:
        yield made


def test_annotators_work_at_the_same_time_and_every_call_comes_twice(birds: Service) -> None:
    headers = {"Authorization": f"Bearer {birds.tokens['admin']}"}
    transport = httpx.ASGITransport(birds.carrier.app)

    async def call(client: httpx.AsyncClient, path: str, body: Any, sent: str) -> Any:
        again = {"Idempotency-Key": sent}
        one, two = await asyncio.gather(
            *(client.post(f"{PROJECT}/{path}", json=body, headers=again) for _ in range(2))
        )
        assert one.json() == two.json()
        return one.json()

    async def work(annotator: str) -> list[str]:
        async with httpx.AsyncClient(
            transport=transport, base_url="http://service", headers=headers
        ) as client:
            asked = {"annotator": annotator, "count": 2}
            leases = await call(client, "leases", asked, f"lease-{annotator}")
            labels = [
                {
                    "item": lease["item"]["id"],
                    "lease_id": lease["lease_id"],
                    "annotator": annotator,
                    "label": "cat",
                }
                for lease in leases["leases"]
            ]
            made = await call(client, "labels", {"labels": labels}, f"label-{annotator}")
            return [row["item"] for row in made["results"] if row["status"] == "accepted"]

    async def everybody() -> list[list[str]]:
        return await asyncio.gather(*(work(f"a{i}") for i in range(4)))

    found = [item for items in asyncio.run(everybody()) for item in items]
    assert sorted(found) == [f"row/{i:02d}" for i in range(8)]
    assert birds.ledger.labels_seq("birds") == 8


def test_lists_are_paged_in_the_order_of_the_database(birds: Service) -> None:
    names = ["row/20", "row/21", "row/22"]
    with birds.client() as client:
        for item in names:
            path = f"{PROJECT}/labels/{key(item)}/zoé"
            assert client.put(path, json={"label": "owl"}).json()["status"] == "accepted"
        for path, rows in (("items", 11), ("labels", 11), ("labels?view=resolved", 11)):
            seen: list[str] = []
            cursor = None
            while cursor is not None or not seen:
                joined = "&" if "?" in path else "?"
                more = f"{joined}limit=2" + (f"&cursor={cursor}" if cursor else "")
                page = client.get(f"{PROJECT}/{path}{more}").json()
                listed = page.get("items") or page["labels"]
                seen += [row.get("id") or row["item"] for row in listed]
                cursor = page["next"]
            assert len(seen) == len(set(seen)) == rows
        assert client.get(f"{PROJECT}/rounds").json()["rounds"][0]["labeled"] == 8
        assert "rayal_ready_items 0.0" in client.get("/metrics").text
        since = client.get(f"{PROJECT}/labels", params={"since": 2**63 - 1})
        assert since.json()["labels"] == []
        problem(client.get(f"{PROJECT}/rounds/999999"), 404, "not-found")
