"""The rows of a ledger as frozen values. Times are seconds since the epoch, files are relative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rayal.ledger.answers import ItemRow as ItemRow
from rayal.ledger.answers import LabelEntry as LabelEntry
from rayal.ledger.answers import LabelResult as LabelResult
from rayal.ledger.answers import LabelRow as LabelRow
from rayal.ledger.answers import Lease as Lease
from rayal.ledger.answers import LeaseRow as LeaseRow
from rayal.ledger.answers import OfferedRow as OfferedRow
from rayal.ledger.answers import SkipEntry as SkipEntry


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
    """A project with the pool it works on and its settings.

    ``version`` grows by one with each change of the settings.
    """

    project: str
    pool: str
    settings: dict[str, Any]
    created: float
    version: int = 1
    deleted: float | None = None


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
class Event:
    """One committed write: ``payload`` is a list of ``[op, table, row, …]``."""

    seq: int
    time: float
    project: str | None
    kind: str
    payload: list[Any]


@dataclass(frozen=True)
class JobRow:
    """Long work of a project.

    Args:
        job: its id.
        project: whose it is.
        kind: what is to be done.
        args: of the kind.
        state: queued, running, done, failed or cancelled.
        progress: what its owner told last.
        result: what it gave, once done.
        error: why it failed.
        attempts: how often it was begun.
        created: when it was asked for.
        started: when it was begun last.
        finished: when it ended.
        heartbeat: when its owner was heard of last.
        owner: who works on it, or did last.
    """

    job: str
    project: str
    kind: str
    args: dict[str, Any]
    state: str
    progress: dict[str, Any]
    result: Any
    error: str | None
    attempts: int
    created: float
    started: float | None
    finished: float | None
    heartbeat: float | None
    owner: str | None


@dataclass(frozen=True)
class ModelRow:
    """A version of a project's model; at most one is active."""

    project: str
    version: str
    round: int
    model: str
    info: dict[str, Any]
    created: float
    active: bool


@dataclass(frozen=True)
class Suggestion:
    """What a version of the model says of an item."""

    label: Any
    probs: Any
    version: str


@dataclass(frozen=True)
class TokenRow:
    """A bearer token; ``hash`` is the SHA-256 of its text, in hex."""

    token_id: str
    name: str
    scopes: tuple[str, ...]
    hash: str
    created: float
    expires: float | None
    revoked: float | None


@dataclass(frozen=True)
class Stored:
    """The answer that was given to a request, kept for its repetition."""

    status: int
    body: bytes
    headers: dict[str, str]
