"""Texts as items over HTTP: what is taken, how it comes back, rounds and predictions on it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_cases import Service, key, problem, service
from service_cases import NOTHING, work

from rayal.cli.remote import items_of
from rayal.errors import PoolError
from rayal.ledger import LabelEntry, Ledger
from rayal.pool.push import create_empty
from rayal.pool.reader import Pool
from rayal.pool.readers.texts import PAYLOAD
from rayal.service.content import ContentLimits
from rayal.service.creation import create_project
from rayal.service.inbox import stage
from rayal.service.limits import Limits
from rayal.service.predictor import Predictor
from rayal.service.worker.process import perform

CLASSES = ["good", "bad"]
ITEMS = "/v1/projects/notes/items"
NOTES = {
    "task": {"kind": "text", "classes": CLASSES},
    "labeling": {},
    "service": {"pushed": True},
}


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    limits = Limits(rate=1e6, burst=10**6, text_bytes=64)
    with service(tmp_path_factory.mktemp("notes"), limits) as made:
        create_empty(made.ledger, "texts", dict(PAYLOAD), CLASSES)
        made.ledger.create_project("notes", "texts", NOTES)
        yield made


@pytest.fixture
def client(notes: Service) -> Iterator[httpx.Client]:
    with notes.client() as made:
        yield made


def push(client: httpx.Client, **item: Any) -> dict[str, Any]:
    answer = client.post(ITEMS, json={"items": [item]})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def content(client: httpx.Client, item: str) -> httpx.Response:
    return client.get(f"{ITEMS}/{key(item)}/content")


# -- what is taken, and how it comes back --------------------------------------------------------


def test_a_text_comes_back_as_plain_text_in_utf_8(client: httpx.Client) -> None:
    text = "Grüße, <b>世界</b>\n\t& more"
    assert push(client, id="a", text=text)["created"] == 1
    answer = content(client, "a")
    assert answer.content == text.encode()
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    signed = client.get(f"{ITEMS}/{key('a')}").json()["content"]
    assert (
        httpx.Client(transport=client._transport, base_url="http://service").get(signed).text
        == text
    )


def test_texts_are_in_composed_form_so_that_the_same_text_is_the_same_item(
    client: httpx.Client,
) -> None:
    assert push(client, id="nfc", text="caf\u00e9")["created"] == 1
    assert push(client, id="nfc", text="cafe\u0301")["unchanged"] == 1
    data = base64.b64encode("cafe\u0301".encode()).decode()
    assert push(client, id="nfc", data=data)["unchanged"] == 1
    assert content(client, "nfc").content == "caf\u00e9".encode()
    (conflict,) = push(client, id="nfc", text="cafe")["conflicts"]
    assert conflict["id"] == "nfc"


def test_json_lines_of_texts(client: httpx.Client) -> None:
    rows = [{"id": f"line-{n}", "text": f"text {n}"} for n in range(3)]
    lines = [json.dumps(row) for row in rows]
    lines.insert(1, '{"id": "bad", "text": 7}')
    body = "\n".join(lines).encode() + b'\n{"id": "odd", "text": "\xff"}\n'
    headers = {"Content-Type": "application/x-ndjson"}
    made = client.post(ITEMS, content=body, headers=headers).json()
    assert made["created"] == 3
    assert [(row["id"], row["detail"]) for row in made["rejected"]] == [
        ("line 2", "text is '7'; it must be text"),
        ("line 5", "not a JSON object"),
    ]
    assert content(client, "line-2").text == "text 2"


@pytest.mark.parametrize(
    ("given", "detail"),
    [
        ({"text": "x" * 65}, "longer than 64 bytes"),
        ({"text": "ü" * 33}, "66 bytes in UTF-8, at most 64"),
        ({"text": ""}, "the text is empty"),
        ({"text": " \n\t "}, "the text is empty"),
        ({"data": base64.b64encode(b"caf\xe9").decode()}, "not UTF-8"),
        ({"data": base64.b64encode(b"a\0b").decode()}, "holds a NUL, at byte 1"),
        ({"features": [1.0]}, "the items are texts"),
    ],
)
def test_a_text_that_cannot_be_taken_is_rejected_alone(
    client: httpx.Client, given: dict[str, Any], detail: str
) -> None:
    good = {"id": f"beside {given}"[:100], "text": "beside"}
    answer = client.post(ITEMS, json={"items": [{"id": "wrong", **given}, good]}).json()
    assert answer["created"] == 1
    (refused,) = answer["rejected"]
    assert refused["id"] == "wrong" and detail in refused["detail"]
    alone = client.put(f"{ITEMS}/{key('wrong')}", json={"id": "wrong", **given})
    assert detail in problem(alone, 422, "validation")["detail"]
    problem(content(client, "wrong"), 404, "not-found")


@pytest.mark.parametrize(
    "body",
    [
        b'{"items": [{"id": "a", "text": "a\\u0000b"}]}',
        b'{"items": [{"id": "a", "text": "\\ud800"}]}',
        b'{"items": [{"id": "a", "text": "\xff"}]}',
        b'{"items": [{"id": "a", "text": 7}]}',
        b'{"items": [{"id": "a", "text": "a", "features": [1]}]}',
        b'{"items": [{"id": "a"}]}',
    ],
)
def test_a_body_that_is_no_json_of_items_is_a_problem(client: httpx.Client, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    problem(client.post(ITEMS, content=body, headers=headers), 422, "validation")


def test_a_text_is_no_image_and_no_row(notes: Service, client: httpx.Client) -> None:
    notes.pictures()
    path = "/v1/projects/pictures/items"
    (refused,) = client.post(path, json={"items": [{"id": "a", "text": "a"}]}).json()["rejected"]
    assert "the items are images" in refused["detail"]


# -- rounds and predictions ------------------------------------------------------------------------

WORDS = {"good": "fine lovely great happy", "bad": "awful broken poor sad"}


def sentences(count: int) -> dict[str, tuple[str, str]]:
    """Return texts by id, each with its class."""
    made = {}
    for n in range(count):
        name = CLASSES[n % 2]
        words = WORDS[name].split()
        made[f"note {n:03d}"] = (f"{words[n % 4]} thing {words[(n // 4) % 4]} {n % 7}", name)
    return made


def body(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": "p",
        "task": {"kind": "text", "classes": CLASSES, "length": 8, "vocabulary": 200},
        "model": {"network": "kim_cnn", "params": {"filters": 8, "width": 16, "dropout": 0.1}},
        "learner": {"name": "supervised", "steps": 100, "batch": 16, "epoch_steps": 25, "lr": 0.01},
        "strategy": "entropy",
        "initial": {"count": 12},
        "batch_size": 6,
    }
    return {**made, **changes}


def test_rounds_and_predictions_on_texts_of_a_pool(tmp_path: Path) -> None:
    items = sentences(60)
    with Ledger(tmp_path) as ledger:
        rows = [{"id": i, "text": text} for i, (text, _) in items.items()]
        file = tmp_path / "notes.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        Pool.from_jsonl(tmp_path, "notes", file, id="id", text="text")
        create_project(ledger, body(pool="notes"), prefixes=NOTHING)
        ledger.claim_job("me", kinds=["round"])  # the first round was asked for
        (job,) = ledger.jobs("p")
        ledger.fail_job(job.job, "me", "not here")
        assert work(ledger).state == "done"
        chosen = ledger.open_items("p")
        ledger.label("p", "ann", [LabelEntry(i, items[i][1]) for i in chosen])
        done = work(ledger)
        assert done.state == "done", done.error
        predictor = Predictor(tmp_path)
        ids = list(items)[:8]
        by_id = predictor.predict("p", items=ids)
        sent = predictor.predict("p", inputs=[{"text": items[i][0]} for i in ids])
        assert [p.probs for p in sent] == [p.probs for p in by_id]
        assert sum(p.label == items[p.item or ""][1] for p in by_id) >= 6
        with pytest.raises(PoolError, match=r"inputs\[1\]: the text is empty"):
            predictor.predict("p", inputs=[{"text": "a"}, {"text": " "}])
        short = Predictor(tmp_path, limits=ContentLimits(text_bytes=4))
        with pytest.raises(PoolError, match=r"inputs\[0\]: .* longer than 4 bytes"):
            short.predict("p", inputs=[{"text": "a long text"}])
        short.close()
        predictor.close()


# -- forgetting ------------------------------------------------------------------------------------


def found(root: Path, text: str) -> list[str]:
    """Return the files of a storage root in which a text stands: what grep would find."""
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path.name for path in files if text.encode() in path.read_bytes()]


def test_a_forgotten_text_is_in_no_file_any_more(notes: Service, client: httpx.Client) -> None:
    secret, root = "a text that nobody shall find", Path(notes.ledger.root)
    staged = stage(root, [json.dumps({"id": "other", "text": secret}).encode(), b"\n",
                          json.dumps({"id": "gone", "text": secret}).encode()],
                   limit=1000)  # fmt: skip
    push(client, id="gone", text=secret)
    push(client, id="stays", text="a text that stays")
    assert len(found(root, secret)) == 2
    content(client, "stays")  # the pool is open from here on
    assert client.delete(f"{ITEMS}/{key('gone')}").status_code == 204
    (job,) = notes.ledger.jobs("notes", state="queued")
    claimed = notes.ledger.claim_job("me", kinds=["purge"])
    assert claimed is not None and claimed.job == job.job
    perform(notes.ledger, claimed, "me")
    assert client.get(f"/v1/jobs/{job.job}").json()["result"] == {"purged": 1}
    assert found(root, f'"gone", "text": "{secret}"') == []
    assert found(root, secret) == [staged]  # of the item that was not forgotten
    problem(content(client, "gone"), 404, "not-found")
    assert content(client, "stays").text == "a text that stays"
    unlabeled = client.get(ITEMS, params={"state": "unlabeled", "limit": 1000}).json()["items"]
    assert "stays" in {row["id"] for row in unlabeled}
    assert "gone" not in {row["id"] for row in unlabeled}
    (conflict,) = push(client, id="gone", text=secret)["conflicts"]
    assert "was forgotten" in conflict["detail"]
    assert client.delete(f"{ITEMS}/{key('gone')}").status_code == 204


def test_a_pool_that_was_there_before_is_left_to_its_keeper(
    notes: Service, client: httpx.Client
) -> None:
    assert client.delete(f"/v1/projects/birds/items/{key('row/39')}").status_code == 204
    assert notes.ledger.jobs("birds") == []


def test_texts_of_a_csv_file_are_pushed(tmp_path: Path) -> None:
    file = tmp_path / "notes.csv"
    file.write_text('key,said,more\na,"x, y",1\nb,,2\n')
    assert list(items_of(file, "key", "said")) == [
        {"id": "a", "text": "x, y"},
        {"id": "b", "text": ""},
    ]
    with pytest.raises(PoolError, match="has no column 'text'"):
        list(items_of(file, "key", "text"))
