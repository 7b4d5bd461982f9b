from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_cases import Service, key, png, problem, service

from rayal.ledger import LabelEntry

ITEMS = "/v1/projects/pictures/items"
ROWS = "/v1/projects/birds/items"


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[Service]:
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
def client(pictures: Service) -> Iterator[httpx.Client]:
    with pictures.client() as made:
        yield made


def push(client: httpx.Client, *items: dict[str, Any], **headers: str) -> Any:
    answer = client.post(ITEMS, json={"items": list(items)}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


def huge_png() -> str:
    """Return a PNG whose header promises 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    file = io.BytesIO(b"\x89PNG\r\n\x1a\n")
    file.seek(0, io.SEEK_END)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")):
        file.write(struct.pack(">I", len(data)) + kind + data)
        file.write(struct.pack(">I", zlib.crc32(kind + data)))
    return base64.b64encode(file.getvalue()).decode()


def test_items_are_pushed_and_told_one_by_one(client: httpx.Client) -> None:
    first = push(client, {"id": "a/1", "data": png(1)}, {"id": "b", "data": png(2)})
    assert (first["created"], first["unchanged"]) == (2, 0)
    assert first["conflicts"] == first["rejected"] == []
    second = push(
        client,
        {"id": "a/1", "data": png(1)},
        {"id": "b", "data": png(3)},
        {"id": "c", "data": base64.b64encode(b"no image").decode()},
        {"id": "d", "data": "%%%"},
        {"id": "e", "features": [1.0]},
        {"id": "f", "data": png(4)},
    )
    assert (second["created"], second["unchanged"]) == (1, 1)
    assert [x["id"] for x in second["conflicts"]] == ["b"]
    assert second["conflicts"][0]["key"] == key("b")
    assert sorted(x["id"] for x in second["rejected"]) == ["c", "d", "e"]
    assert all(x["detail"] for x in second["rejected"])


def test_an_upload_without_an_id_is_named_by_its_content(client: httpx.Client) -> None:
    assert push(client, {"data": png(7)})["created"] == 1
    named = f"sha256:{sha256(base64.b64decode(png(7))).hexdigest()}"
    assert client.get(f"{ITEMS}/{key(named)}").json()["id"] == named
    answer = client.post(ITEMS, json={"items": [{"id": "a", "data": png()}, {"uri": "/x.png"}]})
    document = problem(answer, 422, "validation")
    assert document["errors"][0]["pointer"] == "/items/1"


@pytest.mark.parametrize(
    "item",
    [
        {"uri": "../../etc/passwd"},
        {"uri": "/etc/passwd"},
        {"uri": "{allowed}/../../../../../etc/passwd"},
        {"uri": "{allowed}/link"},
        {"uri": "file:///etc/passwd"},
        {"uri": "http://169.254.169.254/latest/meta-data/"},
        {"uri": "http://localhost:22/"},
        {"data": huge_png()},
    ],
)
def test_what_may_not_be_read_is_rejected(
    pictures: Service, client: httpx.Client, item: dict[str, Any]
) -> None:
    folder = Path(pictures.ledger.root) / "allowed"
    folder.mkdir()
    (folder / "link").symlink_to("/etc/passwd")
    item = {n: v.replace("{allowed}", str(folder)) for n, v in item.items()}
    made = push(client, {"id": "bad", **item}, {"id": "good", "data": png()})
    assert [x["id"] for x in made["rejected"]] == ["bad"]
    assert "root:" not in made["rejected"][0]["detail"]
    assert made["created"] == 1


def test_a_file_below_an_allowed_prefix_is_read(pictures: Service, client: httpx.Client) -> None:
    folder = Path(pictures.ledger.root) / "allowed"
    folder.mkdir()
    (folder / "x.png").write_bytes(base64.b64decode(png(9)))
    assert push(client, {"id": "x", "uri": f"{folder}/x.png"})["created"] == 1
    answer = client.get(f"{ITEMS}/{key('x')}/content")
    assert answer.content == base64.b64decode(png(9))


def test_one_item_is_put(client: httpx.Client) -> None:
    path = f"{ITEMS}/{key('a')}"
    made = [client.put(path, json={"id": "a", "data": png(1)}).json() for _ in range(2)]
    assert [(m["created"], m["unchanged"]) for m in made] == [(1, 0), (0, 1)]
    problem(client.put(path, json={"id": "a", "data": png(2)}), 409, "conflict")
    problem(client.put(path, json={"id": "b", "data": png(2)}), 422, "validation")
    problem(client.put(f"{ITEMS}/{key('z')}", json={"id": "z", "data": "AAAA"}), 422, "validation")


def test_json_lines_are_taken_at_once_while_they_are_few(
    pictures: Service, client: httpx.Client
) -> None:
    lines = [{"id": f"n{i}", "data": png(i)} for i in range(3)]
    body = "".join(json.dumps(line) + "\n" for line in lines) + "{no json\n"
    headers = {"Content-Type": "application/x-ndjson", "Idempotency-Key": "lines"}
    one, two = (client.post(ITEMS, content=body, headers=headers) for _ in "ab")
    assert one.status_code == 200, one.text
    assert (one.json()["created"], len(one.json()["rejected"])) == (3, 1)
    assert two.json() == one.json()
    assert two.headers["idempotency-replayed"] == "true"
    other = client.post(ITEMS, content=body + "\n", headers=headers)
    problem(other, 422, "idempotency-mismatch")
    assert not list((Path(pictures.ledger.root) / "inbox").iterdir())


def test_many_json_lines_become_a_job(pictures: Service) -> None:
    limits = replace(pictures.backend.limits, page=2)
    lines = "".join(json.dumps({"id": f"n{i}", "data": png(i)}) + "\n" for i in range(3))
    headers = {"Content-Type": "application/x-ndjson"}
    with pictures.changed(limits=limits) as changed, changed.client() as client:
        answer = client.post(ITEMS, content=lines, headers=headers)
        assert answer.status_code == 202
        job = client.get(answer.headers["location"]).json()
        assert job == answer.json()["job"]
        assert (job["kind"], job["state"], job["project"]) == ("ingest", "queued", "pictures")
        row = pictures.ledger.job(job["job"])
        staged = Path(pictures.ledger.root) / "inbox" / row.args["file"]
        assert staged.read_text() == lines


def test_items_of_a_pool_that_others_use_are_not_pushed(client: httpx.Client) -> None:
    answer = client.post(ROWS, json={"items": [{"id": "a", "features": [1, 2, 3]}]})
    problem(answer, 409, "conflict")


@pytest.mark.parametrize(
    "item",
    [
        {"id": "a"},
        {"id": "a", "data": png(), "uri": "/x"},
        {"id": "", "data": png()},
        {"id": "a", "data": 1},
        {"id": "a", "data": png(), "meta": {}},
        {"id": "a", "features": ["1"]},
        "a",
    ],
)
def test_what_is_no_item_names_its_row(shared: httpx.Client, item: Any) -> None:
    answer = shared.post(ITEMS, json={"items": [{"id": "b", "data": png()}, item]})
    document = problem(answer, 422, "validation")
    assert document["errors"][0]["pointer"].startswith("/items/1")


def test_items_are_listed_by_state_in_pages(pictures: Service, client: httpx.Client) -> None:
    pictures.ledger.label(
        "birds", "ada", [LabelEntry("row/00", "cat"), LabelEntry("row/30", "dog")]
    )
    pictures.ledger.lease("birds", "bob", 1)

    def listed(**params: Any) -> list[str]:
        seen: list[str] = []
        cursor = None
        while True:
            page = client.get(ROWS, params=params | ({"cursor": cursor} if cursor else {})).json()
            assert all(x["key"] == key(x["id"]) for x in page["items"])
            seen += [x["id"] for x in page["items"]]
            cursor = page["next"]
            if cursor is None:
                return seen

    assert listed(state="labeled") == ["row/00", "row/30"]
    assert listed(state="leased", limit=1) == ["row/01"]
    assert listed(state="offered", limit=2) == [f"row/{i:02d}" for i in range(2, 8)]
    touched = [*(f"row/{i:02d}" for i in range(8)), "row/30"]
    assert listed() == listed(limit=4) == touched
    rest = {f"row/{i:02d}" for i in range(40)} - set(touched)
    for limit in (1, 7, 31, 1000):
        untouched = listed(state="unlabeled", limit=limit)
        assert len(untouched) == len(rest)
        assert set(untouched) == rest
        assert untouched == listed(state="unlabeled")


def test_an_item_tells_how_it_stands_and_why(pictures: Service, client: httpx.Client) -> None:
    item = client.get(f"{ROWS}/{key('row/02')}").json()
    assert {n: item[n] for n in ("id", "state", "round", "rank")} == {
        "id": "row/02",
        "state": "offered",
        "round": -1,
        "rank": 3,
    }
    pictures.ledger.label("birds", "ada", [LabelEntry("row/02", "cat")])
    why = client.get(f"{ROWS}/{key('row/02')}/why").json()
    assert why["state"] == "labeled"
    (choice,) = why["selections"]
    assert (choice["rank"], choice["picked"], choice["provenance"]) == (
        3,
        True,
        {"strategy": "random"},
    )
    (said,) = why["history"]
    assert (said["kind"], said["annotator"], said["value"]) == ("label", "ada", "cat")
    untouched = client.get(f"{ROWS}/{key('row/20')}").json()
    assert (untouched["state"], untouched["round"]) == ("unlabeled", None)
    for path in (f"{ROWS}/{'0' * 16}", f"{ROWS}/{'0' * 16}/why", f"{ROWS}/xyz", f"{ROWS}/..%2f.."):
        problem(client.get(path), 404, "not-found")


def test_content_is_served_to_tokens_and_signed_urls(
    pictures: Service, client: httpx.Client
) -> None:
    path = f"{ROWS}/{key('row/02')}"
    answer = client.get(f"{path}/content")
    assert answer.headers["content-type"] == "application/json"
    assert len(answer.json()["features"]) == 3
    signed = client.get(path).json()["content"]
    with pictures.client("") as nobody:
        assert nobody.get(signed).content == answer.content
        assert "sandbox" in nobody.get(signed).headers["content-security-policy"]
        problem(nobody.get(f"{path}/content"), 401, "unauthenticated")
        for changed in (
            signed.replace(key("row/02"), key("row/03")),
            signed.replace("birds", "pictures"),
            signed.replace("expires=1", "expires=2"),
            signed[:-1] + ("A" if signed[-1] != "A" else "B"),
            signed.partition("&")[0] + "&signature=",
            signed.replace("expires=", "expires=x"),
            f"{path}/content?signature={signed.rpartition('=')[2]}",
        ):
            problem(nobody.get(changed), 403, "forbidden")
        pictures.clock.now += pictures.backend.limits.url_seconds + 1
        assert "expired" in problem(nobody.get(signed), 403, "forbidden")["detail"]
    with pictures.client(pictures.token("project:pictures:write")) as other:
        problem(other.get(f"{path}/content"), 403, "forbidden")


def test_an_image_is_served_as_it_was_pushed(client: httpx.Client) -> None:
    push(client, {"id": "a", "data": png(5)})
    answer = client.get(f"{ITEMS}/{key('a')}/content")
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == base64.b64decode(png(5))
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_forgotten_item_is_gone(pictures: Service, client: httpx.Client) -> None:
    path = f"{ROWS}/{key('row/00')}"
    signed = client.get(path).json()["content"]
    assert client.delete(path).status_code == 204
    assert client.delete(path).status_code == 204
    for gone in (path, f"{path}/why", f"{path}/content", signed):
        problem(client.get(gone), 404, "not-found")
    leases = client.post("/v1/projects/birds/leases", json={"annotator": "a", "count": 8}).json()
    assert [x["item"]["id"] for x in leases["leases"]] == [f"row/{i:02d}" for i in range(1, 8)]


def test_ranked_items_without_a_lease(client: httpx.Client) -> None:
    path = "/v1/projects/birds/query"
    first = client.post(path, json={"count": 5}).json()
    assert [x["id"] for x in first["items"]] == [f"row/{i:02d}" for i in range(5)]
    assert first["items"][1] == {
        "id": "row/01",
        "key": key("row/01"),
        "round": -1,
        "rank": 2,
        "score": 0.5,
    }
    second = client.post(path, json={"count": 5, "cursor": first["next"]}).json()
    assert [x["id"] for x in second["items"]] == ["row/05", "row/06", "row/07"]
    assert second["next"] is None
    assert client.post(path, json={"count": 5}).json() == first
    problem(client.post(path, json={"count": 5, "cursor": "AAAA"}), 422, "validation")
