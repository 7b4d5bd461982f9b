"""Which of the gathered rows are new: repeats, equal contents, a subset, and what is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayal.engine.gather import Index
from rayal.engine.rows import ROLES, keyed_hashes
from rayal.engine.storage import read_mapped
from rayal.errors import PoolError
from rayal.project.records import PoolPart
from rayal.types import Keys

Content = tuple[str, str]  # role and content hash
Groups = dict[Content, set[str]]  # ids of equal content


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


def surplus(groups: Groups) -> set[str]:
    """Return all ids but the smallest of each group."""
    return {item for group in groups.values() for item in group - {min(group)}}


def subset_of(index: Index, count: int, seed: int) -> Index:
    """Return the ``count`` pool rows with the smallest hash under the seed, and all test rows."""
    pool = np.flatnonzero(index.roles == ROLES.index("pool"))
    hashes = keyed_hashes(index.ids.take(pa.array(pool)).to_pylist(), str(seed).encode())
    chosen = pool[np.lexsort((index.keys[pool], hashes))[:count]]
    rest = np.flatnonzero(index.roles != ROLES.index("pool"))
    return index.take(np.sort(np.concatenate([chosen, rest])))


def known_rows(index: Index, root: Path, parts: Sequence[PoolPart]) -> npt.NDArray[np.bool_]:
    """Return which rows, in id-key order, are in the parts already, bool ``[N]``.

    Raises:
        PoolError: an item is known with another content or role.
    """
    known = np.zeros(len(index), bool)
    for part in parts:
        table = read_mapped(root / part.file)
        keys: Keys = table.column("key").to_numpy()
        at = np.minimum(np.searchsorted(keys, index.keys), len(keys) - 1)
        rows = np.flatnonzero(keys[at] == index.keys)
        there = table.select(["id", "content_hash"]).take(pa.array(at[rows])).to_pylist()
        for row, old in zip(rows.tolist(), there, strict=True):
            _refuse_changed(index, row, {**old, "role": part.role})
        known[rows] = True
    return known


def known_contents(index: Index, root: Path, parts: Sequence[PoolPart]) -> Groups:
    """Return the ids of items of the parts whose content and role a row has."""
    mine = {_content(index, row) for row in range(len(index))}
    groups: Groups = {}
    for role in ROLES:
        wanted = pa.array(sorted(h for r, h in mine if r == role), pa.string())
        for item, content in _holders(root, [p for p in parts if p.role == role], wanted):
            groups.setdefault((role, content), set()).add(item)
    return groups


def holders_of(index: Index, groups: Groups) -> Iterator[tuple[str, Content]]:
    """Yield id and content of every row whose content is in the groups."""
    if groups:
        for row, item in enumerate(index.ids.to_pylist()):
            content = _content(index, row)
            if content in groups:
                yield item, content


def _holders(
    root: Path, parts: Sequence[PoolPart], wanted: pa.Array
) -> Iterator[tuple[str, str]]:
    for part in parts if len(wanted) else ():
        table = read_mapped(root / part.file).select(["id", "content_hash"])
        found = table.filter(pc.is_in(table.column("content_hash"), wanted))
        yield from zip(*(c.to_pylist() for c in found.columns), strict=True)


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


def _refuse_changed(index: Index, row: int, old: dict[str, Any]) -> None:
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
