"""The verbs of ``rayal remote`` against the service, and what they refuse."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from api_cases import CLASSES, Run, Service, png, service, shell
from PIL import Image

from rayal.cli.app import main
from rayal.service import auth
from rayal.service.worker.process import perform

IMAGES: dict[str, Any] = {
    "name": "new",
    "task": {"kind": "image", "classes": CLASSES, "size": [8, 8], "channels": 1},
    "strategy": "margin",
    "initial": {"count": 2},
    "auto": {"start": False},
}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path / "root") as made:
        yield made


@pytest.fixture
def remote(
    made: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    return shell(made, monkeypatch, capsys)


def told(done: tuple[int, str, str]) -> Any:
    assert done[0] == 0, done
    return json.loads(done[1])


def test_a_label_from_lease_to_history(remote: Run, made: Service) -> None:
    held = told(remote("lease", "birds", "--annotator", "ann", "--count", "2", "--json"))["leases"]
    item = held[0]["item"]["id"]
    assert told(remote("label", "birds", item, "cat", "--annotator", "ann", "--json")) == [
        {"item": item, "key": held[0]["item"]["key"], "status": "accepted", "late": False,
         "label_id": 1, "detail": None}
    ]  # fmt: skip
    other = held[1]["item"]["id"]
    skipped = told(remote("skip", "birds", other, "--annotator", "ann", "--reason", "?", "--json"))
    assert skipped["status"] == "skipped"
    assert [row.value for row in made.ledger.labels("birds", limit=1)] == ["cat"]
    assert "cat" in json.dumps(told(remote("why", "birds", item, "--json"))["history"])
    status = told(remote("status", "birds", "--json"))
    assert status["counts"]["labeled"] == 1 and status["rounds"][0]["n"] == -1


def test_labels_of_a_file(remote: Run, tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("id,label\nrow/00,cat\nrow/01,cow\n")
    code, out, err = remote("label", "birds", "--from", file)
    assert code == 2 and "1 of 2 labels were rejected" in err
    assert "accepted" in out and "cow" in out
    file.write_text("id,label\nrow/02,cat\nrow/02,dog\n")
    assert "labels item 'row/02' twice" in remote("label", "birds", "--from", file)[2]
    file.write_text("item,label\nrow/02,cat\n")
    assert "has no column 'id'" in remote("label", "birds", "--from", file)[2]
    file.write_bytes("id,label\nrow/02,é\n".encode("latin-1"))
    assert "is not UTF-8 text" in remote("label", "birds", "--from", file)[2]
    file.write_text("id,label\nrow/02,cat\n", encoding="utf-8-sig")
    assert remote("label", "birds", "--from", file)[0] == 0


def test_a_project_and_its_images(remote: Run, made: Service, tmp_path: Path) -> None:
    settings = tmp_path / "new.yaml"
    settings.write_text(yaml.safe_dump(IMAGES))
    assert told(remote("create", settings, "--json"))["name"] == "new"
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    for shade in range(3):
        Image.new("L", (8, 8), 40 * shade).save(folder / f"{shade}.png")
    (folder / "notes.txt").write_text("no image")
    assert told(remote("push", "new", tmp_path / "images", "--json"))["created"] == 3
    lines = tmp_path / "more.jsonl"
    lines.write_text(json.dumps({"id": "b", "data": png(250)}))
    assert told(remote("push", "new", lines, "--json"))["created"] == 1
    job = told(remote("close", "new", "--reason", "first", "--json"))
    claimed = made.ledger.claim_job("test", kinds=["round"])
    assert claimed is not None and perform(made.ledger, claimed, "test")
    assert told(remote("jobs", job["job"], "--json"))[0]["state"] == "done"
    assert len(told(remote("lease", "new", "--count", "9", "--json"))["leases"]) == 2
    names = [row["name"] for row in told(remote("projects", "--json"))]
    assert names == ["birds", "new"]


def test_rows_of_a_table(remote: Run, made: Service, tmp_path: Path) -> None:
    settings = tmp_path / "rows.yaml"
    task = {"kind": "table", "classes": CLASSES, "features": ["x", "y"]}
    settings.write_text(yaml.safe_dump({**IMAGES, "task": task}))
    assert remote("create", settings)[0] == 0
    rows = tmp_path / "rows.csv"
    rows.write_text("name,x,y\na,1,2\nb,0.5,-1e3\n")
    assert told(remote("push", "new", rows, "--id", "name", "--json"))["created"] == 2
    rows.write_text("name,x,y\nc,1,high\n")
    assert "line 2" in remote("push", "new", rows, "--id", "name")[2]
    assert "neither a folder" in remote("push", "new", tmp_path / "rows.txt")[2]


def test_models_and_predictions(remote: Run, made: Service) -> None:
    info = {"labels": 8, "metrics": {"accuracy": 0.5}}
    made.ledger.commit_model("birds", "r0000-abcd", 0, "abcd", info)
    code, out, _ = remote("models", "birds")
    assert code == 0 and "r0000-abcd" in out and "0.5000" in out
    assert "0.5000" in remote("predict", "birds", "row/00")[1]
    said = told(remote("predict", "birds", "row/00", "row/01", "--json"))
    assert [row["item"] for row in said] == ["row/00", "row/01"]


def test_tokens(remote: Run, made: Service) -> None:
    token = told(remote("token", "create", "tool", "--scope", "project:birds:read", "--json"))
    assert token["token"].startswith("ryl_")
    code, out, _ = remote("token", "list")
    assert code == 0 and "tool" in out and token["token"] not in out
    assert remote("token", "revoke", token["token_id"])[0] == 0
    assert made.ledger.tokens()[-1].revoked is not None


def test_what_is_refused(remote: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = remote("rounds", "nothing")
    assert code == 2 and "404 not-found: project 'nothing' does not exist" in err
    assert "--from LABELS.csv" in remote("label", "birds", "row/00")[2]
    monkeypatch.setenv("RAYAL_TOKEN", auth.new_token())
    assert "401 unauthenticated" in remote("projects")[2]


def test_no_token(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAYAL_TOKEN", raising=False)
    monkeypatch.setattr(sys, "argv", ["rayal", "remote", "projects"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "set RAYAL_TOKEN" in capsys.readouterr().err
