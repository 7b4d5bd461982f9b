"""The pools that tests share: rows of tables, digits and numbers, as one part or as several.

A maker of rows gives a source; ``pool_of`` ingests sources one after the other, each as a part of
its own, ``pool_at_once`` all of them in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.pool.source import Role, Source

TEST_ROWS = 90_000  # where rows of the test begin, beyond those of any part


def pool_of(root: Path, name: str, *sources: Source) -> Pool:
    """Ingest sources in as many additions, so that the pool has as many parts."""
    for source in sources:
        pool = Pool.ingest(root, name, [source])
    return pool


def pool_at_once(root: Path, name: str, *sources: Source) -> Pool:
    """Ingest sources in one addition."""
    return Pool.ingest(root, name, list(sources))


def blobs(start: int, count: int, role: Role = "pool", *, turn: int = 0) -> Source:
    """Return rows of three classes that lie about their class's number, as a source."""
    x, y, ids = blob_rows(start, count, turn=turn)
    return array_source(x, y, ids=ids, role=role)


def blob_rows(start: int, count: int, *, turn: int = 0) -> tuple[Any, Any, list[str]]:
    """Return rows ``[N, 5]``, their classes and ids.

    Args:
        start: number of the first row, and the seed of all.
        count: of rows.
        turn: gives other labels, in another order.
    """
    rng = np.random.default_rng(start)
    y = rng.integers(0, 3, size=count)
    x = rng.normal(size=(count, 5)) + y[:, None]
    at = np.roll(np.arange(count), 7 * turn)
    ids = [f"row-{start + i:05d}" for i in range(count)]
    return x[at], (y[at] + turn) % 3, [ids[i] for i in at]


def blob_pool(root: Path, parts: int = 3, *, rows: int = 300, tests: int = 60) -> Pool:
    """Ingest rows of three classes as several parts, and others for the test."""
    sources = [blobs(number * rows, rows) for number in range(parts)]
    return pool_of(root, "rows", *sources, blobs(TEST_ROWS, tests, "test"))


def split(
    x: Any,
    y: Any,
    ids: Sequence[str],
    rows: int,
    *,
    order: int | None = None,
    features: Sequence[str] | None = None,
) -> list[Source]:
    """Return the first rows as a source of the pool, and the others as one of the test.

    Args:
        x: the rows.
        y: their labels.
        ids: their ids.
        rows: how many are the pool's.
        order: seed of another order of the pool's rows.
        features: names of columns.
    """
    first = np.arange(rows) if order is None else np.random.default_rng(order).permutation(rows)
    roles: dict[Role, Any] = {"pool": first, "test": np.arange(rows, len(ids))}
    return [
        array_source(x[at], y[at], ids=[ids[i] for i in at], role=role, features=features)
        for role, at in roles.items()
    ]


# -- digits ----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _digits() -> tuple[Any, Any]:
    x, y = load_digits(return_X_y=True)
    return (x.reshape(-1, 8, 8) * 15).astype(np.uint8), y


def digit_rows(start: int, count: int) -> tuple[Any, Any, list[str]]:
    """Return handwritten digits, uint8 ``[N, 8, 8]``, their classes and ids, free to be changed."""
    x, y = _digits()
    at = slice(start, start + count)
    return x[at].copy(), y[at].copy(), [f"digit-{i:04d}" for i in range(start, start + count)]


def digit_source(start: int, count: int, role: Role = "pool") -> Source:
    """Return handwritten digits as a source."""
    x, y, ids = digit_rows(start, count)
    return array_source(x, y, ids=ids, role=role)


# -- numbers ---------------------------------------------------------------------------------------


def houses(count: int, seed: int = 0) -> tuple[Any, Any, list[str]]:
    """Return rows ``[N, 3]`` of very different scales, a number near 1,000 of each, and ids."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3)) * [1.0, 100.0, 0.01] + [0.0, 500.0, 3.0]
    y = 1000.0 + 30.0 * x[:, 0] - 0.2 * (x[:, 1] - 500.0) + rng.normal(size=count) * 2.0
    return x, y, [f"house:{i:03d}" for i in range(count)]
