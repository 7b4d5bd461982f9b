"""Projects of every kind of items and labels that the service knows, each small enough to train."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from api_cases import png

from rayal.service.inbox import PushedItem

COUNT = 60
COLUMNS = ["a", "b", "c", "d"]
WORDS = {"no": "awful broken poor sad", "yes": "fine lovely great happy"}
LEARNER = {"name": "supervised", "steps": 100, "batch": 16, "epoch_steps": 50, "lr": 0.01}
Label = str | float


@dataclass(frozen=True)
class Kind:
    """A kind of project.

    Args:
        name: what it is called in these tests.
        field: what an item's content is called: data, text or features.
        task: of the body that makes a project.
        model: of the same body.
        strategy: of the same body.
        items: id to content and the label that people would give.
        labels: what the project says of its labels.
        content_type: of what is served of an item.
        refused: contents that are none of this kind, as fields of an item.
        wrong: a label that this kind refuses.
    """

    name: str
    field: str
    task: Mapping[str, Any]
    model: Mapping[str, Any]
    items: Mapping[str, tuple[Any, Label]]
    labels: Mapping[str, Any]
    content_type: str
    refused: tuple[Mapping[str, Any], ...]
    wrong: Label
    strategy: str = "margin"

    def body(self, name: str, **changes: Any) -> dict[str, Any]:
        """Return what makes a project of this kind."""
        return {
            "name": name,
            "task": dict(self.task),
            "model": dict(self.model),
            "learner": LEARNER,
            "strategy": self.strategy,
            "initial": {"count": 20},
            "batch_size": 6,
            "auto": {"start": False},
            **changes,
        }  # fmt: skip

    def sent(self, *items: str) -> list[dict[str, Any]]:
        """Return items as clients send them, all by default."""
        return [{"id": i, self.field: self.items[i][0]} for i in items or self.items]

    def pushed(self) -> list[PushedItem]:
        """Return all items as the inbox takes them."""
        made = []
        for item, (content, _) in self.items.items():
            value = base64.b64decode(content) if self.field == "data" else content
            given: dict[str, Any] = {self.field: value}
            made.append(PushedItem(item, **given))
        return made


def _named(contents: list[Any], labels: list[Any]) -> dict[str, tuple[Any, Label]]:
    pairs = zip(contents, labels, strict=True)
    return {f"item/{n:03d}": pair for n, pair in enumerate(pairs)}


def _pictures() -> dict[str, tuple[Any, Label]]:
    return _named([png(200 * (n % 2) + n // 2) for n in range(COUNT)], ["dark", "light"] * 30)


def _rows() -> tuple[list[list[float]], np.ndarray]:
    x = np.random.default_rng(1).normal(size=(COUNT, len(COLUMNS)))
    return x.tolist(), 30 + 8 * x[:, 0] - 4 * x[:, 1]


def _tables() -> dict[str, tuple[Any, Label]]:
    x, y = _rows()
    return _named(x, ["low" if value < 30 else "high" for value in y])


def _numbers() -> dict[str, tuple[Any, Label]]:
    x, y = _rows()
    return _named(x, np.clip(y, 0, 60).tolist())


def _texts() -> dict[str, tuple[Any, Label]]:
    words = {label: text.split() for label, text in WORDS.items()}
    labels = ["no", "yes"] * (COUNT // 2)
    texts = [f"{words[y][n % 4]} thing {words[y][n // 4 % 4]} {n}" for n, y in enumerate(labels)]
    return _named(texts, labels)


_ROW = {"features": [0.5] * len(COLUMNS)}
_TEXT = {"text": "a text"}
_PICTURE = {"data": png()}
_MLP = {"network": "mlp", "params": {"widths": [8]}}
KINDS = (
    Kind(
        "image", "data",
        {"kind": "image", "classes": ["dark", "light"], "size": [8, 8], "channels": 1},
        _MLP, _pictures(), {"kind": "class", "classes": ["dark", "light"]},
        "image/png", (_ROW, _TEXT, {"data": "AAAA"}, {"data": "%"}), "grey",
    ),
    Kind(
        "table", "features", {"kind": "table", "classes": ["low", "high"], "features": COLUMNS},
        _MLP, _tables(), {"kind": "class", "classes": ["low", "high"]},
        "application/json", (_PICTURE, _TEXT, {"features": [1.0]}), "middle",
    ),
    Kind(
        "text", "text",
        {"kind": "text", "classes": ["no", "yes"], "length": 8, "vocabulary": 200},
        {"network": "kim_cnn", "params": {"filters": 8, "width": 16, "dropout": 0.1}},
        _texts(), {"kind": "class", "classes": ["no", "yes"]},
        "text/plain; charset=utf-8", (_PICTURE, _ROW, {"text": " "}), "maybe", "entropy",
    ),
    Kind(
        "number", "features",
        {"kind": "table", "target": "number", "low": 0, "high": 60, "features": COLUMNS},
        {**_MLP, "members": 2}, _numbers(), {"kind": "number", "low": 0.0, "high": 60.0},
        "application/json", (_PICTURE, _TEXT, {"features": [1.0] * 5}), 61.0, "random",
    ),
)  # fmt: skip
