from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from rayal.errors import NeedsError, UnknownNameError
from rayal.service.predictor import answer_all, answered, outcome_of


class Recorder:
    def __init__(self) -> None:
        self.passes: list[list[str]] = []

    def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if body["project"] == "untrained":
            raise NeedsError("no model yet")
        items = body.get("items") or body["inputs"]
        self.passes.append(list(items))
        if "unknown" in items:
            raise UnknownNameError("item 'unknown' does not exist")
        return {"model": body["model"], "predictions": [f"{body['model']}:{i}" for i in items]}


def ask(project: str, model: str, *items: str) -> dict[str, Any]:
    return {"project": project, "model": model, "items": list(items)}


def test_requests_for_one_model_share_a_pass() -> None:
    recorder = Recorder()
    bodies = [ask("p", "r1", "a", "b"), ask("p", "r2", "c"), ask("p", "r1"), ask("p", "r1", "d")]
    made = [answered(outcome)["predictions"] for outcome in answer_all(recorder.answer, bodies)]
    assert made == [["r1:a", "r1:b"], ["r2:c"], [], ["r1:d"]]
    assert recorder.passes == [["a", "b", "d"], ["c"]]


def test_an_unknown_item_spoils_no_other_request() -> None:
    bodies = [ask("p", "r1", "a"), ask("p", "r1", "unknown"), ask("p", "r1", "b")]
    outcomes = answer_all(Recorder().answer, bodies)
    assert answered(outcomes[0])["predictions"] == ["r1:a"]
    assert answered(outcomes[2])["predictions"] == ["r1:b"]
    with pytest.raises(UnknownNameError, match=r"^item 'unknown' does not exist$"):
        answered(outcomes[1])


def test_inputs_are_answered_alone() -> None:
    recorder = Recorder()
    bodies = [{"project": "p", "model": "r1", "inputs": [x]} for x in "xy"]
    made = [answered(outcome)["predictions"] for outcome in answer_all(recorder.answer, bodies)]
    assert made == [["r1:x"], ["r1:y"]]
    assert recorder.passes == [["x"], ["y"]]


def test_an_error_keeps_its_kind_and_its_sentence() -> None:
    with pytest.raises(NeedsError, match=r"^no model yet$"):
        answered(outcome_of(Recorder().answer, ask("untrained", "r1", "a")))
