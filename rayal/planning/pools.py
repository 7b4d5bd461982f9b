"""The pool of a plan, be it ingested, a source that nobody has read, or only imagined."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pyarrow as pa

from rayal.engine.checks import untrained
from rayal.engine.embed import head_task
from rayal.engine.spec import ProjectSpec
from rayal.engine.tasks import number_of, tokenizer_of
from rayal.errors import PoolError
from rayal.ledger import Ledger, has_ledger
from rayal.planning.demands import EmbeddingShape, embedding_shape
from rayal.planning.sizes import ITEM, NetworkShape, PoolShape, network_shape
from rayal.pool.from_settings import pool_name, pool_there, sources_of
from rayal.pool.reader import Pool
from rayal.pool.source import Source
from rayal.settings.run import Cell, PoolSettings, Settings
from rayal.tasks import Task, Vocabulary, task_for
from rayal.tasks.text import LENGTH, SIZE

READ = 1_000_000  # rows of a source up to which its labels are read through for their classes


@dataclass(frozen=True)
class WhatIf:
    """Assumptions that a plan is made with instead of what there is.

    Attributes:
        rows: items to choose from.
        width: columns of the embedding, and of a table that is not there yet.
        classes: number of classes.
        shards: workers, each a holder of columns.
        memory: bytes of each worker, or of the one process.
    """

    rows: int | None = None
    width: int | None = None
    classes: int | None = None
    shards: int | None = None
    memory: int | None = None


@dataclass(frozen=True)
class PlannedPool:
    """The pool that a plan is made for.

    Attributes:
        shape: its sizes.
        task: how its rows are decoded, and what is predicted.
        ingested: the pool itself, where it is there.
    """

    shape: PoolShape
    task: Task
    ingested: Pool | None = None

    @classmethod
    def of(cls, pool: Pool, task: Task) -> PlannedPool:
        """Return a pool that is there, with its task."""
        return cls(shape_of(pool, task.classes), task, pool)

    def sizes(
        self, spec: ProjectSpec, *, width: int | None = None
    ) -> tuple[NetworkShape, EmbeddingShape | None]:
        """Return the sizes of a project's network, and of its embeddings where it has a backbone.

        Args:
            spec: the spec of the project.
            width: columns of the network's embedding instead of what it has.
        """
        task = head_task(spec, self.task)
        network = network_shape(spec, task, untrained(spec, task), width=width)
        return network, embedding_shape(spec, self.task, self.shape, self._embedded)

    def _embedded(self, hash: str) -> int:
        """Return the items, test included, that have embeddings of this hash already."""
        if self.ingested is None:
            return 0
        with Ledger(self.ingested.root, create=False) as ledger:
            done = ledger.columns(hash)
        return sum(part.rows for part in self.ingested.parts if part.part in done)


def shape_of(pool: Pool, classes: tuple[str, ...]) -> PoolShape:
    """Return the sizes of a pool that is there; it has no classes where a number is predicted."""
    files = sum(part.bytes for part in pool.parts)
    rows = sum(part.rows for part in pool.parts)
    return PoolShape(
        rows=len(pool),
        tests=pool.rows("test"),
        item=max(1.0, files / max(1, rows) - ITEM),
        payload=pool.payload,
        classes=classes,
        disk=pool.bytes_on_disk,
        ingested=True,
    )


def planned_pool(settings: Settings, cell: Cell, what_if: WhatIf) -> PlannedPool:
    """Return a cell's pool as far as it is known, without ingesting anything.

    Raises:
        PoolError: there is no such source and ``rows`` is not given, or its rows cannot be
            counted without reading it, or its classes are not known.
    """
    pool = pool_here(settings, cell)
    if pool is not None and what_if.rows is None:
        known = pool.info.get("label_kind"), pool.classes or _names(what_if.classes)
        shape = shape_of(pool, _predicted(settings, *known))
        first = pool.read(pool.parts[0]).slice(0, 1)
        return PlannedPool(shape, _task(settings, shape, first), pool)
    return _unread(settings, what_if)


def pool_here(settings: Settings, cell: Cell) -> Pool | None:
    """Return a cell's pool where it is ingested already."""
    root = Path(settings.storage)
    if not has_ledger(root):
        return None
    pool = pool_there(settings.pool, root)
    if pool is not None:
        return pool
    name = pool_name(settings.pool, cell.seeds.pool)
    with Ledger(root, create=False) as ledger:
        known = name in ledger.pools()
    return Pool.open(root, name) if known else None


def tasks_beforehand(settings: Settings, cell: Cell) -> list[Task]:
    """Return what a pool's task may be that no one has ingested yet, from the settings alone.

    Classes that nobody names are imagined, and so is a tokeniser that would be trained. Where the
    settings leave the target to the labels, which are not read, it is a class, else a number.

    Returns:
        None of them where the pool is there already.

    Raises:
        PoolError: the source does not exist or does not form a pool.
        SettingsError: the task does not fit it.
    """
    if pool_here(settings, cell) is not None:
        return []
    source = sources_of(settings.pool.model_copy(update={"test_share": 0.0}))[0]
    payload = dict(source.payload)
    first = _first(source) if payload.get("encoding") == "file" else None
    chosen, asked = settings.task, settings.task.target
    classes = chosen.classes or ("class 0", "class 1")
    kinds = [asked] if asked else ["class"] if chosen.classes else ["class", "number"]
    open_to: list[tuple[str, ...]] = [classes if kind == "class" else () for kind in kinds]
    return [_task(settings, PoolShape(1, 0, 1.0, payload, c), first) for c in open_to]


def _unread(settings: Settings, what_if: WhatIf) -> PlannedPool:
    pool = settings.pool
    try:
        sources = sources_of(pool.model_copy(update={"test_share": 0.0}))
    except PoolError as error:
        if what_if.rows is None:
            raise PoolError(f"{error}; or say what it would hold: --rows, --classes") from None
        return _imagined(settings, what_if)
    payload = dict(sources[0].payload)
    rows, tests = _counted(pool, sources, what_if.rows)
    first = _first(sources[0])
    named = settings.task.classes or _names(what_if.classes)
    known = (None, named) if named or settings.task.target == "number" else _known(pool, sources)
    classes = _predicted(settings, *known)
    resident = sum(map(_resident, (pool.source, pool.test or "")))
    shape = PoolShape(rows, tests, _item(payload, first), payload, classes, resident=resident)
    return PlannedPool(shape, _task(settings, shape, first))


def _counted(pool: PoolSettings, sources: Sequence[Source], rows: int | None) -> tuple[int, int]:
    """Return the items of pool and test, as far as the sources know without being read."""
    totals = {role: [s.total for s in sources if s.role == role] for role in ("pool", "test")}
    if rows is None and None in totals["pool"]:
        raise PoolError(
            f"the rows of {pool.source!r} cannot be counted without reading it; give --rows N, or "
            "`rayal ingest` it first"
        )
    counted = sum(t or 0 for t in totals["pool"]) if rows is None else rows
    tests = sum(t or 0 for t in totals["test"])
    if pool.test_share:
        tests = round(counted * pool.test_share)
        counted -= tests
    if rows is None and pool.subset is not None:
        counted = min(counted, pool.subset)
    return counted, tests


def _first(source: Source) -> pa.Table:
    """Return the first rows of a source as a table with their payloads."""
    block = next(iter(source.read()))
    payloads = [bytes(p) for p in block.payloads[:64]]
    return pa.table({"data": pa.array(payloads, pa.binary())})


def _item(payload: dict[str, Any], first: pa.Table) -> float:
    """Return the bytes of a payload: known of raw images and tables, else the mean of a few."""
    if payload["kind"] == "table":
        return 8.0 * len(payload["features"])
    if payload.get("encoding") == "raw":
        return float(prod(payload["shape"]))
    sizes = [len(p) for p in first.column("data").to_pylist()]
    return sum(sizes) / len(sizes)


def _resident(path: str) -> int:
    """Return the bytes of the arrays of a file, which are read whole; 0 for other files."""
    if path.endswith(".npz"):
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    return Path(path).stat().st_size if path.endswith(".npy") else 0


def _imagined(settings: Settings, what_if: WhatIf) -> PlannedPool:
    """Return a pool that is nowhere: images of ``task.size``, else rows of ``width`` numbers."""
    classes = _predicted(settings, None, _names(what_if.classes))
    if settings.task.size is not None:
        channels = settings.task.channels or 3
        payload: dict[str, Any] = {"kind": "image", "encoding": "file"}
        item = prod(settings.task.size) * channels / 4  # a photograph as JPEG: 2 bits a value
    elif settings.task.kind == "text":
        payload = {"kind": "text"}
        item = 4.0 * (settings.task.length or LENGTH)  # bytes of a token, in English
    elif what_if.width is not None:
        payload = {"kind": "table", "features": [f"x{i}" for i in range(what_if.width)]}
        item = 8.0 * what_if.width
    else:
        raise PoolError(
            f"{settings.pool.source!r} does not exist, and its rows are unknown; set task.size "
            "for images, task.kind: text, or give --width for a table of numbers"
        )
    shape = PoolShape(what_if.rows or 0, 0, item, payload, classes)
    return PlannedPool(shape, _task(settings, shape, None))


def _predicted(
    settings: Settings, kind: str | None, known: tuple[str, ...] | None
) -> tuple[str, ...]:
    """Return the names of the classes that are predicted; none where a number is.

    Args:
        settings: the settings of the run.
        kind: the kind of the known labels: class | number; None where nobody knows.
        known: their classes.

    Raises:
        PoolError: classes are predicted, and nobody knows which.
    """
    if number_of(settings.task.model_dump(), kind) is not None:
        return ()
    classes = settings.task.classes or known
    if classes is None:
        raise _no_classes(settings.pool.source)
    return classes


def _known(
    pool: PoolSettings, sources: Sequence[Source]
) -> tuple[str | None, tuple[str, ...] | None]:
    """Return kind and classes of the labels that a source gives, where they are cheap to read."""
    if pool.labels is not None:
        return None, None
    if Path(pool.source).is_dir() and sources[0].payload.get("encoding") == "file":
        names = sorted(p.name for p in Path(pool.source).iterdir() if p.is_dir())
        return "class", tuple(names) or None
    total = sources[0].total
    if total is None or total > READ:
        return None, None
    blocks = [rows for rows in sources[0].read() if rows.labels]
    if any(rows.kind == "number" for rows in blocks):
        return "number", None
    labels = {label for rows in blocks for label in rows.labels or () if label}
    return "class", tuple(sorted(labels)) or None


def _names(count: int | None) -> tuple[str, ...] | None:
    return None if count is None else tuple(f"class {i}" for i in range(count))


def _no_classes(source: str) -> PoolError:
    return PoolError(
        f"the classes of {source!r} are not known; give --classes N or task.classes, or predict a "
        "number: task.target number"
    )


def _task(settings: Settings, pool: PoolShape, first: pa.Table | None) -> Task:
    options = settings.task_options()
    kind = options.pop("kind", None)
    number = None if pool.classes else number_of({**options, "target": "number"}, None)
    for name in ("classes", "target", "low", "high"):
        options.pop(name, None)
    if pool.payload.get("encoding") == "file" and "size" not in options:
        options["example"] = first
    if pool.payload["kind"] == "text":
        options["words"] = _words(options)
    return task_for(pool.payload, kind=kind, classes=pool.classes, number=number, **options)


def _words(options: dict[str, Any]) -> Vocabulary:
    """Return a tokeniser of the size that the settings allow; nothing is trained."""
    _, model = tokenizer_of(options)
    if model:
        return Vocabulary.counted(model, [])
    return Vocabulary.imagined(options.get("vocabulary", SIZE))
