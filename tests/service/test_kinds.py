"""One project of each kind, from its making over HTTP to its predictions, and what it refuses."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_cases import Run, Service, key, problem, service, shell
from kind_cases import COLUMNS, KINDS, Kind
from service_cases import NOTHING, work

import rayal
from rayal.errors import PoolError
from rayal.ledger import LabelEntry, Ledger
from rayal.service.creation import create_project
from rayal.service.inbox import push_items
from rayal.service.predictor import Predictor

PROJECT = "/v1/projects/p"


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


@dataclass(frozen=True)
class Served:
    """A service with the project p of a kind, and an administrator's client."""

    kind: Kind
    service: Service
    client: httpx.Client

    def label(self, item: str, label: Any, who: str = "ann") -> dict[str, Any]:
        """Say what an item is, and return what became of it."""
        body = {"labels": [{"item": item, "annotator": who, "label": label}]}
        answer = self.client.post(f"{PROJECT}/labels", json=body)
        assert answer.status_code == 200, answer.text
        made: dict[str, Any] = answer.json()["results"][0]
        return made


@pytest.fixture
def served(kind: Kind, tmp_path: Path) -> Iterator[Served]:
    """Give a service whose project holds ten items of its kind."""
    with service(tmp_path / "root") as made, made.client() as client:
        answer = client.post("/v1/projects", json=kind.body("p"))
        assert answer.status_code == 201, answer.text
        few = list(kind.items)[:10]
        answer = client.post(f"{PROJECT}/items", json={"items": kind.sent(*few)})
        assert answer.json()["created"] == 10, answer.text
        yield Served(kind, made, client)


@pytest.fixture(scope="module")
def trained(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a storage root with a project whose first round is done."""
    root = tmp_path_factory.mktemp(kind.name)
    with Ledger(root) as ledger:
        first_round(ledger, kind)
    return root


def first_round(ledger: Ledger, kind: Kind) -> None:
    """Make a project of all items, label its first choice, and train on it."""
    create_project(ledger, kind.body("p"), prefixes=NOTHING)
    assert push_items(ledger, "p", kind.pushed(), prefixes=NOTHING).created == len(kind.items)
    assert work(ledger).result == {"offered": 20}
    label_all(ledger, kind)
    done = work(ledger)
    assert done.state == "done", done.error


def label_all(ledger: Ledger, kind: Kind) -> list[str]:
    """Label what is open as people would, and return it."""
    chosen = ledger.open_items("p")
    ledger.label("p", "ann", [LabelEntry(i, kind.items[i][1]) for i in chosen])
    return chosen


# -- items ----------------------------------------------------------------------------------------


def test_a_project_is_made_once_and_says_what_its_labels_are(served: Served) -> None:
    shown = served.client.get(PROJECT).json()
    assert shown["labels"] == served.kind.labels
    again = served.client.post("/v1/projects", json=served.kind.body("p"))
    assert again.json()["labels"] == shown["labels"]
    assert served.service.ledger.projects() == ["birds", "p"]


def test_items_come_back_as_they_were_sent(served: Served) -> None:
    kind = served.kind
    (item, (content, _)), *_ = kind.items.items()
    again = served.client.post(f"{PROJECT}/items", json={"items": kind.sent(item)}).json()
    assert (again["created"], again["unchanged"]) == (0, 1)
    answer = served.client.get(f"{PROJECT}/items/{key(item)}/content")
    assert answer.headers["content-type"] == kind.content_type
    if kind.field == "features":
        assert list(answer.json()["features"]) == COLUMNS
        assert list(answer.json()["features"].values()) == pytest.approx(content, rel=1e-6)
    else:
        sent = base64.b64decode(content) if kind.field == "data" else content.encode()
        assert answer.content == sent


def test_another_content_under_an_id_that_is_taken_is_a_conflict(served: Served) -> None:
    one, other = list(served.kind.items)[:2]
    changed = {**served.kind.sent(other)[0], "id": one}
    answer = served.client.post(f"{PROJECT}/items", json={"items": [changed]}).json()
    assert [row["id"] for row in answer["conflicts"]] == [one] and answer["created"] == 0


def test_what_is_none_of_its_kind_is_rejected_alone(served: Served) -> None:
    bad = [{"id": f"bad {n}", **content} for n, content in enumerate(served.kind.refused)]
    good = served.kind.sent(list(served.kind.items)[20])
    answer = served.client.post(f"{PROJECT}/items", json={"items": [*bad, *good]}).json()
    assert [row["id"] for row in answer["rejected"]] == [row["id"] for row in bad]
    assert answer["created"] == 1 and all(row["detail"] for row in answer["rejected"])


# -- labels ---------------------------------------------------------------------------------------


def test_labels_are_taken_once_changed_and_refused(served: Served) -> None:
    one, other = list(served.kind.items)[:2]
    label, wrong = served.kind.items[one][1], served.kind.wrong
    different = next(y for _, y in served.kind.items.values() if y != label)
    assert served.label(one, label)["status"] == "accepted"
    assert served.label(one, label)["status"] == "duplicate"
    assert served.label(one, different)["status"] == "updated"
    refused = served.label(other, wrong)
    assert refused["status"] == "rejected" and str(wrong) in refused["detail"]
    put = served.client.put(f"{PROJECT}/labels/{key(other)}/ann", json={"label": wrong})
    assert str(wrong) in problem(put, 422, "validation")["detail"]
    (row,) = served.client.get(f"{PROJECT}/labels", params={"view": "resolved"}).json()["labels"]
    assert (row["item"], row["label"], type(row["label"])) == (one, different, type(label))


def test_the_client_labels_and_says_what_was_refused(served: Served) -> None:
    token, carrier = served.service.tokens["admin"], served.service.carrier
    one, other = list(served.kind.items)[:2]
    with rayal.Client("http://service", token, transport=carrier) as client:
        assert client.project("p")["labels"] == served.kind.labels
        answers = {one: served.kind.items[one][1], other: served.kind.wrong}
        assert [r["status"] for r in client.label("p", "ann", answers)] == ["accepted", "rejected"]


@pytest.fixture
def remote(
    served: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    return shell(served.service, monkeypatch, capsys)


def test_labels_from_the_shell(remote: Run, served: Served, tmp_path: Path) -> None:
    one, two, three, *_ = served.kind.items
    expected = [served.kind.items[item][1] for item in (one, two)]
    assert remote("label", "p", one, str(expected[0]))[0] == 0
    file = tmp_path / "labels.csv"
    file.write_text(f"id,label\n{two},{expected[1]}\n")
    assert remote("label", "p", "--from", file)[0] == 0
    code, out, err = remote("label", "p", three, str(served.kind.wrong))
    assert code == 2 and str(served.kind.wrong) in out + err
    listed = served.client.get(f"{PROJECT}/labels", params={"view": "resolved"}).json()["labels"]
    assert {row["item"]: row["label"] for row in listed} == dict(
        zip((one, two), expected, strict=True)
    )


# -- rounds and predictions -----------------------------------------------------------------------


def test_what_is_sent_is_predicted_as_the_item_is(kind: Kind, trained: Path) -> None:
    ids = list(kind.items)[:8]
    predictor = Predictor(trained)
    try:
        by_id = predictor.predict("p", items=ids)
        sent = [{kind.field: item[kind.field]} for item in kind.sent(*ids)]
        of_content = predictor.predict("p", inputs=sent)
        assert [(p.label, p.probs, p.mean) for p in of_content] == [
            (p.label, p.probs, p.mean) for p in by_id
        ]
        with pytest.raises(PoolError, match=r"inputs\[1\]: "):
            predictor.predict("p", inputs=[*sent[:1], dict(kind.refused[-1])])
    finally:
        predictor.close()


def test_a_round_learns(kind: Kind, trained: Path) -> None:
    predictor = Predictor(trained)
    try:
        made = predictor.predict("p", items=list(kind.items))
    finally:
        predictor.close()
    truth = [kind.items[p.item or ""][1] for p in made]
    if kind.labels["kind"] == "class":
        assert sum(p.label == y for p, y in zip(made, truth, strict=True)) >= 45
        assert all(p.probs is not None and p.mean is None for p in made)
    else:
        errors = [abs(float(p.label) - float(y)) for p, y in zip(made, truth, strict=True)]
        assert sum(errors) / len(errors) < 4.0
        assert all(p.probs is None and (p.variance or 0.0) > 0 for p in made)


def test_leases_carry_what_the_model_says_of_their_items(kind: Kind, trained: Path) -> None:
    predictor = Predictor(trained)
    try:
        with Ledger(trained) as ledger:
            open_items = ledger.open_items("p")
            known = ledger.suggestions("p", open_items)
            assert len(open_items) == 6 and set(known) == set(open_items)
            for made in predictor.predict("p", items=open_items):
                told = known[made.item or ""]
                if isinstance(made.label, str):
                    assert told.label == made.label
                    continue
                assert told.label == pytest.approx(made.label)
                assert told.probs["mean"] == pytest.approx(made.mean)
                assert told.probs["variance"] == pytest.approx(made.variance)
    finally:
        predictor.close()


def test_a_job_writes_predictions_to_a_file(kind: Kind, trained: Path) -> None:
    first = next(iter(kind.items))
    with Ledger(trained) as ledger:
        done = work(ledger, "p", "predict", items=[first, "nowhere"], model=None)
    lines = [json.loads(x) for x in (trained / done.result["file"]).read_text().splitlines()]
    assert (lines[0]["item"], "nowhere" in lines[1]["error"]) == (first, True)
    assert (lines[0]["probs"] is None) == (kind.labels["kind"] == "number")


def test_rounds_go_on_after_items_were_forgotten_and_purged(kind: Kind, tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        first_round(ledger, kind)
        labeled, offered = ledger.labels("p")[0].item, ledger.open_items("p")
        untouched = next(i for i, state in ledger.states("p").items() if i in offered)
        for item in (labeled, untouched):
            ledger.forget_item("p", item)
        assert work(ledger, "p", "purge").result == {"purged": 2}
        assert untouched not in label_all(ledger, kind)
        done = work(ledger)
        assert done.state == "done", done.error
        assert not {labeled, untouched} & set(ledger.open_items("p"))
