"""Pools of projects, kept open: their keys are read once for each snapshot."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from cachetools import LRUCache

from rayal.ledger import Ledger
from rayal.pool.reader import Pool

_OPEN = 16  # pools that are kept open
_pools: LRUCache[tuple[str, str], Pool] = LRUCache(_OPEN)
_lock = threading.Lock()


def pool_of(ledger: Ledger, project: str, items: Sequence[str]) -> Pool:
    """Return a project's pool, as it was opened before if it holds the items, else the latest.

    Args:
        ledger: the storage root's ledger.
        project: its name.
        items: ids that are to be looked up; without any, the latest snapshot is opened.
    """
    return opened(ledger, project, lambda pool: bool(items) and all(pool.contains(items)))


def opened(ledger: Ledger, project: str, holds: Callable[[Pool], bool]) -> Pool:
    """Return a project's pool, as it was opened before if that will do, else the latest.

    What a snapshot holds never changes, so an older one serves as well.

    Args:
        ledger: the storage root's ledger.
        project: its name.
        holds: whether a pool has what is wanted.
    """
    name = ledger.project(project).pool
    key = (str(ledger.root.absolute()), name)
    with _lock:
        pool = _pools.get(key)
    if pool is not None and holds(pool):
        return pool
    latest = ledger.snapshot(name)
    if pool is None or pool.snapshot != latest.number:
        pool = Pool(ledger.root, latest)
    with _lock:
        _pools[key] = pool
    return pool


def items_from(pool: Pool, place: int) -> Iterator[tuple[int, str]]:
    """Yield place and id of the items to label, from a place on; parts before it are not read."""
    start = 0
    for part in pool.parts_of("pool"):
        if start + part.rows > place:
            first = max(0, place - start)
            ids = pool.read(part).column("id").slice(first)
            for row in range(len(ids)):
                yield start + first + row, str(ids[row].as_py())
        start += part.rows
