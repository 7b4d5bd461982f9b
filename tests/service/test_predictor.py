"""Predictions of versions: equal to the committee's own, for items and for what is sent."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_cases import (
    CLASSES,
    NOTHING,
    answer,
    body,
    png,
    project,
    rows,
    work,
)

from rayal import select
from rayal.engine.project import Project
from rayal.errors import (
    NeedsError,
    PoolError,
    RayalError,
    SettingsError,
    StorageError,
    UnknownNameError,
)
from rayal.ledger import LabelEntry, Ledger
from rayal.pool.reader import Pool
from rayal.service import predictor as module
from rayal.service.creation import create_project
from rayal.service.inbox import PushedItem, push_items, stage
from rayal.service.predictor import Predictor

ITEMS = rows(60)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a storage root with a project of two versions."""
    made = tmp_path_factory.mktemp("predictor")
    ledger = project(made, ITEMS, model={"network": "mlp", "params": {"widths": [8]}, "members": 2})
    work(ledger)
    for _ in range(2):
        answer(ledger, ITEMS)
        assert work(ledger).state == "done"
    create_project(ledger, body("empty"), prefixes=NOTHING)
    ledger.close()
    return made


@pytest.fixture
def predictor(root: Path) -> Iterator[Predictor]:
    made = Predictor(root)
    yield made
    made.close()


def test_a_version_answers_as_its_committee_did(predictor: Predictor, root: Path) -> None:
    import torch

    from rayal.tasks import task_from_json

    ids = list(ITEMS)[5:25]
    made = predictor.predict("p", items=ids)
    assert [p.item for p in made] == ids
    ledger = predictor.ledger
    served = Project(ledger, "p")
    committee = served.committee(1)  # what the round itself trained
    info = ledger.models("p")[-1].info
    task = task_from_json(info["task"])
    x = task.transform(task.decode(served.pool.take(ids)), committee.statistics)
    with torch.no_grad():
        each = torch.stack([committee.net(m)(x).double().softmax(dim=1) for m in (0, 1)])
    expected = each.mean(dim=0).numpy()
    assert np.allclose([p.probs or () for p in made], expected, atol=2e-6)
    assert [p.label for p in made] == [CLASSES[i] for i in expected.argmax(axis=1)]


def test_items_and_the_same_content_sent_agree(predictor: Predictor) -> None:
    ids = list(ITEMS)[:10]
    by_id = predictor.predict("p", items=ids)
    sent: list[dict[str, Any]] = [{"features": ITEMS[i][0]} for i in ids]
    sent[3]["id"] = "mine"
    by_content = predictor.predict("p", inputs=sent)
    assert [p.probs for p in by_content] == [p.probs for p in by_id]
    assert [p.item for p in by_content] == [None, None, None, "mine", *[None] * 6]
    one = predictor.predict("p", items=ids[2:3])
    assert one == by_id[2:3]  # whatever stands beside it
    assert predictor.predict("p", items=[]) == predictor.predict("p", inputs=[]) == []


def test_versions_differ_and_the_active_one_is_the_default(predictor: Predictor) -> None:
    first, last = (row.version for row in predictor.ledger.models("p"))
    ids = list(ITEMS)[:5]
    old, new = (predictor.predict("p", v, items=ids) for v in (first, last))
    assert old != new and predictor.predict("p", items=ids) == new
    assert predictor.answer({"project": "p", "model": "active", "items": ids})["model"] == last
    predictor.ledger.activate_model("p", first)
    assert predictor.predict("p", items=ids) == old
    told = predictor.answer({"project": "p", "items": ids[:1]})
    predictor.ledger.activate_model("p", last)
    assert told == {
        "model": first,
        "predictions": [
            {
                **{"item": ids[0], "label": old[0].label, "probs": old[0].probs},
                **{"mean": None, "variance": None},
            }
        ],
    }


def test_only_some_committees_stay_loaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOADED", 1)
    predictor = Predictor(root)
    first, last = (row.version for row in predictor.ledger.models("p"))
    one = predictor.version("p", first)
    assert predictor.version("p", first) is one
    predictor.version("p", last)
    assert predictor.version("p", first) is not one
    predictor.close()


def test_many_threads_may_ask(predictor: Predictor) -> None:
    ids = list(ITEMS)[:20]
    expected = predictor.predict("p", items=ids)
    found: list[bool] = []

    def ask() -> None:
        found.append(predictor.predict("p", items=ids) == expected)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 6


def test_what_cannot_be_answered_says_why(predictor: Predictor) -> None:
    with pytest.raises(NeedsError, match="no model yet"):
        predictor.predict("empty", items=["a"])
    with pytest.raises(UnknownNameError, match="'nobody' does not exist"):
        predictor.predict("nobody", items=["a"])
    with pytest.raises(UnknownNameError, match="r9999"):
        predictor.predict("p", "r9999-abcd", items=["row-0001"])
    with pytest.raises(UnknownNameError, match="row-9999"):
        predictor.predict("p", items=["row-9999"])
    with pytest.raises(PoolError, match=r"inputs\[1\]: .*4 numbers"):
        predictor.predict("p", inputs=[{"features": [1, 2, 3, 4]}, {"features": [1]}])
    for given in ({}, {"items": ["row-0001"], "inputs": []}):
        with pytest.raises(SettingsError, match="either items or inputs"):
            predictor.predict("p", **given)  # type: ignore[arg-type]


def test_weights_that_are_gone_are_a_storage_error(tmp_path: Path) -> None:
    ledger = project(tmp_path, ITEMS)
    work(ledger)
    answer(ledger, ITEMS)
    work(ledger)
    for path in (tmp_path / "models").rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(StorageError, match="is missing"):
        Predictor(tmp_path).predict("p", items=["row-0001"])


@pytest.mark.parametrize("raw", [False, True])
def test_images_are_predicted_from_files_of_any_pool(raw: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    task = {"kind": "image", "classes": CLASSES, "size": [8, 8], "channels": 1}
    asked = body(task=task, initial={"count": 9}, batch_size=3)
    ids = [f"i{n}" for n in range(20)]
    values = rng.integers(0, 255, len(ids)).tolist()
    if raw:
        pixels = np.array([np.full((8, 8), v, np.uint8) for v in values])
        Pool.from_arrays(tmp_path, "raw", pixels, ids=ids)
        asked["pool"] = "raw"
    ledger = Ledger(tmp_path)
    create_project(ledger, asked, prefixes=NOTHING)
    if not raw:
        given = [PushedItem(i, png(v)) for i, v in zip(ids, values, strict=True)]
        push_items(ledger, "p", given, prefixes=NOTHING)
    work(ledger)
    said = [LabelEntry(i, CLASSES[n % 3]) for n, i in enumerate(ledger.open_items("p"))]
    ledger.label("p", "ann", said)
    assert work(ledger).state == "done"
    predictor = Predictor(tmp_path)
    sent = [{"data": base64.b64encode(png(v)).decode()} for v in values]
    by_id = predictor.predict("p", items=ids)
    assert [p.probs for p in predictor.predict("p", inputs=sent)] == [p.probs for p in by_id]
    large = base64.b64encode(png(1, (9, 9))).decode()
    if raw:
        with pytest.raises(PoolError, match=r"inputs\[0\]: the image is 9 x 9"):
            predictor.predict("p", inputs=[{"data": large}])
    else:
        assert len(predictor.predict("p", inputs=[{"data": large}])) == 1


def test_a_job_writes_predictions_to_a_file(root: Path, predictor: Predictor) -> None:
    ledger = Ledger(root)
    ids = [*list(ITEMS)[:300], "nobody"]
    job = work(ledger, kind="predict", items=ids, model=None)
    assert job.state == "done", job.error
    assert (job.result["rows"], job.result["errors"]) == (61, 1)
    assert job.result["file"] == f"results/{job.job}.jsonl"
    lines = [json.loads(line) for line in (root / job.result["file"]).read_text().splitlines()]
    expected = predictor.predict("p", items=ids[:-1])
    assert [line["item"] for line in lines] == ids
    assert [line.get("probs") for line in lines[:-1]] == [list(p.probs or ()) for p in expected]
    assert "nobody" in lines[-1]["error"]
    assert not list((root / "results").glob(f"{job.job}.jsonl.*"))


def test_a_job_predicts_what_a_staged_file_holds(root: Path) -> None:
    ledger = Ledger(root)
    given = [
        {"features": ITEMS["row-0003"][0], "id": "mine"},
        {"item": "row-0003"},
        {"features": [1]},
    ]
    name = stage(root, ["\n".join([*map(json.dumps, given), "?"]).encode()], limit=10_000)
    job = work(ledger, kind="predict", file=name, model="active")
    assert job.state == "done", job.error
    lines = [json.loads(line) for line in (root / job.result["file"]).read_text().splitlines()]
    assert [line["item"] for line in lines] == ["mine", "row-0003", None, None]
    assert lines[0]["probs"] == lines[1]["probs"]
    assert "4 numbers" in lines[2]["error"] and "one of data" in lines[3]["error"]


def test_a_query_is_select(root: Path, predictor: Predictor) -> None:
    rng = np.random.default_rng(1)
    log_probs = np.log(rng.dirichlet(np.ones(3), size=40))
    embedding = rng.normal(size=(40, 5))
    ids = [f"x{i}" for i in range(40)]
    columns = {"log_probs": log_probs, "embedding": embedding}
    asked = {n: c.tolist() for n, c in columns.items()}
    for strategy, params in (("margin", {}), ("badge", {"candidates": 30})):
        told = predictor.query(
            {
                "strategy": {"name": strategy, **params},
                "columns": asked,
                "k": 4,
                "ids": ids,
                "seed": 7,
            }
        )
        expected = select(strategy, columns, 4, ids=ids, params=params, seed=7)
        assert [p["id"] for p in told["picks"]] == list(expected.ids)
        assert [p["position"] for p in told["picks"]] == expected.positions.tolist()
        assert [p["score"] for p in told["picks"]] == expected.scores.tolist()
        assert (told["approximation"] is None) == (strategy == "margin")
        json.dumps(told)
    labeled = {"embedding": embedding[:3].tolist()}
    told = predictor.query({"strategy": "coreset", "columns": asked, "k": 2, "labeled": labeled})
    same = select("coreset", columns, 2, labeled={"embedding": embedding[:3]})
    assert [p["position"] for p in told["picks"]] == same.positions.tolist()


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"strategy": "margin", "k": 1},
        {"strategy": "margin", "columns": {"log_probs": [[0.0]]}},
        {"strategy": "magic", "columns": {"log_probs": [[0.0]]}, "k": 1},
        {"strategy": "margin", "columns": {"log_probs": [[0.0], [0.0, 0.0]]}, "k": 1},
        {"strategy": "margin", "columns": {"log_probs": "x"}, "k": 1},
        {"strategy": "margin", "columns": {"log_probs": [["x"]]}, "k": 1},
        {"strategy": "margin", "columns": {"log_probs": [[0.0]]}, "k": 1, "module": "os"},
        {"strategy": "margin", "columns": {"log_probs": [[0.0]]}, "k": "many"},
        {"strategy": ["margin"], "columns": {"log_probs": [[0.0]]}, "k": 1},
    ],
)
def test_a_query_that_makes_no_sense(given: dict[str, Any], predictor: Predictor) -> None:
    with pytest.raises(SettingsError):
        predictor.query(given)


@pytest.mark.parametrize(
    ("strategy", "columns"),
    [
        ("entropy", {"log_probs": [0.1, 0.2]}),
        ("badge", {"log_probs": [[-0.7, -0.7]], "embedding": [[1.0], [2.0]]}),
        ("batchbald", {"member_log_probs": [[-0.7, -0.7]]}),
    ],
)
def test_columns_of_other_shapes_are_an_error_that_names_them(
    predictor: Predictor, strategy: str, columns: dict[str, Any]
) -> None:
    with pytest.raises(RayalError, match=r"columns of shapes|column|must be"):
        predictor.query({"strategy": strategy, "columns": columns, "k": 1})
