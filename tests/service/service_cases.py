"""Small projects as clients make them, and people who answer at once."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rayal.ledger import JobRow, LabelEntry, Ledger, ProjectRow
from rayal.pool.push import Pushed
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.service.creation import checked_patch, create_project
from rayal.service.inbox import PushedItem, push_items
from rayal.service.uris import Prefixes
from rayal.service.worker.process import perform

FEATURES = ["a", "b", "c", "d"]
CLASSES = ["no", "yes", "maybe"]
NOTHING = Prefixes()


def rows(count: int, seed: int = 0, start: int = 0) -> dict[str, tuple[list[float], str]]:
    """Return items by id, each with its features and the class that people will see in it."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, size=count)
    x = rng.normal(size=(count, 4)) + y[:, None]
    return {f"row-{start + i:04d}": (x[i].tolist(), CLASSES[y[i]]) for i in range(count)}


def png(value: int = 0, size: tuple[int, int] = (8, 8), mode: str = "L") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, value).save(file, "PNG")
    return file.getvalue()


def body(name: str = "p", **changes: Any) -> dict[str, Any]:
    """Return what makes a small project over a table."""
    made: dict[str, Any] = {
        "name": name,
        "task": {"kind": "table", "classes": CLASSES, "features": FEATURES},
        "model": {"network": "mlp", "params": {"widths": [8]}},
        "learner": {"name": "supervised", "steps": 20, "batch": 16, "epoch_steps": 5},
        "strategy": "margin",
        "initial": {"count": 12},
        "batch_size": 6,
        "seeds": 3,
    }
    return {**made, **changes}


def pushed(items: dict[str, tuple[list[float], str]]) -> list[PushedItem]:
    return [PushedItem(i, features=x) for i, (x, _) in items.items()]


def push(ledger: Ledger, project: str, items: dict[str, tuple[list[float], str]]) -> Pushed:
    return push_items(ledger, project, pushed(items), prefixes=NOTHING)


def table_pool(root: Path, name: str, items: dict[str, tuple[list[float], str]]) -> Pool:
    """Ingest items as a pool that was there before any project."""
    x = np.array([row for row, _ in items.values()])
    y = [label for _, label in items.values()]
    return Pool.ingest(root, name, [array_source(x, y, ids=list(items), features=FEATURES)])


def project(root: Path, items: dict[str, tuple[list[float], str]], **changes: Any) -> Ledger:
    """Make a project with pushed items."""
    ledger = Ledger(root)
    asked = body(**changes)
    create_project(ledger, asked, prefixes=NOTHING)
    push(ledger, asked["name"], items)
    return ledger


def work(ledger: Ledger, name: str = "p", kind: str = "round", **args: Any) -> JobRow:
    """Have one job done in this process, and return how it ended."""
    job = ledger.add_job(name, kind, args)
    claimed = ledger.claim_job("me", kinds=[kind])
    assert claimed is not None and claimed.job == job.job
    perform(ledger, claimed, "me")
    return ledger.job(job.job)


def answer(
    ledger: Ledger,
    items: dict[str, tuple[list[float], str]],
    count: int = 1000,
    name: str = "p",
) -> list[str]:
    """Label up to ``count`` open items, in the order in which they are offered."""
    chosen = ledger.open_items(name)[:count]
    ledger.label(name, "ann", [LabelEntry(i, items[i][1]) for i in chosen])
    return chosen


def patch_project(ledger: Ledger, project: str, body: Any, *, version: int) -> ProjectRow:
    """Check a change, and write it."""
    return checked_patch(ledger, project, body, version=version)()
