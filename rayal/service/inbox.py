"""Items that come over HTTP, and their content on the way back.

A call of ``push_items`` makes one snapshot, with one part for each role: right for hundreds of
items, wasteful for one at a time. Each call looks for its ids in every part (0.2 ms a part), and
each scan opens every part; ``rayal.pool.push`` bounds their number, nothing joins them later. A
staged file of JSON lines is one snapshot too, however large, with parts as an ingest of the same
items makes them: the way to bring a pool, and to have the picks of a run on the same items
elsewhere.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from rayal.errors import ConflictError, PoolError, UnknownNameError, UriError
from rayal.ledger import Ledger
from rayal.pool.gather import Progress
from rayal.pool.push import Pushed, push
from rayal.pool.source import Role, Rows, Source
from rayal.service.content import ContentLimits, PushedItem, Reader, shown
from rayal.service.pools import opened, pool_of
from rayal.service.settings import ServiceOptions
from rayal.service.uris import Prefixes

__all__ = ["PushedItem", "Pushed", "ContentLimits", "push_items", "content_of", "stage"]

INBOX, RESULTS = "inbox", "results"
INBOX_SECONDS, RESULT_SECONDS = 86_400.0, 7 * 86_400.0
LISTED = 1000  # refused items that a job's result names
_ROLES: tuple[Role, ...] = ("pool", "test")
_BLOCK_BYTES, _BLOCK_ITEMS = 8 << 20, 1024  # of items that are handed on at once


def push_items(
    ledger: Ledger,
    project: str,
    items: Sequence[PushedItem],
    *,
    prefixes: Prefixes,
    limits: ContentLimits | None = None,
) -> Pushed:
    """Add items to a project's own pool, and tell what became of each.

    It may be repeated: what is there is unchanged. It opens transactions of its own and waits for
    other pushes, so it must not be called within one.

    Args:
        ledger: the storage root's ledger.
        project: its name.
        items: the items that a client sent.
        prefixes: below which uris may lie.
        limits: the largest images and texts that are taken.

    Raises:
        ConflictError: the project works on a pool that others may use.
        PoolError: another push to this project goes on for too long.
        UnknownNameError: there is no such project.
    """
    name, payload = _own_pool(ledger, project)
    reader = Reader(payload, prefixes, limits or ContentLimits())
    sources = []
    for role in _ROLES:
        mine = [item for item in items if item.role == role]
        if mine:
            sources.append(Source(payload, partial(_rows, mine, reader), role, len(mine)))
    return push(ledger, name, sources)


def ingest_file(
    ledger: Ledger,
    project: str,
    file: str,
    *,
    prefixes: Prefixes,
    limits: ContentLimits | None = None,
    progress: Progress | None = None,
) -> Pushed:
    """Add the items of a staged file of JSON lines as one snapshot; see ``push_items``.

    Lines that are no items are rejected by their number; the rest goes on.
    """
    name, payload = _own_pool(ledger, project)
    path = staged(ledger.root, file)
    reader = Reader(payload, prefixes, limits or ContentLimits(), waiting=False)
    lines = _StagedItems(path)
    sources = [
        Source(payload, lambda: _rows(lines.pool(), reader, lines.refused), "pool", lines.count()),
        Source(payload, lambda: _rows(lines.test(), reader), "test", 0),
    ]
    return push(ledger, name, sources, progress=progress)


def content_of(ledger: Ledger, project: str, item: str) -> tuple[bytes, str]:
    """Return an item's content and its media type: an image, a text, or JSON of features.

    Raises:
        UnknownNameError: the item is not in the project's pool.
    """
    if not known_items(ledger, project, [item])[0]:
        raise UnknownNameError(f"project {project!r} has no item {item!r}")
    pool = pool_of(ledger, project, [item])
    row = pool.take([item])
    column = "features" if pool.payload["kind"] == "table" else "data"
    return shown(row.column(column)[0].as_py(), pool.payload)


def known_items(ledger: Ledger, project: str, items: Sequence[str]) -> list[bool]:
    """Return for each id whether it is in the project's pool, and not forgotten."""
    there = pool_of(ledger, project, items).contains(items)
    states = ledger.item_states(project, items)
    return [t and states.get(i) != "forgotten" for i, t in zip(items, there, strict=True)]


def item_of(ledger: Ledger, project: str, key: int) -> str:
    """Return the id of the item with a key.

    Raises:
        UnknownNameError: the project's pool has none.
    """
    pool = opened(ledger, project, lambda held: held.lookup.id_of(key) is not None)
    item = pool.lookup.id_of(key)
    if item is None:
        raise UnknownNameError(f"project {project!r} has no item with key {key:016x}")
    return item


# -- staged files -----------------------------------------------------------------------------


def stage(root: Path, chunks: Iterable[bytes], *, limit: int) -> str:
    """Write a body to a file of its own in the inbox, durably, and return its name.

    Args:
        root: the storage root.
        chunks: the body.
        limit: most bytes.

    Raises:
        PoolError: the body is larger.
    """
    folder = Path(root) / INBOX
    folder.mkdir(mode=0o700, exist_ok=True)
    name = f"{uuid.uuid4().hex}.ndjson"
    try:
        with (folder / name).open("xb") as file:
            _copy(chunks, file, limit)
    except BaseException:
        (folder / name).unlink(missing_ok=True)
        raise
    return name


def _copy(chunks: Iterable[bytes], file: IO[bytes], limit: int) -> None:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise PoolError(f"the body has more than {limit} bytes; send it in pieces")
        file.write(chunk)
    file.flush()
    os.fsync(file.fileno())


def staged(root: Path | str, name: str) -> Path:
    """Return the path of a staged file.

    Raises:
        PoolError: there is no such file: it was removed by age, or never staged.
    """
    path = Path(root) / INBOX / name
    if Path(name).name != name or not path.is_file():
        raise PoolError(f"staged file {name!r} is gone; send the items again")
    return path


def clean(root: Path, *, keep: Iterable[str] = (), now: float | None = None) -> list[Path]:
    """Remove staged files and results that are old, and return them.

    Args:
        root: the storage root.
        keep: names of staged files that jobs still want.
        now: seconds since the epoch.
    """
    moment, kept, gone = time.time() if now is None else now, set(keep), []
    for folder, seconds in ((INBOX, INBOX_SECONDS), (RESULTS, RESULT_SECONDS)):
        for path in sorted((Path(root) / folder).glob("*")):
            if path.name not in kept and moment - path.stat().st_mtime > seconds:
                path.unlink(missing_ok=True)
                gone.append(path)
    return gone


def objects(path: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield each line's number and its JSON object, None where it is none."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                value = None
            yield number, value if isinstance(value, dict) else None


# -- what ingest reads ----------------------------------------------------------------------------


def _own_pool(ledger: Ledger, project: str) -> tuple[str, dict[str, Any]]:
    row = ledger.project(project)
    if not ServiceOptions.of(row).pushed:
        raise ConflictError(
            f"project {project!r} works on pool {row.pool!r}, which was there before; items are "
            "added to it where it was ingested"
        )
    first = ledger.snapshot(
        row.pool, 1
    )  # without parts, and of the same payload as every later one
    return row.pool, dict(first.info["payload"])


class _StagedItems:
    """The items of a staged file; test items are looked for once some were met."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.refused: list[tuple[str, str]] = []
        self._tests = False

    def count(self) -> int:
        """Return the number of lines."""
        with self.path.open("rb") as lines:
            return sum(1 for _ in lines)

    def pool(self) -> Iterator[PushedItem]:
        """Yield the items of the role pool, and note what is refused."""
        for number, value in objects(self.path):
            try:
                if value is None:
                    raise PoolError("not a JSON object")
                item = PushedItem.of(value)
            except PoolError as error:
                self.refused.append((f"line {number}", str(error)))
                continue
            if item.role == "pool":
                yield item
            self._tests |= item.role == "test"

    def test(self) -> Iterator[PushedItem]:
        """Yield the items of the role test."""
        for _, value in objects(self.path) if self._tests else ():
            if value is not None and value.get("role") == "test":
                with suppress(PoolError):  # told in the first pass
                    yield PushedItem.of(value)


def _rows(
    items: Iterable[PushedItem], reader: Reader, refused: Sequence[tuple[str, str]] = ()
) -> Iterator[Rows]:
    """Yield checked items, a bounded number of bytes at a time; then what was refused before."""
    ids: list[str] = []
    payloads: list[bytes] = []
    wrong: list[tuple[str, str]] = []
    size = 0
    for item in items:
        try:
            payloads.append(reader.read(item))
            ids.append(item.id)
        except (PoolError, UriError) as error:
            wrong.append((item.id, str(error)))
            continue
        size += len(payloads[-1])
        if size >= _BLOCK_BYTES or len(ids) == _BLOCK_ITEMS:
            yield Rows(ids, payloads, quarantined=wrong)
            ids, payloads, wrong, size = [], [], [], 0
    yield Rows(ids, payloads, quarantined=[*wrong, *refused])
