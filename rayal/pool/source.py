"""Sources of items: every reader gives one to ingest, and it yields rows as bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayal.errors import PoolError
from rayal.types import Keys

Role = Literal["pool", "test"]
ROLES: tuple[Role, ...] = ("pool", "test")
Kind = Literal["class", "integer", "number"]
StrPath = str | PathLike[str]
Texts = Sequence[str | None]
Confidences = Sequence[float | None]


@dataclass(frozen=True)
class Rows:
    """Some rows of a source.

    Args:
        ids: their ids.
        payloads: the bytes of each row.
        labels: the known label of each row as text, None where there is none.
        kind: kind of the labels; ``integer`` is read as a class or as a number.
        quarantined: rows that cannot be used, as (id, reason); they are not among the others.
        confidences: annotators' confidence in each label, in [0, 1]; None where unknown.
    """

    ids: Sequence[str]
    payloads: Sequence[bytes | memoryview]
    labels: Texts | None = None
    kind: Kind | None = None
    quarantined: Sequence[tuple[str, str]] = ()
    confidences: Confidences | None = None

    def taken(self, at: Sequence[int]) -> Rows:
        """Return the ids, labels and confidences at positions; payloads stay behind."""
        labels, sure = (
            None if column is None else [column[row] for row in at]
            for column in (self.labels, self.confidences)
        )
        ids = [self.ids[row] for row in at]
        return Rows(ids, [], cast(Texts | None, labels), self.kind, (), cast(Any, sure))


@dataclass(frozen=True)
class Source:
    """A source of items, all of one role.

    Args:
        payload: description of a row's bytes, the same for all rows.
        read: called once; yields the rows in any order.
        role: ``pool`` for items to choose from, ``test`` for items to measure on.
        total: number of rows, None where it is not known beforehand.
    """

    payload: Mapping[str, Any]
    read: Callable[[], Iterable[Rows]]
    role: Role = "pool"
    total: int | None = None


def label_texts(values: pa.Array) -> tuple[Texts, Kind | None]:
    """Return typed labels as text, with their kind; null, NaN and empty text are no label."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    if pa.types.is_null(kind):
        return values.to_pylist(), None
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [text or None for text in values.to_pylist()], "class"
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return values.cast(pa.string()).to_pylist(), "integer"
    if pa.types.is_floating(kind):
        return [None if v is None or v != v else repr(v) for v in values.to_pylist()], "number"
    raise PoolError(f"labels of type {kind} are not known; give text, whole numbers or floats")


def confidences_of(values: pa.Array, ids: Sequence[str], column: str) -> Confidences:
    """Return confidences as numbers; null and NaN are none.

    Args:
        values: numeric, ``[N]``.
        ids: ids of the rows, for the error message.
        column: name of the column, for the error message.

    Raises:
        PoolError: one lies outside of [0, 1].
    """
    numbers = values.cast(pa.float64()).to_pylist()
    confidences = [None if v is None or v != v else float(v) for v in numbers]
    for item, value in zip(ids, confidences, strict=True):
        if value is not None and not 0.0 <= value <= 1.0:
            raise PoolError(
                f"item {item!r} has {column} {value}; confidences are shares in [0, 1]: divide "
                "percentages by 100"
            )
    return confidences


def written_labels(values: pa.Array) -> tuple[Texts, Kind | None]:
    """Return labels of a text file as they are written, with the kind that all of them fit."""
    texts = [text or None for text in values.to_pylist()]
    written = pa.array([text for text in texts if text is not None], pa.string())
    if not len(written):
        return texts, None
    if pc.all(pc.match_substring_regex(written, r"^[+-]?[0-9]+$")).as_py():
        return texts, "integer"
    try:
        written.cast(pa.float64())
    except pa.ArrowInvalid:
        return texts, "class"
    return texts, "number"


def keyed_hashes(ids: Iterable[str], key: bytes) -> Keys:
    """Return blake2b of each id under a key, uint64 ``[N]``: a draw that knows no row order."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8, key=key).digest() for i in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def files_of(path: StrPath, suffixes: Sequence[str], what: str) -> Iterator[tuple[str, Path]]:
    """Yield a file, or the files with such a suffix under a folder, each with its short name.

    Raises:
        PoolError: there is no such file.
    """
    path = Path(path)
    accepted = f"{what} is a file, or a folder with files *{', *'.join(suffixes)}"
    if path.is_file():
        yield path.name, path
    elif path.is_dir():
        files = sorted(f for s in suffixes for f in path.rglob(f"*{s}") if f.is_file())
        if not files:
            raise PoolError(f"the folder {path} has none; {accepted}")
        yield from ((f.relative_to(path).as_posix(), f) for f in files)
    else:
        raise PoolError(f"{path} does not exist; {accepted}")
