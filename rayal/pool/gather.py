"""The first pass of ingest: an index of all rows in memory, their payloads on disk.

A row costs about 100 bytes of memory beside its id; payloads go to an unlinked temporary file in
the pool's folder, which the system removes even when the process is killed.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayal.errors import PoolError
from rayal.pool.source import ROLES, Kind, Rows, Source
from rayal.types import Keys, id_keys

Integers = npt.NDArray[np.int64]
Progress = Callable[[int, int | None], None]


class Spill:
    """Payloads on disk, in the order of arrival; a context manager.

    Args:
        folder: on the file system that has room for all payloads.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=1 << 20)  # noqa: SIM115
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, payloads: Sequence[bytes | memoryview]) -> tuple[Integers, Integers]:
        """Store payloads and return their offsets and sizes in bytes."""
        self._file.writelines(payloads)
        sizes = np.fromiter(map(len, payloads), np.int64, len(payloads))
        offsets = self._end + np.cumsum(sizes) - sizes
        self._end += int(sizes.sum())
        return offsets, sizes

    def read(self, offsets: Integers, sizes: Integers) -> bytearray:
        """Return payloads, one behind the other, in the order that is asked for."""
        self._file.flush()
        data = bytearray(int(sizes.sum()))
        view, start = memoryview(data), 0
        for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
            got = os.preadv(self._file.fileno(), [view[start : start + size]], offset)
            if got != size:
                raise PoolError(f"the temporary file gave {got} of {size} bytes; check the disk")
            start += size
        return data


@dataclass(frozen=True)
class Index:
    """Ids, digests, places and labels of N rows, without their payloads.

    Args:
        ids: large_string ``[N]``.
        keys: uint64 ``[N]``, keys of the ids.
        digests: uint8 ``[N, 16]``, blake2b of the payloads.
        roles: uint8 ``[N]``, positions in ``ROLES``.
        offsets: int64 ``[N]``, bytes into the spill.
        sizes: int64 ``[N]``, bytes.
        labels: large_string ``[N]``, null where none is known.
        confidences: float64 ``[N]``, annotators' confidence in the labels; NaN where unknown.
    """

    ids: pa.Array
    keys: Keys
    digests: npt.NDArray[np.uint8]
    roles: npt.NDArray[np.uint8]
    offsets: Integers
    sizes: Integers
    labels: pa.Array
    confidences: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: npt.NDArray[Any]) -> Index:
        """Return the rows at positions, or under a boolean mask."""
        positions = np.flatnonzero(rows) if rows.dtype == bool else rows
        columns = (getattr(self, f.name) for f in fields(self))
        at = pa.array(positions)
        return Index(*(c.take(at) if isinstance(c, pa.Array) else c[positions] for c in columns))

    def content_hash(self, row: int) -> str:
        """Return the hash of one row's payload as hex."""
        return bytes(self.digests[row]).hex()

    def words(self) -> npt.NDArray[np.uint64]:
        """Return the digests as uint64 ``[N, 2]``, for sorting and comparing."""
        return np.ascontiguousarray(self.digests).view(np.uint64)


@dataclass(frozen=True)
class Gathered:
    """All rows of an ingest.

    Args:
        index: the usable rows, in order of arrival.
        kinds: kinds of the sources' labels.
        quarantined: (id, reason) of the others, sorted.
    """

    index: Index
    kinds: frozenset[Kind]
    quarantined: list[tuple[str, str]]


def gather(
    sources: Sequence[Source], spill: Spill, progress: Progress | None, *, strict: bool = True
) -> Gathered:
    """Read all sources once; ``progress`` is called with rows read and rows in all, if known.

    Args:
        sources: where the rows come from.
        spill: where their payloads go.
        progress: told how far it is.
        strict: whether it is an error that many rows are quarantined, or that none is left.

    Raises:
        PoolError: a row has an empty id, or too many rows are quarantined.
    """
    totals = [s.total for s in sources]
    total = None if None in totals else sum(t for t in totals if t is not None)
    chunks = [] if strict else [_index(Rows([], []), 0, spill)]
    kinds: set[Kind] = set()
    quarantined: list[tuple[str, str]] = []
    done = 0
    for source in sources:
        for rows in source.read():
            chunks.append(_index(rows, ROLES.index(source.role), spill))
            kinds |= {rows.kind} if rows.kind else set()
            quarantined += rows.quarantined
            done += len(rows.ids) + len(rows.quarantined)
            if progress is not None:
                progress(done, total)
    if strict:
        _refuse_many(sorted(quarantined), done)
        _refuse_none(chunks)
    return Gathered(_merged(chunks), frozenset(kinds), sorted(quarantined))


def _index(rows: Rows, role: int, spill: Spill) -> Index:
    count = len(rows.ids)
    if "" in rows.ids:
        raise PoolError(f"an id is empty, beside {list(rows.ids[:3])}; every row needs an id")
    large = [i for i, p in zip(rows.ids, rows.payloads, strict=True) if len(p) >= 1 << 31]
    if large:
        raise PoolError(f"item {large[0]!r} has 2 GiB or more; cut it into smaller items")
    digests = b"".join(hashlib.blake2b(p, digest_size=16).digest() for p in rows.payloads)
    labels = [None] * count if rows.labels is None else rows.labels
    sure = [None] * count if rows.confidences is None else rows.confidences
    return Index(
        pa.array(rows.ids, pa.large_string()),
        id_keys(rows.ids),
        np.frombuffer(digests, np.uint8).reshape(count, 16),
        np.full(count, role, np.uint8),
        *spill.append(rows.payloads),
        pa.array(labels, pa.large_string()),
        np.array(sure, np.float64),
    )


def _refuse_none(chunks: list[Index]) -> None:
    if not sum(map(len, chunks)):
        raise PoolError("the source has no usable rows; give at least one item")


def _merged(chunks: list[Index]) -> Index:
    columns = ([getattr(c, f.name) for c in chunks] for f in fields(Index))
    return Index(
        *(pa.concat_arrays(c) if isinstance(c[0], pa.Array) else np.concatenate(c) for c in columns)
    )


def _refuse_many(quarantined: list[tuple[str, str]], rows: int) -> None:
    if len(quarantined) > 10 and len(quarantined) > rows / 100:
        first = "; ".join(f"{item!r}: {reason}" for item, reason in quarantined[:3])
        raise PoolError(
            f"{len(quarantined)} of {rows} rows cannot be used, at most 1 % or 10 may be so; "
            f"repair or remove them. The first: {first}"
        )
