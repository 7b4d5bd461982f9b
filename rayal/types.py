"""Frozen values that every layer shares: id keys, columns, seeds, selections."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

TILE_ROWS = 4096  # the unit of all arithmetic: a record batch of a part
PART_ROWS = 4 * TILE_ROWS
PARTS = 16  # of a pool at least, as far as its tiles go round: so many workers have work
PART_BYTES = 64 << 20
FORMAT_VERSION = "1"  # stands in the metadata of every file of a storage root

Keys = npt.NDArray[np.uint64]


def part_rows(rows: int) -> int:
    """Return the rows of a full part of a pool of so many rows: whole tiles, PART_ROWS at most."""
    tiles = -(-rows // (PARTS * TILE_ROWS))
    return min(PART_ROWS, max(1, tiles) * TILE_ROWS)


def id_keys(ids: Iterable[str]) -> Keys:
    """Return the 64-bit keys of ids (blake2b), uint64 ``[N]``: they order rows and break ties."""
    digests = b"".join(hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def key_sum(keys: Keys) -> int:
    """Return the sum of keys modulo 2**64: with the row count, a fingerprint of a set of rows."""
    return int(np.add.reduce(keys, dtype=np.uint64))


def digest(value: Any, size: int = 8) -> str:
    """Return a hex digest of a JSON-like value: the hash of settings, columns and models."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()


_LATER = "later"  # in a field's metadata


def later(default: Any = MISSING, *, default_factory: Callable[[], Any] | Any = MISSING) -> Any:
    """Return a dataclass field that came after values of its class were hashed and stored.

    While it is at its default, ``stated`` and ``told`` leave it out: what was hashed and stored
    before the field came stays as it is.

    Args:
        default: its default, under which everything is as it was without the field.
        default_factory: in its place, makes the default.
    """
    return field(default=default, default_factory=default_factory, metadata={_LATER: True})


def stated(value: Any) -> Any:
    """Return the stored and hashed form of a value: for a dataclass a dictionary of its fields.

    It is that of ``dataclasses.asdict``, without later fields that are at their default.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: stated(getattr(value, f.name)) for f in _stated_fields(value)}
    if isinstance(value, list | tuple):
        parts = map(stated, value)
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return type(value)((stated(name), stated(part)) for name, part in value.items())
    return copy.deepcopy(value)


def told(value: Any) -> str:
    """Return the repr of a value that is hashed, without later fields that are at their default."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = (
            f"{f.name}={told(getattr(value, f.name))}" for f in _stated_fields(value) if f.repr
        )
        return f"{type(value).__qualname__}({', '.join(shown)})"
    if type(value) is tuple:
        return f"({', '.join(map(told, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def later_fields(value: Any) -> Iterator[str]:
    """Yield the names of a dataclass's later fields that are not at their default."""
    return (f.name for f in _stated_fields(value) if _LATER in f.metadata)


def _stated_fields(value: Any) -> Iterator[Field[Any]]:
    for known in fields(value):
        if _LATER not in known.metadata or getattr(value, known.name) != _default(known):
            yield known


def _default(known: Field[Any]) -> Any:
    factory = known.default_factory
    return known.default if factory is MISSING else factory()


class Columns(Mapping[str, "torch.Tensor"]):
    """Named tensors with leading dimension N, always together with the ids of their rows.

    Args:
        data: name to tensor; every tensor has the same leading dimension.
        ids: the N ids, in row order.
    """

    __slots__ = ("_data", "ids")

    def __init__(self, data: Mapping[str, torch.Tensor], ids: Sequence[str]) -> None:
        self._data = dict(data)
        self.ids = ids
        wrong = {n: tuple(t.shape) for n, t in self._data.items() if t.shape[0] != len(ids)}
        if wrong:
            raise ValueError(f"columns of {len(ids)} rows expected, got shapes {wrong}")

    def __getitem__(self, name: str) -> torch.Tensor:
        try:
            return self._data[name]
        except KeyError:
            raise KeyError(f"no column {name!r}; there are {sorted(self._data)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)


@dataclass(frozen=True)
class Seeds:
    """The three sources of chance of a cell: the data, the model, the query.

    Args:
        pool: draws the subset and the initial labeled set.
        model: draws weights, batch order, augmentation and dropout masks.
        query: draws what a strategy draws.
    """

    pool: int = 0
    model: int = 0
    query: int = 0


@dataclass(frozen=True)
class Selection:
    """The k chosen rows, in pick order.

    Attributes:
        positions: int64 ``[k]``, rows of the arrays that were given.
        ids: their ids (the positions as text when none were given).
        scores: float64 ``[k]``, the strategy's value of each pick at the moment it was picked.
        approximation: what made the choice approximate, by parameter; None when it was exact.
    """

    positions: npt.NDArray[np.int64]
    ids: tuple[str, ...]
    scores: npt.NDArray[np.float64]
    approximation: Mapping[str, Any] | None = None
