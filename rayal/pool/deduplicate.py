"""Deduplicate gathered rows and compare them with the pool."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayal.errors import PoolError
from rayal.ledger.records import PoolPart
from rayal.pool.gather import Index
from rayal.pool.source import ROLES, keyed_hashes
from rayal.pool.storage import read_mapped
from rayal.types import Keys

Content = tuple[str, str]  # role and content hash
Groups = dict[Content, set[str]]  # ids of equal content


@dataclass(frozen=True)
class Settled:
    """The rows that an ingest leaves in the pool.

    Args:
        kept: rows in id-key order that the pool holds afterwards.
        new: true for rows that it does not hold yet, bool ``[N]``.
        groups: ids of equal content and role.
    """

    kept: Index
    new: npt.NDArray[np.bool_]
    groups: Groups


def settle(
    index: Index,
    root: Path,
    parts: Sequence[PoolPart],
    *,
    drop: bool,
    subset: tuple[int, int] | None,
) -> Settled:
    """Decide which rows the pool will hold.

    Args:
        index: rows in id-key order, each id once.
        root: the storage root.
        parts: parts that the pool holds.
        drop: whether only the first of equal contents is kept.
        subset: (count, seed) of the rows that are kept; None for all.
    """
    groups = equal_contents(index)
    if drop:
        index = without(index, {item for ids in groups.values() for item in ids - {min(ids)}})
    if subset is not None:
        index = subset_of(index, *subset)
    known = known_rows(index, root, parts)
    twins, ids = known_contents(index.take(~known), root, parts)
    for content, items in twins.items():
        groups[content] = groups.get(content, set()) | items
    if drop and ids:
        index = without(index, ids)
        known = known_rows(index, root, parts)
    return Settled(index, ~known, groups)


def distinct(index: Index) -> Index:
    """Return the rows in id-key order, each id once; a labeled row goes before one without.

    Raises:
        PoolError: an id has two contents, roles or labels, or two ids have one key.
    """
    unlabeled = np.asarray(index.labels.is_null())
    rows = index.take(np.lexsort((unlabeled, index.keys)))
    repeated = np.concatenate([[False], rows.keys[1:] == rows.keys[:-1]])
    for row in np.flatnonzero(repeated).tolist():
        _refuse_other(rows, row - 1, row)
    return rows.take(~repeated)


def equal_contents(index: Index) -> Groups:
    """Return the ids of every content that several rows of one role have."""
    words = index.words()
    order = np.lexsort((words[:, 1], words[:, 0], index.roles))
    words, roles = words[order], index.roles[order]
    differs = (words[1:] != words[:-1]).any(axis=1) | (roles[1:] != roles[:-1])
    starts = np.concatenate([[0], np.flatnonzero(differs) + 1, [len(index)]])
    groups: Groups = {}
    for at in np.flatnonzero(np.diff(starts) > 1).tolist():
        rows = order[starts[at] : starts[at + 1]]
        groups[_content(index, int(rows[0]))] = set(index.ids.take(pa.array(rows)).to_pylist())
    return groups


def without(index: Index, ids: set[str]) -> Index:
    """Return the rows whose id is not among these."""
    if not ids:
        return index
    return index.take(~np.asarray(pc.is_in(index.ids, pa.array(sorted(ids), pa.large_string()))))


def subset_of(index: Index, count: int, seed: int) -> Index:
    """Return the ``count`` pool rows with the smallest hash under the seed, and all test rows."""
    pool = np.flatnonzero(index.roles == ROLES.index("pool"))
    hashes = keyed_hashes(index.ids.take(pa.array(pool)).to_pylist(), str(seed).encode())
    chosen = pool[np.lexsort((index.keys[pool], hashes))[:count]]
    rest = np.flatnonzero(index.roles != ROLES.index("pool"))
    return index.take(np.sort(np.concatenate([chosen, rest])))


def known_rows(index: Index, root: Path, parts: Sequence[PoolPart]) -> npt.NDArray[np.bool_]:
    """Return true for the rows, in id-key order, that are in the parts, bool ``[N]``.

    Raises:
        PoolError: an item is known with another content or role.
    """
    known = np.zeros(len(index), bool)
    for part in parts:
        table = read_mapped(root / part.file)
        keys: Keys = table.column("key").to_numpy()
        at = np.minimum(np.searchsorted(index.keys, keys), len(index) - 1)
        shared = np.flatnonzero(index.keys[at] == keys)
        there = table.select(["id", "content_hash"]).take(pa.array(shared)).to_pylist()
        for row, old in zip(at[shared].tolist(), there, strict=True):
            refuse_changed(index, row, {**old, "role": part.role})
        known[at[shared]] = True
    return known


def known_contents(index: Index, root: Path, parts: Sequence[PoolPart]) -> tuple[Groups, set[str]]:
    """Return the contents that rows share with items of the parts, and the ids of those rows."""
    mine = np.unique(index.words()[:, 0])
    holders: Groups = {}
    for part in parts if len(mine) else ():
        for item, digest in _holders(root / part.file, mine):
            holders.setdefault((part.role, digest), set()).add(item)
    firsts = np.array([_words(digest)[0] for _, digest in holders], np.uint64)
    twins: Groups = {}
    for row in np.flatnonzero(np.isin(index.words()[:, 0], firsts)).tolist():
        content = _content(index, row)
        if content in holders:
            twins.setdefault(content, set()).add(index.ids[row].as_py())
    return {c: holders[c] | ids for c, ids in twins.items()}, set().union(*twins.values())


def _holders(file: Path, wanted: Keys) -> Iterator[tuple[str, str]]:
    """Yield id and content hash of the rows whose hash begins with one of the wanted words."""
    table = read_mapped(file).select(["id", "content_hash"])
    words = _words("".join(table.column("content_hash").to_pylist()))[::2]
    matches = table.take(pa.array(np.flatnonzero(np.isin(words, wanted))))
    yield from zip(*(c.to_pylist() for c in matches.columns), strict=True)


def _words(digests: str) -> Keys:
    return np.frombuffer(bytes.fromhex(digests), np.uint64)


def _content(index: Index, row: int) -> Content:
    return ROLES[index.roles[row]], index.content_hash(row)


def _refuse_other(rows: Index, first: int, second: int) -> None:
    ids, labels = (c.take(pa.array([first, second])).to_pylist() for c in (rows.ids, rows.labels))
    if ids[0] != ids[1]:
        raise PoolError(f"ids {sorted(ids)} have the same 64-bit key; rename one of the items")
    item, contents = ids[0], sorted(rows.content_hash(r) for r in (first, second))
    if contents[0] != contents[1]:
        raise PoolError(
            f"id {item!r} stands for two contents, {contents[0]} and {contents[1]}; "
            "every item needs an id of its own"
        )
    if rows.roles[first] != rows.roles[second]:
        raise PoolError(f"id {item!r} is given for the pool and for the test; it can be in one")
    if None not in labels and labels[0] != labels[1]:
        raise PoolError(f"id {item!r} has two labels, {sorted(labels)}; give one")


def refuse_changed(index: Index, row: int, old: dict[str, Any]) -> None:
    """Raise PoolError unless a row is the item, content and role that ``old`` says."""
    item, (role, content) = index.ids[row].as_py(), _content(index, row)
    if old["id"] != item:
        raise PoolError(f"ids {item!r} and {old['id']!r} have the same 64-bit key; rename one")
    if old["content_hash"] != content:
        raise PoolError(
            f"item {item!r} is in the pool with content {old['content_hash']}, the source has "
            f"{content}; items never change: give the new content another id"
        )
    if old["role"] != role:
        raise PoolError(f"item {item!r} is in the pool as {old['role']}, and given as {role}")
