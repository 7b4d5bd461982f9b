"""Sources of small items, which the tests of ingest share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rayal.pool.ingest import ingest
from rayal.pool.reader import Pool
from rayal.pool.source import Role, Rows, Source

PAYLOAD = {"kind": "image", "encoding": "file"}
Items = dict[str, bytes]


def source(
    items: Items,
    role: Role = "pool",
    *,
    labels: list[str | None] | None = None,
    quarantined: int = 0,
    chunk: int = 3,
) -> Source:
    ids, payloads = list(items), list(items.values())

    def read() -> Iterator[Rows]:
        for i in range(0, len(ids), chunk):
            rows = slice(i, i + chunk)
            known = None if labels is None else labels[rows]
            yield Rows(ids[rows], payloads[rows], known, "class" if labels else None)
        yield Rows(
            [], [], quarantined=[(f"bad{i:04d}", "broken") for i in reversed(range(quarantined))]
        )

    return Source(PAYLOAD, read, role, len(ids))


def items(count: int, start: int = 0) -> Items:
    return {f"i{n}": f"content {n}".encode() * (n % 5) + b"." for n in range(start, start + count)}


def add(root: Path, *sources: Source, **options: object) -> Pool:
    return Pool.open(root, "p", ingest(root, "p", sources, **options))  # type: ignore[arg-type]


def files(root: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in (root / "pools/p").iterdir()}
