from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any

import httpx
import pytest
from api_cases import CLASSES, IMAGES, Service, problem, service

PROJECTS = "/v1/projects"
SLOW = 10.0  # seconds that a check waits to be let go
TABLE = {
    "name": "table",
    "pool": "rows",
    "task": {"kind": "table", "classes": CLASSES},
    "strategy": {"name": "margin"},
    "initial": {"count": 8},
    "batch_size": 8,
}


@pytest.fixture(scope="module")
def birds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(tmp_path_factory.mktemp("birds")) as made:
        yield made


@pytest.fixture
def client(birds: Service) -> Iterator[httpx.Client]:
    with birds.client() as made:
        yield made


def test_a_project_is_made_once(birds: Service, client: httpx.Client) -> None:
    answer = client.post(PROJECTS, json=IMAGES, headers={"Idempotency-Key": "make"})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == "/v1/projects/pictures"
    assert answer.headers["etag"] == '"1"'
    made = answer.json()
    assert (made["name"], made["version"], made["items"], made["ready"]) == ("pictures", 1, 0, 0)
    assert made["settings"]["strategy"]["name"] == "margin"
    assert made["settings"]["auto"]["start"] is False
    assert made["settings"]["labeling"]["labels_per_item"] == 1
    assert client.get("/v1/projects/pictures").json() == made
    again = client.post(PROJECTS, json=IMAGES, headers={"Idempotency-Key": "make"})
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == made
    anew = client.post(PROJECTS, json=IMAGES)
    assert (anew.status_code, anew.json()) == (201, made)
    other = client.post(PROJECTS, json={**IMAGES, "batch_size": 5})
    problem(other, 409, "conflict")
    problem(client.post(PROJECTS, json={**IMAGES, "name": "birds"}), 409, "conflict")


def test_a_project_on_a_pool_asks_for_its_first_round(birds: Service, client: httpx.Client) -> None:
    made = client.post(PROJECTS, json=TABLE).json()
    assert made["items"] == 40
    job = client.get(f"/v1/jobs/{made['job']}").json()
    assert (job["kind"], job["project"], job["state"]) == ("round", "table", "queued")
    unknown = client.post(PROJECTS, json={**TABLE, "name": "x", "pool": "nothing"})
    assert "rows" in problem(unknown, 404, "not-found")["detail"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"name": "../etc"}, "/name"),
        ({"name": ""}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"task": {"kind": "image"}}, "/task/classes"),
        ({"task": {**IMAGES["task"], "kind": "video"}}, "/task/kind"),
        ({"task": {**IMAGES["task"], "module": "os:system"}}, "/task"),
        ({"model": {"network": "os:system"}}, "/model/network"),
        ({"model": {"network": "../../weights.pt"}}, "/model/network"),
        ({"model": {"backbone": "torchvision:resnet50"}}, "/model"),
        ({"model": {"weights": "/etc/passwd"}}, "/model"),
        ({"learner": {"name": "os:system"}}, "/learner/name"),
        ({"strategy": "os:system"}, "/strategy/name"),
        ({"strategy": 7}, "/strategy"),
        ({"pool": {"path": "/etc", "more": 1}}, "/pool"),
        ({"storage": "/tmp"}, ""),
        ({"executor": "ray"}, ""),
        ({"batch_size": 0}, "/batch_size"),
        ({"batch_size": "4"}, "/batch_size"),
        ({"labeling": {"agreement": "most"}}, "/labeling/agreement"),
    ],
)
def test_what_a_project_cannot_be_is_refused(
    client: httpx.Client, change: dict[str, Any], pointer: str
) -> None:
    answer = client.post(PROJECTS, json={**IMAGES, "name": "refused", **change})
    document = problem(answer, 422, "validation")
    assert any(e["pointer"].startswith(pointer) for e in document["errors"]), document
    problem(client.get("/v1/projects/refused"), 404, "not-found")


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"model": {"network": "nothing"}}, 404, "not-found"),
        ({"strategy": "nothing"}, 404, "not-found"),
        ({"strategy": {"name": "margin", "nothing": 1}}, 422, "validation"),
        ({"learner": {"name": "nothing"}}, 404, "not-found"),
        ({"pool": {"path": "/etc"}}, 422, "validation"),
        ({"pool": {"path": "../../etc/passwd"}}, 422, "validation"),
        ({"task": {"kind": "image", "classes": CLASSES}}, 422, "validation"),
    ],
)
def test_what_is_not_registered_or_allowed_is_refused(
    client: httpx.Client, change: dict[str, Any], status: int, kind: str
) -> None:
    answer = client.post(PROJECTS, json={**IMAGES, "name": "refused", **change})
    problem(answer, status, kind)
    problem(client.get("/v1/projects/refused"), 404, "not-found")


def test_settings_change_under_a_precondition(client: httpx.Client) -> None:
    path = "/v1/projects/changing"
    seen = client.post(PROJECTS, json={**IMAGES, "name": "changing"}).headers["etag"]
    headers = {"If-Match": seen, "Idempotency-Key": "change"}
    answer, again = (client.patch(path, json={"batch_size": 9}, headers=headers) for _ in "ab")
    assert answer.status_code == 200, answer.text
    assert (again.json(), again.headers["etag"]) == (answer.json(), '"2"')
    assert again.headers["idempotency-replayed"] == "true"
    assert (answer.json()["settings"]["batch"], answer.headers["etag"]) == (9, '"2"')
    stale = client.patch(path, json={"batch_size": 7}, headers={"If-Match": seen})
    problem(stale, 412, "precondition-failed")
    problem(client.patch(path, json={"batch_size": 7}), 428, "precondition-required")
    now = {"If-Match": '"2"', "Content-Type": "application/merge-patch+json"}
    grown = {"task": {"classes": [*CLASSES, "emu"]}}
    assert client.patch(path, json=grown, headers=now).status_code == 200
    now["If-Match"] = '"3"'
    problem(client.patch(path, json={"task": {"classes": CLASSES}}, headers=now), 409, "conflict")
    refused: list[Any] = [{}, {"name": "other"}, {"pool": "rows"}, {"more": 1}, []]
    for body in refused:
        problem(client.patch(path, json=body, headers=now), 422, "validation")
    problem(client.patch(path, json={"batch_size": 0}, headers=now), 422, "validation")
    problem(
        client.patch(path, json={"batch_size": 1}, headers={"If-Match": "3"}), 422, "validation"
    )
    assert client.get(path).headers["etag"] == '"3"'


@contextmanager
def slow_checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Event, Event]]:
    """Let the check of settings tell that it has begun, and last until it is let go."""
    begun, let_go = Event(), Event()

    def check(*given: Any) -> None:
        begun.set()
        let_go.wait(SLOW)

    monkeypatch.setattr("rayal.service.creation.check_fit", check)
    yield begun, let_go
    let_go.set()


def change_in_thread(
    pool: ThreadPoolExecutor, birds: Service, path: str, body: Any, headers: dict[str, str]
) -> Future[httpx.Response]:
    def change() -> httpx.Response:
        with birds.client() as client:
            return client.patch(path, json=body, headers=headers)

    return pool.submit(change)


@pytest.mark.parametrize("keyed", [True, False])
def test_nobody_waits_while_settings_are_checked(
    birds: Service, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, *, keyed: bool
) -> None:
    path = f"/v1/projects/slow-{keyed}"
    client.post(PROJECTS, json={**IMAGES, "name": path.rpartition("/")[2]})
    headers = {"If-Match": '"1"'} | ({"Idempotency-Key": "slow"} if keyed else {})
    with ThreadPoolExecutor(1) as pool, slow_checks(monkeypatch) as (begun, let_go):
        changing = change_in_thread(pool, birds, path, {"batch_size": 9}, headers)
        assert begun.wait(SLOW)
        asked = {"annotator": f"ann-{keyed}", "count": 1}
        leases = client.post("/v1/projects/birds/leases", json=asked).json()["leases"]
        (lease,) = leases
        label = {"item": lease["item"]["id"], "label": "cat", "annotator": f"ann-{keyed}"}
        told = client.post("/v1/projects/birds/labels", json={"labels": [label]})
        assert told.json()["results"][0]["status"] == "accepted"
        assert not changing.done()  # all of that while the check went on
        let_go.set()
        assert changing.result().status_code == 200
    assert client.get(path).headers["etag"] == '"2"'


def test_what_changed_during_the_check_is_not_overwritten(
    birds: Service, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/v1/projects/raced"
    client.post(PROJECTS, json={**IMAGES, "name": "raced"})
    headers = {"If-Match": '"1"', "Idempotency-Key": "raced"}
    with ThreadPoolExecutor(2) as pool, slow_checks(monkeypatch) as (begun, let_go):
        first = change_in_thread(pool, birds, path, {"batch_size": 9}, headers)
        assert begun.wait(SLOW)
        row = birds.ledger.project("raced")
        birds.ledger.update_project("raced", {**row.settings, "batch": 7}, version=1)
        let_go.set()
        problem(first.result(), 412, "precondition-failed")
    assert client.get(path).json()["settings"]["batch"] == 7


def test_a_round_that_begins_during_the_check_fixes_the_model(
    birds: Service, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/v1/projects/begun"
    client.post(PROJECTS, json={**IMAGES, "name": "begun"})
    with ThreadPoolExecutor(1) as pool, slow_checks(monkeypatch) as (begun, let_go):
        headers = {"If-Match": '"1"', "Idempotency-Key": "begun"}
        first = change_in_thread(pool, birds, path, {"seeds": 5}, headers)
        assert begun.wait(SLOW)
        birds.ledger.begin_round("begun", 0, snapshot=1, labels_seq=0, seeds={})
        let_go.set()
        assert "seeds" in problem(first.result(), 409, "conflict")["detail"]
    assert client.get(path).headers["etag"] == '"1"'


def test_a_change_that_is_sent_again_during_its_check_is_answered_alike(
    birds: Service, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/v1/projects/patient"
    client.post(PROJECTS, json={**IMAGES, "name": "patient"})
    headers = {"If-Match": '"1"', "Idempotency-Key": "patient"}
    with ThreadPoolExecutor(2) as pool, slow_checks(monkeypatch) as (begun, let_go):
        first = change_in_thread(pool, birds, path, {"batch_size": 9}, headers)
        assert begun.wait(SLOW)
        begun.clear()
        again = change_in_thread(pool, birds, path, {"batch_size": 9}, headers)
        assert begun.wait(SLOW)
        let_go.set()
        one, other = first.result(), again.result()
    assert (one.status_code, one.json()) == (200, other.json())
    replays = [answer.headers.get("idempotency-replayed") for answer in (one, other)]
    assert sorted(replays, key=str) == [None, "true"]
    assert client.get(path).headers["etag"] == '"2"'


def test_a_project_that_was_not_made_here_is_not_changed_here(client: httpx.Client) -> None:
    headers = {"If-Match": '"1"'}
    answer = client.patch("/v1/projects/birds", json={"batch_size": 7}, headers=headers)
    problem(answer, 409, "conflict")


def test_a_deleted_project_is_unknown_and_its_name_is_taken(client: httpx.Client) -> None:
    body = {**IMAGES, "name": "going"}
    assert client.post(PROJECTS, json=body).status_code == 201
    assert client.delete("/v1/projects/going").status_code == 204
    for path in ("", "/items", "/labels", "/rounds", "/models", "/metrics"):
        problem(client.get(f"/v1/projects/going{path}"), 404, "not-found")
    problem(client.delete("/v1/projects/going"), 404, "not-found")
    problem(client.post(PROJECTS, json=body), 409, "conflict")


def test_projects_are_listed_to_those_who_may_read_them(
    birds: Service, client: httpx.Client
) -> None:
    for name in ("b1", "b2", "b3"):
        birds.ledger.create_project(name, "rows", birds.ledger.project("birds").settings)
    everything = [p["name"] for p in client.get(PROJECTS).json()["projects"]]
    assert everything == sorted(everything)
    seen: list[str] = []
    cursor = None
    while cursor is not None or not seen:
        params = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = client.get(PROJECTS, params=params).json()
        seen += [p["name"] for p in page["projects"]]
        cursor = page["next"]
    assert seen == everything
    token = birds.token("project:b1:read", "project:b3:label")
    with birds.client(token) as some:
        assert [p["name"] for p in some.get(PROJECTS).json()["projects"]] == ["b1", "b3"]
