"""A pool, opened for reading: parts memory-mapped, and items by id.

Neither torch nor ray is loaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self, Unpack, cast

import numpy.typing as npt
import pyarrow as pa

from rayal.errors import UnknownNameError
from rayal.ledger.ledger import Ledger
from rayal.ledger.records import PoolPart as Part
from rayal.ledger.records import Snapshot
from rayal.pool.ingest import (
    DatasetOptions,
    FileOptions,
    IngestOptions,
    PlainOptions,
    TableOptions,
    ingest,
)
from rayal.pool.lookup import Lookup, verify
from rayal.pool.readers.arrays import array_source, idx_source
from rayal.pool.readers.datasets import dataset_source
from rayal.pool.readers.images import image_source
from rayal.pool.readers.table_columns import Missing, TableColumns
from rayal.pool.readers.tables import (
    csv_source,
    jsonl_source,
    parquet_source,
    table_source,
)
from rayal.pool.source import Role, Source, StrPath
from rayal.pool.storage import present, read_mapped

__all__ = ["Part", "Pool"]

_Maker = Callable[..., Source]


class Pool:
    """A snapshot of a pool, opened for reading.

    It pickles as the root and the ledger's record of the snapshot, so a worker needs the files
    alone, not the ledger.

    Args:
        root: the storage root.
        record: the ledger's record of the snapshot.

    Attributes:
        root: the storage root, absolute.
        name: name of the pool.
        snapshot: number of the snapshot.
        info: facts that ingest recorded: payload, classes, counts.
        parts: the files, in commit order.
    """

    def __init__(self, root: StrPath, record: Snapshot) -> None:
        self.root = Path(root).absolute()
        self.name = record.pool
        self.snapshot = record.number
        self.info: dict[str, Any] = record.info
        self.parts: tuple[Part, ...] = record.parts
        self._record = record

    def __reduce__(self) -> tuple[type[Self], tuple[Path, Snapshot]]:
        return type(self), (self.root, self._record)

    def __repr__(self) -> str:
        rows = ", ".join(f"{self.rows(role)} {role}" for role in ("pool", "test"))
        return f"Pool({self.name!r}, snapshot {self.snapshot}: {rows})"

    @classmethod
    def open(cls, root: StrPath, name: str, snapshot: int | None = None) -> Self:
        """Open a snapshot of a pool, the latest by default.

        Raises:
            StorageError: there is no ledger at the root.
            UnknownNameError: there is no such pool or snapshot.
        """
        with Ledger(Path(root), create=False) as ledger:
            return cls(root, ledger.snapshot(name, snapshot))

    @property
    def payload(self) -> dict[str, Any]:
        """The description of a row's bytes, such as their kind and shape."""
        return dict(self.info["payload"])

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The classes of the known labels, in order; None if they are no classes, or none."""
        return tuple(self.info["classes"]) if "classes" in self.info else None

    def labels_file(self) -> Path | None:
        """Return the file of the known labels, which an oracle may open; None without labels."""
        return self.root / self.info["labels"] if "labels" in self.info else None

    @property
    def bytes_on_disk(self) -> int:
        """Bytes of the parts and of the file of known labels."""
        known = self.labels_file()
        return sum(p.bytes for p in self.parts) + (known.stat().st_size if known else 0)

    def parts_of(self, role: str) -> tuple[Part, ...]:
        """Return the parts of one role, ``pool`` or ``test``."""
        return tuple(part for part in self.parts if part.role == role)

    def __len__(self) -> int:
        return self.rows("pool")

    def rows(self, role: str) -> int:
        """Return the number of items of one role."""
        return sum(part.rows for part in self.parts_of(role))

    def ids(self, role: str = "pool") -> Iterator[str]:
        """Yield the ids of one role, in the order of the parts."""
        for part in self.parts_of(role):
            for batch in self.read(part).select(["id"]).to_batches():
                yield from batch.column(0).to_pylist()

    def read(self, part: Part) -> pa.Table:
        """Return a part, memory-mapped.

        Raises:
            StorageError: the file is missing or damaged, or is not what the ledger holds.
        """
        path = present(self.root / part.file)
        table = read_mapped(path)
        verify(part, path, table.column("key").to_numpy())
        return table

    def contains(self, ids: Sequence[str]) -> list[bool]:
        """Return for each id whether it is in the pool, in either role."""
        return self.lookup.contains(ids)

    def take(self, ids: Sequence[str]) -> pa.Table:
        """Return the rows of items, of either role, in the order of their ids.

        Only the pages of these rows are read. The first call reads the keys, 8 bytes an item.

        Raises:
            UnknownNameError: an id is not in the pool.
        """
        missing = [i for i, there in zip(ids, self.contains(ids), strict=True) if not there]
        if missing:
            raise UnknownNameError(
                f"{len(missing)} of {len(ids)} items are not in pool {self.name!r}, snapshot "
                f"{self.snapshot}: {', '.join(map(repr, missing[:3]))}; "
                f"its ids look like {list(islice(chain(self.ids(), self.ids('test')), 2))}"
            )
        return self.lookup.take(ids)

    @cached_property
    def lookup(self) -> Lookup:
        """The rows by their ids and keys."""
        return Lookup(self.root, self.parts)

    @classmethod
    def ingest(
        cls,
        root: StrPath,
        name: str,
        sources: Sequence[Source],
        **options: Unpack[IngestOptions],
    ) -> Self:
        """Ingest several sources as one snapshot and return it; see ``ingest`` for the options."""
        return cls.open(root, name, ingest(root, name, sources, **options))

    @classmethod
    def from_images(
        cls,
        root: StrPath,
        name: str,
        folder: StrPath,
        *,
        test: StrPath | None = None,
        role: Role = "pool",
        **options: Unpack[IngestOptions],
    ) -> Self:
        """Ingest a folder of images; subfolders are classes, unless a labels file is given."""
        labeled = options.get("labels") is None
        sources = [image_source(folder, role=role, labeled=labeled)]
        if test is not None:
            sources.append(image_source(test, role="test", labeled=labeled))
        return cls.ingest(root, name, sources, **options)

    @classmethod
    def from_parquet(
        cls,
        root: StrPath,
        name: str,
        path: StrPath,
        **options: Unpack[FileOptions],
    ) -> Self:
        """Ingest a Parquet file, or all ``*.parquet`` under a folder."""
        return cls._tables(parquet_source, root, name, path, options)

    @classmethod
    def from_csv(
        cls,
        root: StrPath,
        name: str,
        path: StrPath,
        **options: Unpack[FileOptions],
    ) -> Self:
        """Ingest a CSV file with a header, or all ``*.csv`` under a folder."""
        return cls._tables(csv_source, root, name, path, options)

    @classmethod
    def from_jsonl(
        cls,
        root: StrPath,
        name: str,
        path: StrPath,
        **options: Unpack[FileOptions],
    ) -> Self:
        """Ingest a file with one JSON object a line, or all of a folder."""
        return cls._tables(jsonl_source, root, name, path, options)

    @classmethod
    def from_tables(
        cls,
        root: StrPath,
        name: str,
        tables: Iterable[pa.Table | pa.RecordBatch],
        **options: Unpack[TableOptions],
    ) -> Self:
        """Ingest Arrow tables or record batches, each read once."""
        return cls._tables(table_source, root, name, tables, cast(FileOptions, options))

    @classmethod
    def from_dataset(
        cls, root: StrPath, name: str, dataset: Any, **options: Unpack[DatasetOptions]
    ) -> Self:
        """Ingest a Ray Dataset of numbers or images; ``id`` must name its column of ids."""
        own = set(DatasetOptions.__annotations__) - set(IngestOptions.__annotations__)
        columns = {key: value for key, value in options.items() if key in own}
        rest = {key: value for key, value in options.items() if key not in own}
        source = dataset_source(dataset, **cast(Any, columns))
        return cls.ingest(root, name, [source], **cast(IngestOptions, rest))

    @classmethod
    def from_arrays(
        cls,
        root: StrPath,
        name: str,
        x: npt.ArrayLike,
        y: npt.ArrayLike | None = None,
        *,
        ids: Sequence[str] | None = None,
        features: Sequence[str] | None = None,
        missing: Missing = "error",
        role: Role = "pool",
        **options: Unpack[IngestOptions],
    ) -> Self:
        """Ingest uint8 images or rows of numbers; see ``array_source`` for shapes and names."""
        source = array_source(x, y, ids=ids, features=features, missing=missing, role=role)
        return cls.ingest(root, name, [source], **options)

    @classmethod
    def from_idx(
        cls,
        root: StrPath,
        name: str,
        images: StrPath,
        labels: StrPath | None = None,
        *,
        role: Role = "pool",
        **options: Unpack[PlainOptions],
    ) -> Self:
        """Ingest an IDX file of images, plain or gzipped, with the IDX file of its labels."""
        return cls.ingest(root, name, [idx_source(images, labels, role=role)], **options)

    @classmethod
    def _tables(
        cls,
        make: _Maker,
        root: StrPath,
        name: str,
        table: Any,
        options: FileOptions,
    ) -> Self:
        columns = TableColumns.of(options)
        sources = [make(table, columns, role=options.get("role", "pool"))]
        test = options.get("test")
        if test is not None:
            alike = columns.like(sources[0].payload)
            sources.append(make(test, alike, role="test"))
        own = set(FileOptions.__annotations__) - set(IngestOptions.__annotations__)
        rest = {name: value for name, value in options.items() if name not in own}
        return cls.ingest(root, name, sources, **cast(IngestOptions, rest))
