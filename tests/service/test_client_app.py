"""The client against the service itself: every route once, and every call made twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import httpx
import pytest
from api_cases import CLASSES, Service, offer, png, service

import rayal
from rayal.client import item_key
from rayal.ledger import LeaseRow
from rayal.service.limits import Limits
from rayal.service.pools import pool_of
from rayal.types import id_keys

PRECONDITION = "precondition-failed"
IMAGES: dict[str, Any] = {
    "name": "new",
    "task": {"kind": "image", "classes": CLASSES, "size": [8, 8], "channels": 1},
    "strategy": "margin",
    "initial": {"count": 4},
    "batch_size": 4,
    "auto": {"start": False},
}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path) as made:
        yield made


class Repeating(httpx.BaseTransport):
    """Carries every request twice.

    Args:
        inner: what carries it.
        lossy: lose the first answer, so that the client tries again; else both requests are sent
            at once and the second answer is given.
    """

    def __init__(self, inner: httpx.BaseTransport, *, lossy: bool) -> None:
        self._inner, self._lossy = inner, lossy
        self._seen: set[int] = set()
        self.statuses: list[tuple[str, str, int, int]] = []
        self._last: dict[tuple[str, str, bytes], int] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        named = (request.method, request.url.path, request.content)
        if self._lossy and named in self._last:
            answer = self._sent(request)
            self.statuses.append((*named[:2], self._last.pop(named), answer.status_code))
            return answer
        first = self._sent(request)
        if self._lossy:
            self._last[named] = first.status_code
            raise httpx.ReadError("the answer was lost")
        second = self._sent(request)
        self.statuses.append((*named[:2], first.status_code, second.status_code))
        return second

    def _sent(self, request: httpx.Request) -> httpx.Response:
        copy = httpx.Request(
            request.method, request.url, headers=request.headers, content=request.content
        )
        answer = self._inner.handle_request(copy)
        answer.read()
        return answer


def client(made: Service, wrap: Callable[[Any], Any] = lambda inner: inner) -> rayal.Client:
    inner = made.carrier
    return rayal.Client("http://service", made.tokens["admin"], transport=wrap(inner))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayal.client.connection.pause", lambda tries: 0.0)


def story(api: rayal.Client) -> dict[str, Any]:
    """Do everything that changes something; return what is not in the ledger."""
    api.create_project(IMAGES)
    pushed = api.push("new", [{"id": f"i{n}", "data": png(10 * n)} for n in range(4)])
    put = api.put_item("new", {"id": "i9", "data": png(200)})
    leases = api.lease("birds", "ann", 5)
    items = [lease["item"]["id"] for lease in leases]
    api.extend("birds", leases[0]["lease_id"], 100.0)
    api.give_back("birds", leases[4]["lease_id"])
    held = {lease["item"]["id"]: lease["lease_id"] for lease in leases}
    first = api.label("birds", "ann", {items[0]: "cat", items[1]: "dog"}, leases=held)
    api.skip("birds", "ann", items[2], reason="blurred", lease=leases[2]["lease_id"])
    api.relabel("birds", "ann", items[0], "owl")
    api.retract("birds", "ann", items[1])
    api.label("birds", "bob", {items[1]: "owl", "row/39": "cat"})
    bad = api.label("birds", "ann", {"row/77": "cat", items[3]: "cow"})
    api.change_project("new", {"batch_size": 3}, version=1)
    api.close_round("birds", reason="enough")
    token = api.create_token("tool", ["project:birds:label"])
    api.revoke_token(token["token_id"])
    api.create_project({**IMAGES, "name": "old"})
    with suppress(rayal.ApiError):  # gone already, where the second of two answers is given
        api.delete_project("old")
    return {
        "pushed": (pushed, put),
        "items": items,
        "first": [row["status"] for row in first],
        "bad": [(row["status"], row["detail"]) for row in bad],
    }


def state(made: Service) -> dict[str, Any]:
    """Return what the ledger holds, but for times and random names."""
    ledger = made.ledger
    history = [
        (row.item, row.annotator, row.value, row.status, row.slot, row.late, row.superseded_by)
        for row in ledger.labels("birds")
    ]
    stories = [row for item in ledger.states("birds") for row in ledger.why("birds", item)]
    held = [row for row in stories if isinstance(row, LeaseRow)]
    return {
        "projects": ledger.projects(),
        "history": history,
        "states": ledger.states("birds"),
        "leases": sorted((row.item, row.annotator, row.state) for row in held),
        "new": sorted(pool_of(ledger, "new", ()).ids("pool")),
        "jobs": [(job.project, job.kind, job.state) for job in ledger.jobs()],
        "tokens": [(row.name, row.revoked is not None) for row in ledger.tokens()],
        "version": ledger.project("new").version,
        "batch": ledger.project("new").settings["batch"],
    }


@pytest.mark.parametrize("lossy", [True, False])
def test_calls_made_twice_end_in_the_same_state(lossy: bool, tmp_path: Path) -> None:
    told, states = [], []
    transports: list[Repeating] = []

    def repeating(inner: httpx.BaseTransport) -> Repeating:
        transports.append(Repeating(inner, lossy=lossy))
        return transports[-1]

    for name, wrap in (("once", lambda inner: inner), ("twice", repeating)):
        with service(tmp_path / name) as made, client(made, wrap) as api:
            told.append(story(api))
            states.append(state(made))
    assert told[0]["items"] == told[1]["items"] and told[0]["first"] == ["accepted", "accepted"]
    assert told[0]["bad"] == told[1]["bad"]
    assert states[0] == states[1]
    assert len(transports[0].statuses) >= 18
    odd = {row for row in transports[0].statuses if row[2] != row[3]}
    assert {row[0] for row in odd} <= {"DELETE"}  # gone already


def test_every_read(made: Service) -> None:
    with client(made) as api:
        api.create_project(IMAGES)
        assert [p["name"] for p in api.projects(limit=1)] == ["birds", "new"]
        info = api.project("birds")
        assert (info["items"], info["ready"], info["counts"]["offered"]) == (40, 8, 8)
        leases = api.lease("birds", "ann", 2)
        api.label("birds", "ann", {leases[0]["item"]["id"]: "cat"})
        assert [row["id"] for row in api.items("birds", state="labeled", limit=1)] == ["row/00"]
        assert api.item("birds", "row/01")["state"] == "leased"
        assert api.item("birds", "row/30")["key"] == item_key("row/30")
        ranked = list(api.ranked("birds", count=2))
        assert [row["id"] for row in ranked] == [f"row/{n:02d}" for n in range(2, 8)]
        assert api.why("birds", "row/00")["selections"][0]["rank"] == 1
        assert [row["label"] for row in api.labels("birds", limit=1)] == ["cat"]
        assert [row["item"] for row in api.resolved("birds")] == ["row/00"]
        assert [row["n"] for row in api.rounds("birds")] == [-1]
        assert api.round("birds", -1)["stage"] == "label"
        assert api.metrics("birds")["annotators"] == {"ann": 1}
        assert api.models("birds") == []
        job = api.close_round("birds")
        assert [row["job"] for row in api.jobs("birds", limit=1)] == [job["job"]]
        assert api.job(job["job"])["state"] == "queued"
        assert api.cancel(job["job"])["state"] == "cancelled"
        assert api.retry(job["job"])["state"] == "queued"
        assert api.lease_or_reason("new", "ann")["reason"] == "nothing-offered"
        token = api.create_token("tool", ["project:birds:read"], ttl=60.0)
        assert [row["name"] for row in api.tokens()] == ["test", "tool"]
        assert api.token(token["token_id"])["scopes"] == ["project:birds:read"]
        api.forget("birds", "row/01")
        with pytest.raises(rayal.ApiError, match=r"404 not-found: .*forgotten"):
            api.item("birds", "row/01")
        assert api.ready()


def test_contents_come_back(made: Service) -> None:
    with client(made) as api:
        api.create_project(IMAGES)
        api.push("new", [{"id": "a/1.png", "data": png(7)}])
        offer(made.ledger, ["a/1.png"], "new")
        content = api.content("new", "a/1.png")
        assert content.startswith(b"\x89PNG")
        assert api.fetch(api.lease("new", "ann")[0]["item"]["content"]) == content


def test_a_file_of_json_lines(made: Service, tmp_path: Path) -> None:
    file = tmp_path / "items.jsonl"
    file.write_text(f'{{"id": "a", "data": "{png(1)}"}}\nnothing\n')
    with client(made) as api:
        api.create_project(IMAGES)
        pushed = api.push_file("new", file)
    assert pushed["created"] == 1 and len(pushed["rejected"]) == 1


def test_the_stateless_query_is_select(made: Service) -> None:
    rows = [[-0.7, -0.69], [-0.1, -2.4], [-0.5, -0.95]]
    with client(made) as api:
        picks = api.query("margin", {"log_probs": rows}, 2, ids=["x", "y", "z"])
    here = rayal.select("margin", {"log_probs": rows}, 2, ids=["x", "y", "z"])
    assert [row["id"] for row in picks["picks"]] == list(here.ids) == ["x", "z"]
    assert [row["score"] for row in picks["picks"]] == list(here.scores)


def test_predictions(made: Service) -> None:
    with client(made) as api:
        with pytest.raises(rayal.ApiError, match="409 conflict") as caught:
            api.predict("birds", items=["row/00"])
        assert caught.value.type == "conflict"
        made.ledger.commit_model("birds", "r0000-abcd", 0, "abcd", {"labels": 8, "metrics": {}})
        said = api.predict("birds", items=["row/00", "row/01"])
        assert [row["item"] for row in said] == ["row/00", "row/01"]
        assert said[0]["label"] in CLASSES
        assert api.model("birds", "r0000-abcd")["active"]
        assert api.activate("birds", "r0000-abcd")["version"] == "r0000-abcd"


@pytest.mark.parametrize(
    ("call", "status", "kind"),
    [
        (lambda api: api.project("nothing"), 404, "not-found"),
        (lambda api: api.create_project({"name": "x"}), 422, "validation"),
        (lambda api: api.create_project({**IMAGES, "name": "birds"}), 409, "conflict"),
        (lambda api: api.extend("birds", "0" * 32, 10.0), 404, "not-found"),
        (lambda api: api.change_project("new", {"rounds": 1}, version=9), 412, PRECONDITION),
        (lambda api: api.label("birds", "ann", {"x" * (1 << 20): "cat"}), 413, "too-large"),
        (lambda api: api.lease("birds", "ann", 101), 422, "validation"),
    ],
)  # fmt: skip
def test_refusals(
    made: Service, call: Callable[[rayal.Client], Any], status: int, kind: str
) -> None:
    with client(made) as api:
        api.create_project(IMAGES)
        with pytest.raises(rayal.ApiError) as caught:
            call(api)
    assert (caught.value.status, caught.value.type) == (status, kind)
    assert caught.value.detail and caught.value.request_id


def test_a_lease_that_another_has_by_now(made: Service) -> None:
    with client(made) as api:
        first = api.lease("birds", "ann", ttl=0.01)[0]
        time.sleep(0.05)
        assert api.lease("birds", "bob")[0]["item"] == first["item"] | {"content": ANY}
        with pytest.raises(rayal.ApiError) as caught:
            api.extend("birds", first["lease_id"], 10.0)
        assert (caught.value.status, caught.value.type) == (410, "lease-expired")
        late = api.label("birds", "ann", {first["item"]["id"]: "cat"})
        assert late[0]["status"] == "accepted"


def test_who_may_not(made: Service) -> None:
    transport = made.carrier
    token = made.token("project:birds:read")
    with rayal.Client("http://service", token, transport=made.carrier) as api:
        assert api.project("birds")["name"] == "birds"
        with pytest.raises(rayal.ApiError, match="project:birds:label"):
            api.lease("birds", "ann")
    with (
        rayal.Client("http://service", transport=transport) as api,
        pytest.raises(rayal.ApiError, match="401 unauthenticated"),
    ):
        api.project("birds")


def test_who_would_wait_too_long_for_its_turn(made: Service) -> None:
    with (
        made.changed(limits=Limits(rate=0.001, burst=2)) as limited,
        client(limited) as api,
    ):
        api.project("birds")
        api.project("birds")
        with pytest.raises(rayal.ApiError, match="429 rate-limited"):
            api.project("birds")  # a thousand seconds


def test_item_keys_are_those_of_the_service() -> None:
    ids = ["a", "cats/1.png", "ünï/😀", "x" * 1000]
    assert [item_key(i) for i in ids] == [f"{int(k):016x}" for k in id_keys(ids)]
