from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_cases import Service, key, problem, service

from rayal.ledger import LabelEntry, Ledger

LEASES, LABELS = "/v1/projects/birds/leases", "/v1/projects/birds/labels"


@pytest.fixture
def birds(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give a service for requests that change nothing."""
    with service(tmp_path_factory.mktemp("shared")) as made:
        yield made


@pytest.fixture
def client(birds: Service) -> Iterator[httpx.Client]:
    with birds.client() as made:
        yield made


def lease(client: httpx.Client, annotator: str = "ada", count: int = 1, **more: Any) -> Any:
    answer = client.post(LEASES, json={"annotator": annotator, "count": count, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["leases"]


def label(client: httpx.Client, *labels: dict[str, Any], **headers: str) -> Any:
    answer = client.post(LABELS, json={"labels": list(labels)}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def said(item: str, value: Any = "cat", annotator: str = "ada", **more: Any) -> dict[str, Any]:
    return {"item": item, "label": value, "annotator": annotator, **more}


def test_work_is_leased_labeled_and_in_the_history(birds: Service, client: httpx.Client) -> None:
    first, second = lease(client, count=2)
    assert [first["item"]["id"], second["item"]["id"]] == ["row/00", "row/01"]
    assert first["item"]["key"] == key("row/00")
    assert (first["rank"], first["round"], first["score"]) == (1, -1, 1.0)
    assert first["suggestion"] is None
    assert client.get(first["item"]["content"], headers={"Authorization": ""}).status_code == 200
    results = label(
        client,
        said("row/00", lease_id=first["lease_id"], client_id="7", model_version_seen="r1"),
        {"item": "row/01", "annotator": "ada", "skip": True, "reason": "blurred"},
    )
    assert [r["status"] for r in results] == ["accepted", "skipped"]
    assert results[0]["key"] == key("row/00")
    page = client.get(LABELS).json()
    assert page["next"] is None
    assert page["last"] == 2
    one, two = page["labels"]
    assert (one["label"], one["lease_id"], one["label_id"]) == ("cat", first["lease_id"], 1)
    assert one["provenance"] == {"client_id": "7", "model_version_seen": "r1"}
    assert (two["label"], two["reason"], two["status"]) == (None, "blurred", "skipped")
    resolved = client.get(LABELS, params={"view": "resolved"}).json()["labels"]
    assert resolved == [{"item": "row/00", "key": key("row/00"), "label": "cat"}]


def test_two_annotators_never_get_the_same_item(client: httpx.Client) -> None:
    mine = lease(client, "ada", 5)
    others = lease(client, "bob", 5)
    assert [x["item"]["id"] for x in mine + others] == [f"row/{i:02d}" for i in range(8)]
    again = lease(client, "ada", 5)
    assert [x["lease_id"] for x in again] == [x["lease_id"] for x in mine]


@pytest.mark.parametrize("kind", ["held", "training", "nothing-offered", "finished"])
def test_where_nothing_is_ready_the_answer_says_why(
    birds: Service, client: httpx.Client, kind: str
) -> None:
    lease(client, "bob", 8)
    ledger = birds.ledger
    if kind == "training":
        ledger.add_job("birds", "round", {})
    if kind in ("nothing-offered", "finished"):
        ledger.label("birds", "bob", [LabelEntry(f"row/{i:02d}", "cat") for i in range(8)])
    if kind == "finished":
        settings = {**ledger.project("birds").settings, "rounds": 0}
        ledger.update_project("birds", settings, version=1)
        ledger.begin_round("birds", 0, snapshot=1, labels_seq=8, seeds={})
        ledger.finish_stage("birds", 0, "evaluate", {"metrics": {}}, seconds=0.0)
    answer = client.post(LEASES, json={"annotator": "ada", "count": 3})
    assert answer.status_code == 200
    assert answer.json() == {"leases": [], "reason": kind}
    assert int(answer.headers["retry-after"]) > 0


def test_a_lease_is_extended_given_back_and_gone(birds: Service, client: httpx.Client) -> None:
    (held,) = lease(client, ttl_s=60)
    path = f"{LEASES}/{held['lease_id']}"
    longer = client.post(f"{path}:extend", json={"ttl_s": 600}).json()
    assert longer["expires_at"] > held["expires_at"] + 500
    assert longer["lease_id"] == held["lease_id"]
    assert client.delete(path).status_code == 204
    assert client.delete(path).status_code == 204
    (taken,) = lease(client, "bob")
    assert taken["item"]["id"] == "row/00"
    problem(client.post(f"{path}:extend", json={"ttl_s": 600}), 410, "lease-expired")
    unknown = f"{LEASES}/{'0' * 32}"
    problem(client.delete(unknown), 404, "not-found")
    problem(client.post(f"{unknown}:extend", json={"ttl_s": 600}), 404, "not-found")


def test_a_late_label_is_kept(birds: Service, client: httpx.Client) -> None:
    now = birds.ledger.now()
    (mine,) = birds.ledger.lease("birds", "ada", 1, ttl=10, now=now - 100)
    (result,) = label(client, said(mine.item, lease_id=mine.lease))
    assert (result["status"], result["late"]) == ("accepted", True)


def test_a_bad_element_does_not_hold_up_the_others(client: httpx.Client) -> None:
    (held,) = lease(client, "bob")
    results = label(
        client,
        said("row/01"),
        said("nowhere"),
        said("row/02", "fish"),
        said("row/00", lease_id=held["lease_id"]),
        said("row/03", lease_id="0" * 32),
        said("row/04", 7),
        said("row/05", annotator="bob"),
        said("row/01"),
        said("row/01", "dog"),
    )
    assert [r["status"] for r in results] == [
        "accepted",
        "rejected",
        "rejected",
        "rejected",
        "rejected",
        "rejected",
        "accepted",
        "duplicate",
        "updated",
    ]
    assert "not in the project's pool" in results[1]["detail"]
    assert "cat, dog, owl" in results[2]["detail"]
    assert all(r["label_id"] is None and r["detail"] for r in results[1:6])
    assert [r["item"] for r in results][:2] == ["row/01", "nowhere"]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/labels"),
        ({"labels": []}, "/labels"),
        ({"labels": {}}, "/labels"),
        ({"labels": [said("a")], "more": 1}, "/more"),
        ({"labels": [{"item": "a", "label": "cat"}]}, "/labels/0/annotator"),
        ({"labels": [said("a"), said("a", annotator="x/y")]}, "/labels/1/annotator"),
        ({"labels": [said("a", None)]}, "/labels/0"),
        ({"labels": [said("a", skip=True)]}, "/labels/0"),
        ({"labels": [said("a", reason="why")]}, "/labels/0"),
        ({"labels": [said("a", True)]}, "/labels/0/label"),
        ({"labels": [said("a", ["cat"])]}, "/labels/0/label"),
        ({"labels": [said("")]}, "/labels/0/item"),
        ({"labels": [said("a", lease_id="../../etc/passwd")]}, "/labels/0/lease_id"),
        ({"labels": [said("a")] * 1001}, "/labels"),
        ([], ""),
    ],
)
def test_an_envelope_that_is_wrong_is_refused_whole(
    shared: Service, body: Any, pointer: str
) -> None:
    with shared.client() as client:
        document = problem(client.post(LABELS, json=body), 422, "validation")
    assert document["errors"][0]["pointer"].startswith(pointer)
    assert shared.ledger.labels_seq("birds") == 0


def test_relabeling_and_retracting(client: httpx.Client) -> None:
    path = f"{LABELS}/{key('row/00')}/ada%20l."
    assert client.put(path, json={"label": "cat"}).json()["status"] == "accepted"
    assert client.put(path, json={"label": "cat"}).json()["status"] == "duplicate"
    assert client.put(path, json={"label": "dog"}).json()["status"] == "updated"
    refused = problem(client.put(path, json={"label": "fish"}), 422, "validation")
    assert refused["errors"][0]["pointer"] == "/label" and "'fish'" in refused["detail"]
    rows = client.get(LABELS).json()["labels"]
    assert [(r["annotator"], r["label"], r["superseded_by"]) for r in rows] == [
        ("ada l.", "cat", 2),
        ("ada l.", "dog", None),
    ]
    assert client.delete(path).json()["status"] == "retracted"
    assert client.get(LABELS, params={"view": "resolved"}).json()["labels"] == []
    problem(client.put(f"{LABELS}/{'0' * 16}/ada", json={"label": "cat"}), 404, "not-found")
    problem(client.put(f"{LABELS}/xyz/ada", json={"label": "cat"}), 404, "not-found")


def test_the_history_is_read_in_pages_that_do_not_shift(client: httpx.Client) -> None:
    label(client, *(said(f"row/{i:02d}", annotator=f"a{i}") for i in range(7)))
    seen, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        answer = client.get(LABELS, params=params)
        page = answer.json()
        seen += [row["item"] for row in page["labels"]]
        cursor = page["next"]
        if cursor is None:
            break
        assert f"cursor={cursor}" in answer.headers["link"]
        assert 'rel="next"' in answer.headers["link"]
        if len(seen) == 2:  # rows that come meanwhile stand at the end
            label(client, said("row/30", annotator="late"))
    assert seen == [*(f"row/{i:02d}" for i in range(7)), "row/30"]
    after = client.get(LABELS, params={"since": 6}).json()
    assert [row["label_id"] for row in after["labels"]] == [7, 8]
    resolved: list[str] = []
    cursor = None
    while cursor is not None or not resolved:
        params = {"view": "resolved", "limit": "3"} | ({"cursor": cursor} if cursor else {})
        page = client.get(LABELS, params=params).json()
        resolved += [row["item"] for row in page["labels"]]
        cursor = page["next"]
    assert resolved == seen


def test_the_history_is_filtered_by_status(client: httpx.Client) -> None:
    label(client, said("row/00"), said("row/00", annotator="bob"), said("row/00", "dog"))
    for state, rows in {"accepted": [1], "surplus": [2], "updated": [3], "skipped": []}.items():
        page = client.get(LABELS, params={"state": state}).json()
        assert [row["label_id"] for row in page["labels"]] == rows
    document = problem(client.get(LABELS, params={"state": "odd"}), 422, "validation")
    assert document["errors"][0]["pointer"] == "query:state"


def test_a_cursor_of_another_list_is_refused(client: httpx.Client) -> None:
    label(client, said("row/00"), said("row/01"))
    cursor = client.get(LABELS, params={"limit": 1}).json()["next"]
    for params in ({"view": "resolved"}, {"state": "accepted"}):
        answer = client.get(LABELS, params={**params, "cursor": cursor})
        assert problem(answer, 422, "validation")["errors"][0]["pointer"] == "query:cursor"
    problem(client.get("/v1/projects/birds/items", params={"cursor": cursor}), 422, "validation")


def test_a_repeated_request_has_its_effect_once(birds: Service, client: httpx.Client) -> None:
    body = {"annotator": "ada", "count": 2}
    one, two = (client.post(LEASES, json=body, headers={"Idempotency-Key": "k"}) for _ in "ab")
    assert one.json() == two.json()
    assert "idempotency-replayed" not in one.headers
    assert two.headers["idempotency-replayed"] == "true"
    assert two.headers["content-type"] == "application/json"
    other = client.post(LEASES, json={**body, "count": 3}, headers={"Idempotency-Key": "k"})
    problem(other, 422, "idempotency-mismatch")
    # the same key for another path, or by another token, is another request
    results = label(client, said("row/00"), **{"Idempotency-Key": "k"})
    assert results[0]["status"] == "accepted"
    with birds.client(birds.token("project:birds:label")) as bob:
        answer = bob.post(
            LEASES, json={**body, "annotator": "bob"}, headers={"Idempotency-Key": "k"}
        )
        assert answer.status_code == 200
        assert "idempotency-replayed" not in answer.headers
    for wrong in ("", " ", "a b", "x" * 256):
        answer = client.post(LEASES, json=body, headers={"Idempotency-Key": wrong})
        assert (
            problem(answer, 422, "validation")["errors"][0]["pointer"] == "header:Idempotency-Key"
        )


def test_an_effect_that_fails_leaves_its_key_free(client: httpx.Client) -> None:
    path, headers = f"{LEASES}/{'0' * 32}:extend", {"Idempotency-Key": "k"}
    problem(client.post(path, json={"ttl_s": 5}, headers=headers), 404, "not-found")
    problem(client.post(path, json={"ttl_s": 6}, headers=headers), 404, "not-found")


def annotate(made: Service, *, twice: bool) -> dict[str, Any]:
    """Let two annotators work, every call made once or twice, and return where that leads."""
    number = 0

    def call(method: str, path: str, body: Any = None) -> Any:
        nonlocal number
        number += 1
        headers = {"Idempotency-Key": f"call-{number}"} if method == "POST" else {}
        answers = [
            sender.request(method, path, json=body, headers=headers) for _ in range(1 + twice)
        ]
        assert len({answer.status_code for answer in answers}) == 1
        return answers[-1].json() if answers[-1].content else None

    with made.client() as sender:
        for annotator in ("ada", "bob", "ada"):
            asked = {"annotator": annotator, "count": 3}
            held = call("POST", LEASES, asked)["leases"]
            sent = [
                said(x["item"]["id"], ("cat", "dog")[i % 2], annotator, lease_id=x["lease_id"])
                for i, x in enumerate(held[:2])
            ]
            call("POST", LABELS, {"labels": sent})
            call("POST", f"{LEASES}/{held[2]['lease_id']}:extend", {"ttl_s": 900})
            call("DELETE", f"{LEASES}/{held[2]['lease_id']}")
        call("PUT", f"{LABELS}/{key('row/00')}/ada", {"label": "owl"})
        call("DELETE", f"{LABELS}/{key('row/02')}/bob")
        call("POST", "/v1/tokens", {"name": "x", "scopes": ["admin"]})
        call("POST", "/v1/projects/birds/rounds:close", {"reason": "test"})
    ledger: Ledger = made.ledger
    kept = ("seq", "item", "annotator", "value", "status", "slot", "superseded_by")
    return {
        "labels": [[getattr(r, n) for n in kept] for r in ledger.labels("birds")],
        "resolved": ledger.resolved("birds"),
        "states": ledger.states("birds"),
        "tokens": len(ledger.tokens()),
        "jobs": [(j.kind, j.state) for j in ledger.jobs()],
    }


def test_a_client_that_makes_every_call_twice_ends_with_the_same_state(tmp_path: Path) -> None:
    states = []
    for twice in (False, True):
        with service(tmp_path / str(twice)) as made:
            states.append(annotate(made, twice=twice))
    assert states[0] == states[1]
    assert len(states[0]["labels"]) == 8
    assert states[0]["jobs"] == [("round", "queued")]


def test_annotators_at_the_same_time_never_share_an_item(birds: Service) -> None:
    headers = {"Authorization": f"Bearer {birds.tokens['admin']}"}
    transport = httpx.ASGITransport(birds.carrier.app)

    async def work(annotator: str) -> list[str]:
        async with httpx.AsyncClient(
            transport=transport, base_url="http://service", headers=headers
        ) as client:
            held = []
            for _ in range(3):
                answer = await client.post(LEASES, json={"annotator": annotator})
                for given in answer.json()["leases"]:
                    entry = said(given["item"]["id"], "cat", annotator, lease_id=given["lease_id"])
                    result = await client.post(LABELS, json={"labels": [entry]})
                    held.append(result.json()["results"][0])
            return [row["item"] for row in held if row["status"] == "accepted"]

    async def everybody() -> list[list[str]]:
        return await asyncio.gather(*(work(f"annotator {i}") for i in range(6)))

    found = [item for items in asyncio.run(everybody()) for item in items]
    assert sorted(found) == [f"row/{i:02d}" for i in range(8)]
    assert birds.ledger.counts("birds")["labeled"] == 8


def test_the_same_request_at_the_same_time_has_its_effect_once(birds: Service) -> None:
    headers = {"Authorization": f"Bearer {birds.tokens['admin']}", "Idempotency-Key": "k"}
    transport = httpx.ASGITransport(birds.carrier.app)
    body = {"labels": [said("row/00"), said("row/01", "dog"), said("row/00", "owl")]}

    async def everybody() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            transport=transport, base_url="http://service", headers=headers
        ) as client:
            return await asyncio.gather(*(client.post(LABELS, json=body) for _ in range(6)))

    answers = asyncio.run(everybody())
    assert len({answer.text for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 5
    assert birds.ledger.labels_seq("birds") == 3
