"""A pool's items in the order of their places, which never change: parts are only ever added."""

from __future__ import annotations

from collections.abc import Iterator

from rayal.pool.reader import Pool


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
