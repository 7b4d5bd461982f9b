"""A service over a small pool, in this process, with clients of every scope."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from rayal.engine.pool import Pool
from rayal.project import Ledger, Pick
from rayal.service import auth
from rayal.service.app import create_app
from rayal.service.backend import Backend
from rayal.service.creation import create_project
from rayal.service.limits import Limits
from rayal.service.uris import Prefixes
from rayal.types import id_keys

ITEMS = 40
CLASSES = ["cat", "dog", "owl"]
BIRDS: Mapping[str, Any] = {
    "name": "birds",
    "pool": "rows",
    "task": {"kind": "table", "classes": CLASSES},
    "strategy": "margin",
    "initial": {"count": 8},
    "batch_size": 8,
    "auto": {"start": False},
}
IMAGES: Mapping[str, Any] = {
    "name": "pictures",
    "task": {"kind": "image", "classes": CLASSES, "size": [8, 8], "channels": 1},
    "strategy": "margin",
    "initial": {"count": 4},
    "batch_size": 4,
    "auto": {"start": False},
}


@dataclass
class Clock:
    """A clock that stands until it is set."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Service:
    """The service, with what tests reach behind its HTTP for.

    Attributes:
        asked: what was forwarded to prediction replicas.
    """

    backend: Backend
    clock: Clock
    tokens: dict[str, str] = field(default_factory=dict)
    asked: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def ledger(self) -> Ledger:
        return self.backend.ledger

    def token(self, *scopes: str, expires: float | None = None) -> str:
        """Return the text of a token with these scopes."""
        text = auth.new_token()
        self.ledger.add_token("test", scopes, auth.hash_of(text), expires=expires)
        return text

    def client(self, token: str | None = None, **more: Any) -> TestClient:
        """Return a client; with an administrator's token unless another one is given."""
        app = create_app(replace(self.backend, **more))
        headers = {} if token == "" else {"Authorization": f"Bearer {token or self.tokens['admin']}"}
        return TestClient(app, headers=headers, base_url="http://service")

    def offer(self, items: list[str], round: int = -1, project: str = "birds") -> None:
        """Offer items, the first one first."""
        picks = [
            Pick(item, int(key), rank, 1.0 / rank, None)
            for rank, (item, key) in enumerate(zip(items, id_keys(items), strict=True), start=1)
        ]
        self.ledger.commit_selection(
            project, round, picks, [], {"strategy": "margin"}, stage=None, output={}, seconds=0.0
        )


@contextmanager
def service(root: Path, limits: Limits | None = None) -> Iterator[Service]:
    """Give a service with the project birds on forty rows, of which eight are offered."""
    x = np.random.default_rng(0).normal(size=(ITEMS, 3))
    ids = [f"row/{i:02d}" for i in range(ITEMS)]
    Pool.from_arrays(root, "rows", x, ids=ids)
    clock = Clock()
    with Ledger(root) as ledger:
        made = Service(_backend(ledger, clock, limits), clock)
        made.backend = replace(made.backend, predict=_predicting(made))
        create_project(ledger, BIRDS, prefixes=Prefixes())
        made.offer(ids[:8])
        made.tokens["admin"] = made.token("admin")
        yield made


def _backend(ledger: Ledger, clock: Clock, limits: Limits | None) -> Backend:
    async def query(body: Mapping[str, Any]) -> Any:
        from rayal.service.predictor import Predictor

        return Predictor(ledger.root).query(body)

    return Backend(
        ledger=ledger,
        limits=limits or Limits(),
        prefixes=Prefixes((str(ledger.root / "allowed"),)),
        secret=b"s" * 32,
        predict=query,
        query=query,
        clock=clock,
    )


def _predicting(made: Service) -> Any:
    async def predict(body: Mapping[str, Any]) -> Any:
        made.asked.append(body)
        given = body.get("items") or [item.get("id") for item in body["inputs"]]
        said = [{"item": i, "label": "cat", "probs": [0.5, 0.25, 0.25]} for i in given]
        return {"model": body["model"], "predictions": said}

    return predict


def key(item: str) -> str:
    """Return the key by which paths name an item."""
    return f"{int(id_keys([item])[0]):016x}"


def png(shade: int = 0, size: tuple[int, int] = (8, 8)) -> str:
    """Return a grey image as base64."""
    file = io.BytesIO()
    Image.new("L", size, shade).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    """Check that an answer is a problem document of a type, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["type"] == f"urn:rayal:problem:{kind}", document
    assert document["status"] == status
    assert document["request_id"] == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return document
