"""The ``pool`` section of the settings: a built-in source, a path, or a pool that is there."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from rayal.errors import PoolError, nearest
from rayal.ledger import Ledger, has_ledger
from rayal.pool.ingest import ingest
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.pool.readers.builtin import BUILTIN, builtin
from rayal.pool.readers.images import image_source
from rayal.pool.readers.table_columns import TableColumns
from rayal.pool.readers.tables import csv_source, jsonl_source, parquet_source
from rayal.pool.source import Role, Rows, Source, keyed_hashes
from rayal.settings.run import PoolSettings
from rayal.types import digest

_TABLES = {".csv": csv_source, ".parquet": parquet_source, ".jsonl": jsonl_source}
_ARRAYS = (".npz", ".npy")
_TEST = b"test share"
WAIT = 600.0  # seconds to wait for another run that ingests the same pool
#: settings that came later, where they say nothing: they leave a pool's name as it was
_LATER = {"confidence": None, "categorical": None, "categories": None, "test_by_seed": False}


def pool_of(
    settings: PoolSettings,
    root: Path,
    *,
    seed: int,
    name: str | None = None,
    progress: Callable[[int, int | None], None] | None = None,
    ledger: Ledger | None = None,
) -> Pool:
    """Return the pool that the settings describe; it is ingested when it is not there.

    Args:
        settings: the ``pool`` section.
        root: the storage root.
        seed: the pool seed, which draws the subset.
        name: the pool's name; by default that of the source, with a digest of its path and of
            the settings, and with subset and seed.
        progress: called with rows read and rows in all.
        ledger: the root's, where the caller has it open.

    Raises:
        PoolError: the source does not exist or does not form a pool.
    """
    if settings.source not in BUILTIN and not Path(settings.source).exists():
        there = pool_there(settings, root)
        if there is not None:
            return there
    sources = sources_of(settings, seed)
    name = name or pool_name(settings, seed)
    number = ingest(
        root,
        name,
        sources,
        labels=settings.labels,
        duplicates=settings.duplicates,
        subset=None if settings.subset is None else (settings.subset, seed),
        progress=progress,
        ledger=ledger,
        wait=WAIT,
    )
    return Pool.open(root, name, number)


def pool_there(settings: PoolSettings, root: Path) -> Pool | None:
    """Return the pool of the storage root that the source names; None if there is none."""
    if not has_ledger(root):
        return None
    with Ledger(root, create=False) as ledger:
        if settings.source not in ledger.pools():
            return None
    overrides = [k for k in settings.model_fields_set if k != "source"]
    if overrides:
        raise PoolError(
            f"pool {settings.source!r} is ingested already, so pool.{overrides[0]} cannot apply; "
            "leave it out, or name the files as the source"
        )
    return Pool.open(root, settings.source)


def sources_of(settings: PoolSettings, seed: int = 0) -> list[Source]:
    """Return the sources with their roles, or raise PoolError saying what is accepted.

    Args:
        settings: the ``pool`` section.
        seed: the pool seed, which draws the test where ``test_by_seed`` says so.
    """
    make = _made(settings)
    if not settings.test_share:
        return make()
    if any(source.role == "test" for source in make()):
        raise PoolError(
            f"pool.test_share is {settings.test_share}, but {settings.source!r} has test items "
            "already; leave test_share at 0"
        )
    kept, tested = make()[0], make()[0]  # each source is read once
    share, key = settings.test_share, _TEST
    key += b"/%d" % seed if settings.test_by_seed else b""
    return [
        replace(kept, read=lambda: _split(kept.read(), share, "pool", key), total=None),
        replace(
            tested, read=lambda: _split(tested.read(), share, "test", key), role="test", total=None
        ),
    ]


def _made(settings: PoolSettings) -> Callable[[], list[Source]]:
    if settings.source in BUILTIN:
        data = None if settings.data is None else Path(settings.data)
        return lambda: builtin(settings.source, data)
    paths: list[tuple[str, Role]] = [(settings.source, "pool")]
    if settings.test is not None:
        paths.append((settings.test, "test"))
    return lambda: _of_paths(paths, settings)


def _of_paths(paths: Sequence[tuple[str, Role]], settings: PoolSettings) -> list[Source]:
    """Return the sources; the first one's categories are those of all."""
    columns, sources = TableColumns.of(settings.model_dump()), list[Source]()
    for path, role in paths:
        sources.append(_source(Path(path), role, settings, columns))
        columns = columns.like(sources[0].payload)
    return sources


def _source(path: Path, role: Role, settings: PoolSettings, columns: TableColumns) -> Source:
    if path.is_dir():
        for suffix, make in _TABLES.items():
            if any(path.glob(f"*{suffix}")):
                return make(path, columns, role=role)
        return image_source(path, role=role, labeled=settings.labels is None)
    if not path.is_file():
        raise PoolError(
            f"{str(path)!r} does not exist; give a built-in source, a folder of images, or a file "
            f"{', '.join((*_TABLES, *_ARRAYS))}; {nearest(str(path), BUILTIN)}"
        )
    if path.suffix in _TABLES:
        return _TABLES[path.suffix](path, columns, role=role)
    if path.suffix in _ARRAYS:
        return _arrays(path, role, settings)
    raise PoolError(
        f"{path} is of no known kind; known are folders of images, "
        f"{', '.join((*_TABLES, *_ARRAYS))}"
    )


def _arrays(path: Path, role: Role, settings: PoolSettings) -> Source:
    """Read x, and where they are there y and ids, of an .npz file; or x of an .npy file."""
    try:
        loaded = np.load(path, allow_pickle=False)
        named = {"x": loaded} if path.suffix == ".npy" else dict(loaded)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise PoolError(f"{path} cannot be read as arrays ({error}); write it with numpy") from None
    if "x" not in named:
        raise PoolError(
            f"{path} holds {sorted(named)}; an array named x is needed (y, ids: may be)"
        )
    label = settings.label or "y"
    ids = named.get(settings.id or "ids")
    return array_source(
        named["x"],
        named.get(label),
        ids=None if ids is None else [str(i) for i in ids.tolist()],
        features=settings.features,
        missing=settings.missing,
        role=role,
    )


def _split(blocks: Iterable[Rows], share: float, role: Role, key: bytes) -> Iterator[Rows]:
    """Yield the rows whose hash under a key puts them into a role."""
    for block in blocks:
        hashes = keyed_hashes(block.ids, key).astype(np.float64) / 2.0**64
        at = np.flatnonzero((hashes < share) == (role == "test")).tolist()
        yield replace(
            block.taken(at),
            payloads=[block.payloads[i] for i in at],
            quarantined=block.quarantined if role == "pool" else (),
        )


def pool_name(settings: PoolSettings, seed: int) -> str:
    """Return the name under which the settings' pool is ingested."""
    if settings.source in BUILTIN:
        name = settings.source
        if settings.test_share:
            name = f"{name}-{digest([settings.test_share, settings.data], 3)}"
    else:  # two files of one name are two pools
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(settings.source).stem).strip("-.") or "pool"
        chosen = settings.model_dump(exclude={"source", "subset"})
        chosen = {n: v for n, v in chosen.items() if n not in _LATER or v != _LATER[n]}
        name = f"{stem}-{digest([str(Path(settings.source).absolute()), chosen], 3)}"
    if settings.subset is not None:
        return f"{name}-{settings.subset}-s{seed}"
    return f"{name}-s{seed}" if settings.test_by_seed else name


def read_columns(path: Path, id: str) -> tuple[dict[str, npt.NDArray[Any]], list[str] | None]:
    """Return the columns ``[N, …]`` of a Parquet or .npz file, and its ids.

    Raises:
        PoolError: the file is missing, damaged or of another kind.
    """
    if not path.is_file():
        raise PoolError(f"columns file {str(path)!r} does not exist; give a .parquet or .npz file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                columns = {name: archive[name] for name in archive.files}
        elif path.suffix == ".parquet":
            table = pa.parquet.read_table(path)
            columns = {n: _array(table.column(n), n) for n in table.column_names}
        else:
            raise PoolError(f"{path} is neither .parquet nor .npz")
    except (pa.ArrowInvalid, ValueError, zipfile.BadZipFile) as error:
        raise PoolError(f"{path} cannot be read: {error}") from None
    ids = columns.pop(id, None)
    return columns, None if ids is None else [str(i) for i in ids.tolist()]


def _array(column: pa.ChunkedArray, name: str) -> npt.NDArray[Any]:
    values = column.to_pylist()
    try:
        return np.asarray(values)
    except ValueError:
        raise PoolError(f"column {name!r} holds lists of different lengths") from None
