"""The rows of a ledger as frozen values. Times are seconds since the epoch, files are relative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class PoolPart:
    """One immutable file of a pool.

    Args:
        part: its name, unique in the pool.
        file: its path, relative to the storage root.
        role: ``pool`` or ``test``.
        rows: number of items.
        key_sum: sum of their id keys modulo 2**64.
        bytes: size of the file.
    """

    part: str
    file: str
    role: str
    rows: int
    key_sum: int
    bytes: int


@dataclass(frozen=True)
class Snapshot:
    """A pool as it stood at one commit; parts stand in commit order."""

    pool: str
    number: int
    parts: tuple[PoolPart, ...]
    info: dict[str, Any]
    created: float


@dataclass(frozen=True)
class ProjectRow:
    """A project with the pool it works on and the settings it was made with."""

    project: str
    pool: str
    settings: dict[str, Any]
    created: float


@dataclass(frozen=True)
class RoundRow:
    """What a round was begun with: its snapshot, its training set's last label, its seeds."""

    project: str
    round: int
    snapshot: int
    labels_seq: int
    seeds: dict[str, Any]
    begun: float


@dataclass(frozen=True)
class StageRow:
    """A finished stage of a round; ``seconds`` is what it took."""

    project: str
    round: int
    stage: str
    output: dict[str, Any]
    seconds: float
    finished: float


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one committee member after one epoch."""

    model: str
    member: int
    epoch: int
    project: str
    round: int
    file: str
    final: bool
    committed: float


@dataclass(frozen=True)
class ColumnsPart:
    """The columns that one scan computed for one part of a pool.

    Args:
        columns: hash of what was computed.
        part: name of the pool's part.
        file: path of the columns, relative to the storage root.
        rows: number of items.
        key_sum: sum of their id keys modulo 2**64.
    """

    columns: str
    part: str
    file: str
    rows: int
    key_sum: int


@dataclass(frozen=True)
class Pick:
    """One item of a selection.

    Args:
        item: its id.
        key: its 64-bit id key, unsigned.
        rank: order of the picks; the best not picked have ranks of their own.
        score: the strategy's value, None where it has none.
        probability: the chance of having been picked, None where undefined.
    """

    item: str
    key: int
    rank: int
    score: float | None
    probability: float | None


@dataclass(frozen=True)
class SelectionRow:
    """What a round chose, the best it did not choose, and how it came to that."""

    project: str
    round: int
    picks: tuple[Pick, ...]
    runners_up: tuple[Pick, ...]
    provenance: dict[str, Any]
    committed: float


@dataclass(frozen=True)
class Appearance:
    """An item in one selection; ``picked`` is false among the best not picked."""

    project: str
    round: int
    item: str
    key: int
    rank: int
    score: float | None
    probability: float | None
    picked: bool
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Lease:
    """An annotator's hold on an offered item, until ``expires``."""

    lease: str
    item: str
    annotator: str
    round: int
    rank: int
    score: float | None
    expires: float


@dataclass(frozen=True)
class LeaseRow:
    """A lease as history; ``state`` is active, expired, returned, revoked or labeled."""

    lease: str
    project: str
    item: str
    annotator: str
    state: str
    granted: float
    expires: float


@dataclass(frozen=True)
class LabelEntry:
    """An answer to be recorded.

    Args:
        item: id of the item.
        value: the label, a JSON value in the form that the task's label kind gave it.
        lease: the lease it was made under; None for imports and for tools that know no leases.
    """

    item: str
    value: Any
    lease: str | None = None


@dataclass(frozen=True)
class LabelResult:
    """What became of an entry.

    Args:
        item: id of the item.
        status: accepted (fills a slot), surplus (kept, not for training: others were first),
            duplicate (equal to the annotator's current label) or updated (replaces it).
        late: the lease had expired.
        seq: the row of the history that holds the label.
    """

    item: str
    status: Literal["accepted", "surplus", "duplicate", "updated"]
    late: bool
    seq: int


@dataclass(frozen=True)
class LabelRow:
    """A row of the label history; ``slot`` is None for a label that is not for training."""

    project: str
    seq: int
    item: str
    annotator: str
    value: Any
    status: str
    slot: int | None
    late: bool
    lease: str | None
    superseded_by: int | None
    time: float


@dataclass(frozen=True)
class Event:
    """One committed write: ``payload`` is a list of ``[op, table, row, …]``."""

    seq: int
    time: float
    project: str | None
    kind: str
    payload: list[Any]
