"""Numbers as labels over HTTP: projects, answers, rounds, predictions, the client, the shell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from api_cases import Run, Service, key, offer, problem, service, shell
from service_cases import FEATURES, NOTHING, patch_project, work

from rayal.errors import ConflictError, NeedsError
from rayal.ledger import LabelEntry, Ledger
from rayal.service.creation import create_project
from rayal.service.inbox import PushedItem, push_items
from rayal.service.predictor import Predictor
from rayal.service.routes.rounds import agreement_of

PRICES = "/v1/projects/prices"
LABELS = f"{PRICES}/labels"
TASK = {"kind": "table", "target": "number", "low": 0.0, "high": 100.0}
SETTINGS: dict[str, Any] = {
    "task": TASK,
    "rounds": None,
    "labeling": {"labels_per_item": 2, "agreement": "all", "max_labels": 4, "tolerance": 0.5},
    "service": {"quorum": None, "ready": 0, "start": False, "pushed": False},
}
ROWS = [f"row/{n:02d}" for n in range(4)]


@pytest.fixture
def prices(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path / "root") as made:
        made.ledger.create_project("prices", "rows", SETTINGS)
        offer(made.ledger, ROWS, "prices")
        yield made


@pytest.fixture
def client(prices: Service) -> Iterator[httpx.Client]:
    with prices.client() as made:
        yield made


def say(client: httpx.Client, who: str, label: Any, item: str = ROWS[0]) -> dict[str, Any]:
    body = {"labels": [{"item": item, "annotator": who, "label": label}]}
    answer = client.post(LABELS, json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()["results"][0]
    return made


# -- answers ---------------------------------------------------------------------------------------


def test_numbers_are_taken_compared_and_resolved(client: httpx.Client) -> None:
    assert say(client, "ann", 20)["status"] == "accepted"
    assert say(client, "ann", 20.0)["status"] == "duplicate"
    assert say(client, "bob", 21.5)["status"] == "conflict"
    assert say(client, "bob", 20.25)["status"] == "updated"
    (row,) = client.get(LABELS, params={"view": "resolved"}).json()["labels"]
    assert (row["item"], row["label"], type(row["label"])) == (ROWS[0], 20.0, float)
    history = client.get(LABELS).json()["labels"]
    assert [(r["annotator"], r["label"]) for r in history] == [
        ("ann", 20.0),
        ("bob", 21.5),
        ("bob", 20.25),
    ]


@pytest.mark.parametrize(
    ("label", "detail"),
    [
        (-0.5, "is out of bounds; give a finite number from 0 to 100"),
        (100.5, "is out of bounds"),
        ("20", "label '20' of item 'row/00' is no number; give a number from 0 to 100"),
        ("cat", "label 'cat' of item 'row/00' is no number"),
    ],
)
def test_what_is_no_number_within_bounds_is_refused(
    client: httpx.Client, label: Any, detail: str
) -> None:
    refused = say(client, "ann", label)
    assert refused["status"] == "rejected" and detail in refused["detail"]
    put = client.put(f"{LABELS}/{key(ROWS[0])}/ann", json={"label": label})
    document = problem(put, 422, "validation")
    assert detail in document["detail"] and document["errors"][0]["pointer"] == "/label"
    assert client.get(LABELS).json()["labels"] == []


@pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"1e999", b"true", b"null", b"[1]", b"{}"])
def test_what_is_no_json_label_is_a_problem(client: httpx.Client, text: bytes) -> None:
    body = b'{"labels": [{"item": "row/00", "annotator": "ann", "label": %s}]}' % text
    headers = {"Content-Type": "application/json"}
    problem(client.post(LABELS, content=body, headers=headers), 422, "validation")
    put = client.put(f"{LABELS}/{key(ROWS[0])}/ann", content=b'{"label": %s}' % text,
                     headers=headers)  # fmt: skip
    problem(put, 422, "validation")
    assert client.get(LABELS).json()["labels"] == []


def test_a_bad_number_does_not_hold_up_the_others(client: httpx.Client) -> None:
    labels = [
        {"item": item, "annotator": "ann", "label": label}
        for item, label in zip(ROWS, [1, 200, "3", 4.5], strict=True)
    ]
    made = client.post(LABELS, json={"labels": labels}).json()["results"]
    assert [row["status"] for row in made] == ["accepted", "rejected", "rejected", "accepted"]


def test_a_class_project_takes_no_number(client: httpx.Client) -> None:
    answer = client.put(f"/v1/projects/birds/labels/{key('row/00')}/ann", json={"label": 1.5})
    assert "'1.5'" in problem(answer, 422, "validation")["detail"]


def test_a_project_says_what_its_labels_are(client: httpx.Client) -> None:
    assert client.get(PRICES).json()["labels"] == {"kind": "number", "low": 0.0, "high": 100.0}
    shown = client.get("/v1/projects/birds").json()["labels"]
    assert shown == {"kind": "class", "classes": ["cat", "dog", "owl"]}


def test_a_lease_carries_the_number_that_the_model_says(
    prices: Service, client: httpx.Client
) -> None:
    ledger = prices.ledger
    ledger.begin_round("prices", 0, snapshot=1, labels_seq=0, seeds={})
    ledger.commit_model("prices", "r0000-0abc", 0, "abc", {"labels": 1, "metrics": {"rmse": 2.5}})
    said = [(ROWS[0], 100.0, {"mean": 101.5, "variance": 4.0})]
    ledger.commit_suggestions("prices", "r0000-0abc", said)
    (lease,) = client.post(f"{PRICES}/leases", json={"annotator": "ann"}).json()["leases"]
    assert lease["suggestion"] == {
        "label": 100.0,
        "probs": None,
        "mean": 101.5,
        "variance": 4.0,
        "model_version": "r0000-0abc",
    }
    shown = client.get(f"{PRICES}/models/r0000-0abc").json()
    assert shown["metrics"] == {"rmse": 2.5}


# -- agreement -------------------------------------------------------------------------------------


def test_agreement_on_numbers_by_hand(client: httpx.Client) -> None:
    for who, values in {"ann": [1.0, 5.0], "bob": [2.0, 5.5], "cat": [3.0, 9.0]}.items():
        for item, value in zip(ROWS, values if who != "cat" else values[:1], strict=False):
            say(client, who, value, item)
    say(client, "dan", 50.0, ROWS[2])  # nobody to agree with
    shown = client.get(f"{PRICES}/metrics").json()["agreement"]
    # pairs: 1-2, 1-3, 2-3 (none within 0.5), 5-5.5 (within)
    assert (shown["items"], shown["pairs"], shown["observed"]) == (2, 4, 0.25)
    # ordered squares: item 0: 2(1+4+1) = 12, over 2 -> 6; item 1: 2 * 0.25 = 0.5, over 1 -> 0.5
    # pooled 1, 2, 3, 5, 5.5: sum 16.5, squares 69.25: 2(5 * 69.25 - 16.5^2) = 148, over 4 -> 37
    assert shown["alpha"] == pytest.approx(1 - 6.5 / 37)


def test_interval_alpha_equals_its_definition() -> None:
    rng = np.random.default_rng(5)
    labels = [(f"i{n % 7}", float(v)) for n, v in enumerate(rng.normal(50, 9, size=25))]
    units: dict[str, list[float]] = {}
    for item, value in labels:
        units.setdefault(item, []).append(value)
    paired = [unit for unit in units.values() if len(unit) > 1]
    pooled = [value for unit in paired for value in unit]
    observed = sum((a - b) ** 2 / (len(u) - 1) for u in paired for a, b in permutations(u, 2))
    expected = sum((a - b) ** 2 for a, b in permutations(pooled, 2)) / (len(pooled) - 1)
    made = agreement_of(labels, numbers=True)
    assert made["alpha"] == pytest.approx(1 - observed / expected, rel=1e-12)
    huge = [(item, value * 1e300) for item, value in labels]
    assert agreement_of(huge, numbers=True)["alpha"] == pytest.approx(made["alpha"], rel=1e-9)


@pytest.mark.parametrize(
    ("labels", "alpha"),
    [
        ([("a", 1.0), ("a", 1.0), ("b", 2.0), ("b", 2.0)], 1.0),
        ([("a", 1.0), ("a", 1.0)], None),  # nothing to differ from
        ([("a", 1.0), ("b", 2.0)], None),
        ([], None),
    ],
)
def test_alpha_at_its_ends(labels: list[tuple[str, float]], alpha: float | None) -> None:
    assert agreement_of(labels, numbers=True)["alpha"] == alpha


# -- rounds ----------------------------------------------------------------------------------------


def body(**changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": "p",
        "task": {**TASK, "features": FEATURES, "low": 0, "high": 60},
        "model": {"network": "mlp", "params": {"widths": [8]}, "members": 2},
        "learner": {"name": "supervised", "steps": 100, "batch": 16, "epoch_steps": 25, "lr": 0.01},
        "strategy": "random",
        "initial": {"count": 20},
        "batch_size": 6,
    }
    return {**made, **changes}


def numbers(count: int) -> dict[str, tuple[list[float], float]]:
    """Return rows by id, each with its number between 0 and 60."""
    x = np.random.default_rng(1).normal(size=(count, len(FEATURES)))
    y = np.clip(30 + 8 * x[:, 0] - 4 * x[:, 1], 0, 60)
    return {f"row-{n:03d}": (x[n].tolist(), float(y[n])) for n in range(count)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a storage root with a project whose first round is done."""
    root = tmp_path_factory.mktemp("numbers")
    items = numbers(80)
    with Ledger(root) as ledger:
        create_project(ledger, body(), prefixes=NOTHING)
        new = [PushedItem(i, features=x) for i, (x, _) in items.items()]
        assert push_items(ledger, "p", new, prefixes=NOTHING).created == 80
        assert work(ledger).state == "done"
        chosen = ledger.open_items("p")
        ledger.label("p", "ann", [LabelEntry(i, items[i][1]) for i in chosen])
        done = work(ledger)
        assert done.state == "done", done.error
    return root


def test_predictions_are_means_with_variances(trained: Path) -> None:
    items = numbers(80)
    predictor = Predictor(trained)
    try:
        made = predictor.predict("p", items=list(items))
        truth = np.array([y for _, y in items.values()])
        means = np.array([p.mean for p in made])
        assert np.sqrt(((means - truth) ** 2).mean()) < 0.5 * truth.std()
        assert all(p.probs is None and p.variance is not None and p.variance > 0 for p in made)
        assert [p.label for p in made] == [min(max(float(m), 0.0), 60.0) for m in means]
        far = predictor.predict("p", inputs=[{"features": [90.0, 0.0, 0.0, 0.0]}])
        assert far[0].mean is not None and far[0].mean > 60.0 and far[0].label == 60.0
        answer = predictor.answer({"project": "p", "items": list(items)[:1]})
        (shown,) = answer["predictions"]
        assert shown == json.loads(json.dumps(shown))
        assert set(shown) == {"item", "label", "probs", "mean", "variance"}
    finally:
        predictor.close()


def test_a_strategy_of_classes_is_refused_when_the_project_is_made(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        with pytest.raises(NeedsError, match="predicts a number"):
            create_project(ledger, body(strategy="entropy"), prefixes=NOTHING)
        assert ledger.projects() == []


def test_what_is_predicted_does_not_change(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        create_project(ledger, body(), prefixes=NOTHING)
        for patch in (
            {"task": {"target": "class", "classes": ["a", "b"], "low": None, "high": None}},
            {"task": {"low": 5}},
            {"task": {"high": 50}},
        ):
            with pytest.raises(ConflictError, match=r"task\."):
                patch_project(ledger, "p", patch, version=1)
        row = patch_project(ledger, "p", {"batch_size": 3, "task": {"low": -5}}, version=1)
        assert (row.settings["task"]["low"], row.settings["task"]["high"]) == (-5.0, 60.0)
        row = patch_project(ledger, "p", {"task": {"high": None}}, version=2)
        assert "high" not in row.settings["task"]


def test_a_project_of_numbers_over_http(client: httpx.Client) -> None:
    made = client.post("/v1/projects", json=body(name="new", auto={"start": False}))
    assert made.status_code == 201, made.text
    assert made.json()["labels"] == {"kind": "number", "low": 0.0, "high": 60.0}
    again = client.post("/v1/projects", json=body(name="new", auto={"start": False}))
    assert again.json() == made.json()
    wrong = client.post("/v1/projects", json=body(name="x", strategy="entropy"))
    assert "number" in problem(wrong, 422, "validation")["detail"]


# -- the client and the shell ----------------------------------------------------------------------


@pytest.fixture
def remote(
    prices: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    return shell(prices, monkeypatch, capsys)


def test_numbers_from_the_shell(remote: Run, prices: Service, tmp_path: Path) -> None:
    assert remote("label", "prices", ROWS[0], "1.5e1")[0] == 0
    file = tmp_path / "labels.csv"
    file.write_text(f"id,label\n{ROWS[1]},2\n{ROWS[2]}, 3.25\n")
    assert remote("label", "prices", "--from", file)[0] == 0
    assert [row.value for row in prices.ledger.labels("prices")] == [15.0, 2.0, 3.25]
    for wrong in ("cat", "", "nan", "200"):
        code, _, err = remote("label", "prices", ROWS[3], wrong)
        assert code == 2 and f"item '{ROWS[3]}'" in err
    assert len(prices.ledger.labels("prices")) == 3
