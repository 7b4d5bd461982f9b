"""Ingest: items of any number of sources become one new snapshot of a pool.

Two passes. The first reads every source once, and keeps an index of about 100 bytes a row and
its id in memory, the payloads in an unlinked temporary file of the pool's folder. The second
takes the new rows in id-key order and writes part after part. So the order of a source never
matters, memory does not grow with the payload, and the disk needs room for it twice meanwhile.
Nothing counts before the ledger commits it: killed and repeated, ingest gives the same snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from rayal.errors import PoolError
from rayal.failpoints import failpoint
from rayal.ledger.ledger import Ledger
from rayal.ledger.location import held
from rayal.ledger.records import Snapshot
from rayal.pool.deduplicate import Settled, distinct, settle
from rayal.pool.gather import Gathered, Progress, Spill, gather
from rayal.pool.known_labels import KnownLabels, label_info, labeled, read_known, write_known
from rayal.pool.readers.table_columns import Missing
from rayal.pool.readers.texts import text_lengths
from rayal.pool.source import ROLES, Kind, Role, Source, StrPath
from rayal.pool.storage import TEMPORARY
from rayal.pool.write_parts import place

_LISTED = 1000  # most quarantined rows and groups of duplicates that a snapshot names
_IDS = 20  # most ids named of each group
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class PlainOptions(TypedDict, total=False):
    """Options of every way of ingest; ``ingest`` describes them."""

    duplicates: Literal["keep", "first"]
    subset: tuple[int, int] | None
    progress: Progress | None


class IngestOptions(PlainOptions, total=False):
    """Options of ingest where the labels may be in a file of their own."""

    labels: StrPath | None


def ingest(
    root: StrPath,
    name: str,
    sources: Sequence[Source],
    *,
    labels: StrPath | None = None,
    duplicates: Literal["keep", "first"] = "keep",
    subset: tuple[int, int] | None = None,
    progress: Progress | None = None,
    ledger: Ledger | None = None,
    wait: float = 0.0,
) -> int:
    """Add the items of sources to a pool and return the snapshot that holds them.

    An item that is known with equal content is skipped; if nothing is new, the latest snapshot
    is returned.

    Args:
        root: the storage root.
        name: name of the pool.
        sources: where the items come from, each with its role.
        labels: CSV or Parquet file of known labels with columns ``id`` and ``label``; the
            sources give none then.
        duplicates: treatment of items of equal content and role: ``keep`` them, or keep the
            ``first``, which is the one in the pool already, else the one with the smallest id.
        subset: (count, seed); keeps the items of the role pool with the smallest hash of
            their id under the seed.
        progress: called with rows read and rows in all, None if not known.
        ledger: the root's, where the caller has it open.
        wait: seconds to wait for another ingest into the pool to end.

    Raises:
        PoolError: the sources do not form a pool, or do not fit the pool that there is.
    """
    root = Path(root)
    _check(name, duplicates, subset)
    payload = _payload(sources)
    known = None if labels is None else read_known(labels)
    with (
        Ledger(root) if ledger is None else nullcontext(ledger) as ledger,
        locked(root / "pools" / name, wait) as folder,
        Spill(folder) as spill,
    ):
        failpoint("ingest.begin")
        before = _before(ledger, name, payload)
        for stray in stray_files(ledger, name):
            stray.unlink()
        read = _read(sources, known, spill, progress)
        info = label_info(read.index.labels, read.kinds, before.info)
        settled = settle(read.index, root, before.parts, drop=duplicates == "first", subset=subset)
        old = before.info.get("labels")
        file = write_known(settled.kept, folder, None if old is None else root / old)
        if file is not None:
            info["labels"] = file.relative_to(root).as_posix()
        if before.number and not settled.new.any() and info.get("labels") == old:
            return before.number
        new = settled.kept.take(settled.new)
        parts = place(new, spill, root=root, pool=name, payload=payload)
        failpoint("ingest.commit")
        counts = _counts(read.quarantined, settled)
        if payload["kind"] == "text":
            counts["lengths"] = text_lengths(settled.kept.sizes)
        return ledger.commit_snapshot(name, parts, {"payload": payload, **info, **counts})


def stray_files(ledger: Ledger, name: str) -> list[Path]:
    """Return the files in a pool's folder that no snapshot holds: a killed ingest left them."""
    folder = ledger.root / "pools" / name
    committed: set[str] = set()
    if name in ledger.pools():
        latest = ledger.snapshot(name)
        committed = {part.file for part in latest.parts}
        infos = [ledger.snapshot(name, n).info for n in range(1, latest.number + 1)]
        committed |= {info["labels"] for info in infos if "labels" in info}
    files = [*folder.glob("*.arrow"), *folder.glob(f"{TEMPORARY}*")]
    return sorted(f for f in files if f.relative_to(ledger.root).as_posix() not in committed)


def remove_stray_files(ledger: Ledger, name: str) -> list[Path]:
    """Remove the stray files of a pool and return them.

    Raises:
        PoolError: an ingest writes to the pool now; what it has written is not stray.
    """
    with locked(ledger.root / "pools" / name):
        files = stray_files(ledger, name)
        for file in files:
            file.unlink()
    return files


def _read(
    sources: Sequence[Source], known: KnownLabels | None, spill: Spill, progress: Progress | None
) -> Gathered:
    """Return all rows, each id once, with their known labels."""
    read = gather(sources, spill, progress)
    index = distinct(read.index)
    if known is None:
        return replace(read, index=index)
    if read.kinds:
        raise PoolError("both the sources and the labels file give labels; give one of them")
    kinds: frozenset[Kind] = frozenset({known.kind} if known.kind else ())
    return replace(read, index=labeled(index, known), kinds=kinds)


def _check(name: str, duplicates: str, subset: tuple[int, int] | None) -> None:
    if not _NAME.fullmatch(name):
        raise PoolError(
            f"{name!r} is not a name of a pool; use letters, digits, '.', '_' and '-', at most 100"
        )
    if duplicates not in ("keep", "first"):
        raise PoolError(f"duplicates is {duplicates!r}; it is keep or first")
    if subset is not None and subset[0] < 1:
        raise PoolError(
            f"subset keeps {subset[0]} items; give (count, seed) with a count from 1 on"
        )


def _payload(sources: Sequence[Source]) -> dict[str, Any]:
    if not sources:
        raise PoolError("no source was given; give at least one")
    first = dict(sources[0].payload)
    for source in sources:
        if source.role not in ROLES:
            raise PoolError(f"role is {source.role!r}; it is one of {', '.join(ROLES)}")
        if dict(source.payload) != first:
            raise PoolError(
                f"the sources differ: {first} and {dict(source.payload)}; "
                "the items of a pool are of one kind"
            )
    return first


def _before(ledger: Ledger, name: str, payload: Mapping[str, Any]) -> Snapshot:
    """Return the latest snapshot; number 0, without parts, where there is none."""
    if name not in ledger.pools():
        return Snapshot(name, 0, (), {}, 0.0)
    before = ledger.snapshot(name)
    if before.info["payload"] != payload:
        raise PoolError(
            f"pool {name!r} holds {before.info['payload']}, the source gives {dict(payload)}; "
            "ingest it into another pool"
        )
    return before


def _counts(quarantined: Sequence[tuple[str, str]], settled: Settled) -> dict[str, Any]:
    roles = settled.kept.roles[settled.new]
    groups = sorted(sorted(ids) for ids in settled.groups.values())
    return {
        "added": {role: int((roles == number).sum()) for number, role in enumerate(ROLES)},
        "unchanged": int((~settled.new).sum()),
        "quarantined": {"count": len(quarantined), "rows": list(quarantined[:_LISTED])},
        "duplicates": {
            "count": sum(len(ids) - 1 for ids in groups),
            "groups": [ids[:_IDS] for ids in groups[:_LISTED]],
        },
    }


@contextmanager
def locked(folder: Path, seconds: float = 0.0) -> Iterator[Path]:
    """Make a pool's folder and lock it against a second ingest.

    One that was made here, and that nothing was put into, is removed again.

    Args:
        folder: the pool's folder.
        seconds: longest wait for another ingest to end.

    Raises:
        PoolError: another ingest goes on.
    """
    with ExitStack() as stack:
        try:
            own = stack.enter_context(held(folder, seconds))
        except BlockingIOError:
            raise PoolError(f"another ingest writes to {folder}; wait until it has ended") from None
        try:
            yield folder
        finally:
            if own.made:
                own.remove_empty()


class TableOptions(IngestOptions, total=False):
    """Further options for ingest of tables.

    ``id``, ``label`` and ``features`` name columns, ``text`` one of texts, ``categorical`` those
    of categories, with the values that ``categories`` gives or the source has; ``missing`` is what
    a NaN, inf or null feature, another category or a missing text does, ``error`` or
    ``quarantine``; ``role`` is that of the items.
    """

    id: str | None
    label: str | None
    features: Sequence[str] | None
    categorical: Sequence[str] | None
    categories: Mapping[str, Sequence[str]] | None
    text: str | None
    missing: Missing
    role: Role


class FileOptions(TableOptions, total=False):
    """Further options for ingest of files of tables.

    ``test`` is a path of items for the test; ``confidence`` names the column of the
    annotators' confidence in their labels, in [0, 1].
    """

    test: StrPath | None
    confidence: str | None


class DatasetOptions(TableOptions, total=False):
    """Further options for ingest of a Ray Dataset: ``image``, the column of images."""

    image: str | None
