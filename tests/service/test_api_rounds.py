from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from api_cases import Service, problem, service

import rayal
from rayal.ledger import LabelEntry

ROUNDS, CLOSE = "/v1/projects/birds/rounds", "/v1/projects/birds/rounds:close"
MODELS = "/v1/projects/birds/models"
PREDICT = "/v1/projects/birds/predictions"


@pytest.fixture
def birds(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path) as made:
        yield made


@pytest.fixture
def client(birds: Service) -> Iterator[httpx.Client]:
    with birds.client() as made:
        yield made


def answered(birds: Service, *labels: tuple[str, str, str]) -> None:
    for annotator, item, value in labels:
        birds.ledger.label("birds", annotator, [LabelEntry(item, value)])


def trained(birds: Service, round: int = 0, *, accuracy: float = 0.5) -> None:
    """Let a round have trained and evaluated a model, without choosing the next items."""
    ledger = birds.ledger
    seq = ledger.labels_seq("birds")
    ledger.begin_round("birds", round, snapshot=1, labels_seq=seq, seeds={})
    ledger.finish_stage("birds", round, "prepare", {"labels": 2}, seconds=0.5)
    ledger.finish_stage("birds", round, "train", {"model": f"{round}abc"}, seconds=1.5)
    metrics = {"accuracy": accuracy, "ece": 0.25}
    ledger.finish_stage("birds", round, "evaluate", {"metrics": metrics}, seconds=0.25)
    info = {"labels": 2, "metrics": metrics}
    ledger.commit_model("birds", f"r{round:04d}-{round}abc", round, f"{round}abcdef", info)


def test_the_first_choice_is_a_round_that_is_labeled(birds: Service, client: httpx.Client) -> None:
    birds.ledger.lease("birds", "bob", 1)
    answered(birds, ("ada", "row/05", "cat"))
    (first,) = client.get(ROUNDS).json()["rounds"]
    assert first == client.get(f"{ROUNDS}/-1").json()
    assert first == {
        "n": -1,
        "stage": "label",
        "wanted": 8,
        "offered": 6,
        "leased": 1,
        "labeled": 1,
        "skipped": 0,
        "conflict": 0,
        "labels": 0,
        "model": None,
        "metrics": {},
        "error": None,
    }
    problem(client.get(f"{ROUNDS}/0"), 404, "not-found")
    problem(client.get(f"{ROUNDS}/-2"), 404, "not-found")


def test_a_round_tells_the_stage_that_it_is_at(birds: Service, client: httpx.Client) -> None:
    answered(birds, ("ada", "row/00", "cat"))
    ledger = birds.ledger
    ledger.begin_round("birds", 0, snapshot=1, labels_seq=1, seeds={})
    stages = []
    for stage in ("prepare", "train", "evaluate", "scan"):
        stages.append(client.get(f"{ROUNDS}/0").json()["stage"])
        ledger.finish_stage("birds", 0, stage, {"labels": 1}, seconds=0.0)
    stages.append(client.get(f"{ROUNDS}/0").json()["stage"])
    ledger.finish_stage("birds", 0, "select", {"picks": 8}, seconds=0.0)
    stages.append(client.get(f"{ROUNDS}/0").json()["stage"])
    assert stages == ["prepare", "train", "evaluate", "scan", "select", "label"]
    assert client.get(f"{ROUNDS}/-1").json()["stage"] == "done"


def test_a_failed_round_shows_the_error_until_it_is_retried(
    birds: Service, client: httpx.Client
) -> None:
    answered(birds, ("ada", "row/00", "cat"))
    job = client.post(CLOSE, json={}).json()["job"]["job"]
    ledger = birds.ledger
    ledger.begin_round("birds", 0, snapshot=1, labels_seq=1, seeds={})
    assert ledger.claim_job("me") is not None
    ledger.fail_job(job, "me", "out of memory")
    shown = client.get(f"{ROUNDS}/0").json()
    assert (shown["stage"], shown["error"]) == ("failed", "out of memory")
    assert client.get(f"/v1/jobs/{job}").json()["error"] == "out of memory"
    answer = client.post(f"/v1/jobs/{job}:retry")
    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job}")
    assert client.get(f"{ROUNDS}/0").json()["stage"] == "prepare"


def test_closing_a_round_is_idempotent_while_it_closes(
    birds: Service, client: httpx.Client
) -> None:
    problem(client.post(CLOSE, json={}), 409, "conflict")
    answered(birds, ("ada", "row/30", "cat"))  # which was never offered
    problem(client.post(CLOSE, json={}), 409, "conflict")
    answered(birds, ("ada", "row/00", "cat"))
    problem(client.post(CLOSE, json={"min_labels": 2}), 409, "conflict")
    one, two = (client.post(CLOSE, json={"reason": "x", "min_labels": 1}) for _ in "ab")
    assert (one.status_code, two.status_code) == (202, 202)
    assert one.json() == two.json()
    assert one.headers["location"] == f"/v1/jobs/{one.json()['job']['job']}"
    assert [job.kind for job in birds.ledger.jobs("birds")] == ["round"]


def test_models_are_listed_and_activated(birds: Service, client: httpx.Client) -> None:
    answered(birds, ("ada", "row/00", "cat"))
    problem(client.get(f"{MODELS}/r0000-0abc"), 404, "not-found")
    trained(birds, 0)
    trained(birds, 1, accuracy=0.75)
    one, two = client.get(MODELS).json()["models"]
    assert (one["version"], one["active"], two["active"]) == ("r0000-0abc", False, True)
    assert (two["labels"], two["metrics"]["accuracy"]) == (2, 0.75)
    assert client.post(f"{MODELS}/r0000-0abc:activate").json()["active"] is True
    assert client.get(f"{MODELS}/r0000-0abc").json()["active"] is True
    assert client.get(f"{MODELS}/r0001-1abc").json()["active"] is False
    problem(client.post(f"{MODELS}/r0009-dead:activate"), 404, "not-found")
    assert client.get("/v1/projects/birds").json()["model"] == "r0000-0abc"


def test_a_lease_carries_what_the_active_model_says(birds: Service, client: httpx.Client) -> None:
    answered(birds, ("ada", "row/07", "cat"))
    trained(birds)
    said = [("row/00", "dog", [0.25, 0.75, 0.0])]
    birds.ledger.commit_suggestions("birds", "r0000-0abc", said)
    body = {"annotator": "ada", "count": 2}
    first, second = client.post("/v1/projects/birds/leases", json=body).json()["leases"]
    assert first["suggestion"] == {
        "label": "dog",
        "probs": [0.25, 0.75, 0.0],
        "mean": None,
        "variance": None,
        "model_version": "r0000-0abc",
    }
    assert second["suggestion"] is None


def test_the_learning_curve_and_agreement(birds: Service, client: httpx.Client) -> None:
    empty = client.get("/v1/projects/birds/metrics").json()
    assert (empty["curve"], empty["agreement"]["alpha"]) == ([], None)
    answered(birds, ("ada", "row/00", "cat"), ("bob", "row/00", "cat"), ("ada", "row/01", "cat"))
    answered(birds, ("bob", "row/01", "dog"), ("ada", "row/02", "dog"), ("ada", "row/02", "owl"))
    trained(birds, 0)
    trained(birds, 1, accuracy=0.75)
    shown = client.get("/v1/projects/birds/metrics").json()
    assert [(p["round"], p["labels"], p["metrics"]["accuracy"]) for p in shown["curve"]] == [
        (0, 2, 0.5),
        (1, 2, 0.75),
    ]
    assert shown["curve"][0]["seconds"] == {"prepare": 0.5, "train": 1.5, "evaluate": 0.25}
    assert shown["curve"][0]["model"] == "r0000-0abc"
    assert shown["annotators"] == {"ada": 3, "bob": 2}
    assert shown["agreement"]["items"] == 2
    assert shown["agreement"]["observed"] == 0.5
    assert shown["agreement"]["alpha"] == pytest.approx(0.0)  # by hand: 1 - 3 * 2 / 6
    assert shown["counts"]["labeled"] == 3


def test_predictions_are_forwarded_and_more_become_a_job(
    birds: Service, client: httpx.Client
) -> None:
    problem(client.post(PREDICT, json={"items": ["row/00"]}), 409, "conflict")
    answered(birds, ("ada", "row/00", "cat"))
    trained(birds)
    answer = client.post(PREDICT, json={"items": ["row/00", "row/01"]}).json()
    assert answer["model"] == "r0000-0abc"
    assert [p["item"] for p in answer["predictions"]] == ["row/00", "row/01"]
    assert birds.asked[-1] == {
        "project": "birds",
        "model": "r0000-0abc",
        "items": ["row/00", "row/01"],
    }
    inputs = [{"features": [1.0, 2.0, 3.0]}, {"features": {"x0": 1.0}, "id": "mine"}]
    answer = client.post(PREDICT, json={"inputs": inputs, "model": "r0000-0abc"}).json()
    assert [p["item"] for p in answer["predictions"]] == [None, "mine"]
    assert birds.asked[-1]["inputs"] == inputs
    problem(client.post(PREDICT, json={"items": ["a"], "model": "r9"}), 404, "not-found")
    wrong: list[dict[str, Any]] = [{}, {"items": []}, {"inputs": inputs * 129}]
    for body in [*wrong, {"items": ["a"], "inputs": inputs}]:
        problem(client.post(PREDICT, json=body), 422, "validation")
    many = [f"row/{i % 40:02d}" for i in range(257)]
    later = client.post(PREDICT, json={"items": many}, headers={"Idempotency-Key": "many"})
    again = client.post(PREDICT, json={"items": many}, headers={"Idempotency-Key": "many"})
    assert (later.status_code, again.json()) == (202, later.json())
    (job,) = birds.ledger.jobs("birds")
    assert (job.kind, job.args) == ("predict", {"items": many, "model": "r0000-0abc"})
    path = later.headers["location"]
    problem(client.get(f"{path}/result"), 409, "conflict")
    assert birds.ledger.claim_job("me") is not None
    birds.ledger.finish_job(job.job, "me", {"file": f"results/{job.job}.jsonl"})
    problem(client.get(f"{path}/result"), 404, "not-found")
    folder = Path(birds.ledger.root) / "results"
    folder.mkdir()
    (folder / f"{job.job}.jsonl").write_text('{"item": "row/00"}\n')
    result = client.get(f"{path}/result")
    assert [json.loads(line) for line in result.text.splitlines()] == [{"item": "row/00"}]


def test_replicas_that_do_not_answer_are_not_ready(birds: Service) -> None:
    async def late(body: Any) -> Any:
        raise TimeoutError

    answered(birds, ("ada", "row/00", "cat"))
    trained(birds)
    with birds.changed(predict=late) as changed, changed.client() as client:
        answer = client.post(PREDICT, json={"items": ["row/00"]})
    problem(answer, 503, "not-ready")
    assert int(answer.headers["retry-after"]) > 0


def test_jobs_are_listed_cancelled_and_kept_apart(birds: Service, client: httpx.Client) -> None:
    birds.pictures()
    mine = [birds.ledger.add_job("birds", "predict", {"n": i}, once=False).job for i in range(3)]
    other = birds.ledger.add_job("pictures", "round", {}).job
    assert [j["job"] for j in client.get("/v1/jobs").json()["jobs"]] == [*mine, other]
    page = client.get("/v1/jobs", params={"limit": 2}).json()
    rest = client.get("/v1/jobs", params={"limit": 2, "cursor": page["next"]}).json()
    assert [j["job"] for j in page["jobs"] + rest["jobs"]] == [*mine, other]
    answer = client.delete(f"/v1/jobs/{mine[0]}")
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    cancelled = client.get("/v1/jobs", params={"state": "cancelled", "project": "birds"}).json()
    assert [j["job"] for j in cancelled["jobs"]] == [mine[0]]
    problem(client.get(f"/v1/jobs/{'0' * 32}"), 404, "not-found")
    with birds.client(birds.token("project:birds:read")) as reader:
        assert [j["job"] for j in reader.get("/v1/jobs").json()["jobs"]] == mine
        for limit in (1, 2):
            seen: list[str] = []
            cursor = None
            while cursor is not None or not seen:
                params = {"limit": limit} | ({"cursor": cursor} if cursor else {})
                page = reader.get("/v1/jobs", params=params).json()
                seen += [j["job"] for j in page["jobs"]]
                cursor = page["next"]
            assert seen == mine
        problem(reader.get(f"/v1/jobs/{other}"), 403, "forbidden")
        problem(reader.get("/v1/jobs", params={"project": "pictures"}), 403, "forbidden")
        problem(reader.delete(f"/v1/jobs/{mine[1]}"), 403, "forbidden")
    assert birds.ledger.claim_job("me") is not None
    birds.ledger.finish_job(mine[1], "me", {})
    problem(client.post(f"/v1/jobs/{mine[1]}:retry"), 409, "conflict")


def test_a_stateless_query_chooses_as_select_does(birds: Service, client: httpx.Client) -> None:
    rows = [[-0.1, -2.4], [-0.6, -0.8], [-1.2, -0.36], [-0.69, -0.7]]
    body: dict[str, Any] = {
        "strategy": "margin",
        "columns": {"log_probs": rows},
        "k": 2,
        "ids": list("abcd"),
    }
    answer = client.post("/v1/query", json=body)
    assert answer.status_code == 200, answer.text
    chosen = rayal.select("margin", {"log_probs": np.array(rows)}, 2, ids=list("abcd"))
    picks = answer.json()["picks"]
    assert [p["position"] for p in picks] == chosen.positions.tolist()
    assert [p["id"] for p in picks] == list(chosen.ids) == ["d", "b"]
    assert [p["score"] for p in picks] == chosen.scores.tolist()
    problem(client.post("/v1/query", json={**body, "strategy": "nope"}), 404, "not-found")
    problem(client.post("/v1/query", json={**body, "params": {"x": 1}}), 422, "validation")
    problem(
        client.post("/v1/query", json={**body, "columns": {"log_probs": [["a"]]}}),
        422,
        "validation",
    )
    problem(client.post("/v1/query", json={**body, "k": 0}), 422, "validation")
    problem(client.post("/v1/query", json={**body, "ids": ["a"]}), 422, "validation")
    uneven = {**body, "columns": {"log_probs": rows, "embedding": rows[1:]}}
    problem(client.post("/v1/query", json=uneven), 422, "validation")
    assert client.post("/v1/query", json={**body, "k": 2.0}).json() == answer.json()
    limits = replace(birds.backend.limits, query_rows=3)
    with birds.changed(limits=limits) as changed, changed.client() as small:
        problem(small.post("/v1/query", json=body), 413, "too-large")


def test_metrics_count_requests_and_show_the_ledger(birds: Service, client: httpx.Client) -> None:
    answered(birds, ("ada", "row/00", "cat"))
    birds.ledger.add_job("birds", "round", {})
    body = {"labels": [{"item": "row/01", "label": "cat", "annotator": "ada"}]}
    client.post("/v1/projects/birds/labels", json=body)
    client.post("/v1/projects/birds/leases", json={"annotator": "ada", "count": 2})
    client.get("/v1/projects/birds")
    client.get("/nowhere")
    text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    route = 'method="GET",route="/v1/projects/{project}"'
    assert lines[f'rayal_http_requests_total{{{route},status="200"}}'] == "1.0"
    assert lines['rayal_http_requests_total{method="GET",route="unknown",status="404"}'] == "1.0"
    assert lines[f"rayal_http_request_seconds_count{{{route}}}"] == "1.0"
    assert lines['rayal_labels_total{status="accepted"}'] == "1.0"
    assert lines['rayal_leases_total{event="answered"}'] == "2.0"
    assert lines['rayal_items{state="labeled"}'] == "2.0"
    assert lines['rayal_items{state="leased"}'] == "2.0"
    assert lines['rayal_jobs{state="queued"}'] == "1.0"
    assert lines["rayal_ready_items"] == "4.0"
    assert "birds" not in text
