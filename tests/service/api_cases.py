"""A service over a small pool, in this process, with clients of every scope."""

from __future__ import annotations

import atexit
import base64
import functools
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from PIL import Image

import rayal
from rayal.cli.app import main
from rayal.ledger import Ledger, Pick
from rayal.pool.push import create_empty
from rayal.pool.reader import Pool
from rayal.service import auth
from rayal.service.app import create_app
from rayal.service.backend import Backend
from rayal.service.limits import Limits
from rayal.service.predictor import Predictor
from rayal.service.uris import Prefixes
from rayal.types import id_keys

Run = Callable[..., tuple[int, str, str]]  # arguments to exit status, output and errors
ITEMS = 40
CLASSES = ["cat", "dog", "owl"]
# what creation makes of a request, as far as the API reads it: creation itself loads torch
BIRDS: Mapping[str, Any] = {
    "task": {"kind": "table", "classes": CLASSES},
    "batch": 8,
    "rounds": None,
    "initial": {"strategy": "random", "count": 8},
    "labeling": {"labels_per_item": 1},
    "service": {"quorum": None, "ready": 0, "start": False, "pushed": False},
}
PICTURES: Mapping[str, Any] = {
    **BIRDS,
    "task": {"kind": "image", "classes": CLASSES, "size": [8, 8], "channels": 1},
    "service": {**BIRDS["service"], "pushed": True},
}


IMAGES: Mapping[str, Any] = {  # a body of POST /v1/projects
    "name": "pictures",
    "task": {"kind": "image", "classes": CLASSES, "size": [8, 8], "channels": 1},
    "strategy": "margin",
    "initial": {"count": 4},
    "batch_size": 4,
    "auto": {"start": False},
}


class InProcess(httpx.BaseTransport):
    """Carries requests to an application in this process, which the portal's thread runs."""

    def __init__(self, app: Any, portal: BlockingPortal) -> None:
        self.app = app
        self._transport = httpx.ASGITransport(app)
        self._portal = portal

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer a request."""
        return self._portal.call(self._answer, request, request.read())

    async def _answer(self, request: httpx.Request, body: bytes) -> httpx.Response:
        sent = httpx.Request(request.method, request.url, headers=request.headers, content=body)
        if "transfer-encoding" in request.headers:
            del sent.headers["content-length"]
        answer = await self._transport.handle_async_request(sent)
        return httpx.Response(
            answer.status_code, headers=answer.headers, content=await answer.aread()
        )


@dataclass
class Clock:
    """A clock that stands until it is set."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Service:
    """The service, with what tests reach behind its HTTP for.

    Args:
        backend: what the API stands on.
        clock: of tokens and signed URLs.
        carrier: brings requests to it.
        tokens: texts by name.
        asked: what was forwarded to prediction replicas.
    """

    backend: Backend
    clock: Clock
    carrier: InProcess
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

    def client(self, token: str | None = None) -> httpx.Client:
        """Return a client with a token: the administrator's by default, none where it is empty."""
        sent = self.tokens["admin"] if token is None else token
        headers = {"Authorization": f"Bearer {sent}"} if sent else {}
        return httpx.Client(transport=self.carrier, headers=headers, base_url="http://service")

    @contextmanager
    def changed(self, **parts: Any) -> Iterator[Service]:
        """Give the service with other parts of its backend, in an application of its own."""
        backend = replace(self.backend, **parts)
        with start_blocking_portal() as portal:
            yield replace(self, backend=backend, carrier=InProcess(create_app(backend), portal))

    def pictures(self) -> None:
        """Make the project pictures, whose items are pushed."""
        create_empty(self.ledger, "own", {"kind": "image", "encoding": "file"}, CLASSES)
        self.ledger.create_project("pictures", "own", PICTURES)


def offer(ledger: Ledger, items: list[str], project: str = "birds") -> None:
    """Offer items as the initial choice, the first one first."""
    picks = [
        Pick(item, int(key), rank, 1.0 / rank, None)
        for rank, (item, key) in enumerate(zip(items, id_keys(items), strict=True), start=1)
    ]
    ledger.commit_selection(
        project, -1, picks, [], {"strategy": "random"}, stage=None, output={}, seconds=0.0
    )


@contextmanager
def service(
    root: Path, limits: Limits | None = None, database: str | None = None
) -> Iterator[Service]:
    """Give a service with the project birds on forty rows, of which eight are offered.

    Args:
        root: the storage root, an empty folder.
        limits: what clients may ask for; nearly anything by default.
        database: a PostgreSQL URL; SQLite by default.
    """
    if database is None:
        shutil.copytree(_template(), root, dirs_exist_ok=True)
    clock = Clock()
    asked: list[Mapping[str, Any]] = []
    with Ledger(root, database=database) as ledger, start_blocking_portal() as portal:
        if database is not None:
            _fill(ledger)
        backend = _backend(ledger, clock, asked)
        backend = backend if limits is None else replace(backend, limits=limits)
        made = Service(backend, clock, InProcess(create_app(backend), portal), asked=asked)
        made.tokens["admin"] = made.token("admin")
        yield made


@functools.cache
def _template() -> Path:
    """Return a storage root to copy: ingest and offering are what takes time."""
    root = Path(tempfile.mkdtemp(prefix="rayal-api-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    with Ledger(root) as ledger:
        _fill(ledger)
    return root


def _fill(ledger: Ledger) -> None:
    """Make the project birds."""
    x = np.random.default_rng(0).normal(size=(ITEMS, 3))
    ids = [f"row/{i:02d}" for i in range(ITEMS)]
    Pool.from_arrays(ledger.root, "rows", x, ids=ids)
    ledger.create_project("birds", "rows", BIRDS)
    offer(ledger, ids[:8])


def _backend(ledger: Ledger, clock: Clock, asked: list[Mapping[str, Any]]) -> Backend:
    async def query(body: Mapping[str, Any]) -> Any:
        return Predictor(ledger.root).query(body)

    async def predict(body: Mapping[str, Any]) -> Any:
        asked.append(body)
        given = body.get("items") or [item.get("id") for item in body["inputs"]]
        none = {"mean": None, "variance": None}
        said = [{"item": i, "label": "cat", "probs": [0.5, 0.25, 0.25], **none} for i in given]
        return {"model": body["model"], "predictions": said}

    return Backend(
        ledger=ledger,
        limits=Limits(rate=1e6, burst=10**6),
        prefixes=Prefixes((str(ledger.root / "allowed"),)),
        secret=b"s" * 32,
        predict=predict,
        query=query,
        clock=clock,
    )


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


def shell(
    made: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Return ``rayal remote`` in this process, as the service's administrator."""

    def client(url: str, token: str | None) -> rayal.Client:
        assert url == "http://127.0.0.1:8000"
        return rayal.Client("http://service", token, transport=made.carrier)

    def run(*argv: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rayal", "remote", *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    monkeypatch.setattr("rayal.cli.remote._client", client)
    monkeypatch.setenv("RAYAL_TOKEN", made.tokens["admin"])
    monkeypatch.setenv("COLUMNS", "200")
    return run
