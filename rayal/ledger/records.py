"""The rows that the ledger returns, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
    """A round as it was begun: its snapshot, its training set's last label, its seeds."""

    project: str
    round: int
    snapshot: int
    labels_seq: int
    seeds: dict[str, Any]
    begun: float


@dataclass(frozen=True)
class StageRow:
    """A finished stage of a round; ``seconds`` is the time that it took."""

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
    """The items that a round chose, the best of the others, and the provenance of the choice."""

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
        project: name of its project.
        kind: kind of the work.
        args: arguments of the kind.
        state: queued, running, done, failed or cancelled.
        progress: last progress that its owner recorded.
        result: its result, once done.
        error: why it failed.
        attempts: number of times it was begun.
        created: when it was asked for.
        started: when it was begun last.
        finished: when it ended.
        heartbeat: when its owner was heard of last.
        owner: worker that has it, or had it last.
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
    """The label of an item that a version of the model suggests, with its probabilities."""

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


State = Literal["unlabeled", "offered", "leased", "labeled", "skipped", "conflict", "forgotten"]
Status = Literal[
    "accepted",
    "surplus",
    "duplicate",
    "updated",
    "conflict",
    "rejected",
    "skipped",
    "retracted",
]


@dataclass(frozen=True)
class ItemRow:
    """An item that was touched: offered, labeled or skipped; ``round`` is None if never offered."""

    item: str
    state: State
    round: int | None
    rank: int | None
    score: float | None
    need: int
    accepted: int


@dataclass(frozen=True)
class OfferedRow:
    """An item that may be leased; ``key`` is its 64-bit id key, unsigned."""

    item: str
    key: int
    round: int
    rank: int
    score: float | None


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
    """A lease as history; ``state`` is active, expired, returned, revoked, labeled or
    skipped."""

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
        provenance: other facts about it (tool, model version seen, …), a JSON object.
    """

    item: str
    value: Any
    lease: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SkipEntry:
    """An item that an annotator will not label.

    Args:
        item: id of the item.
        reason: why, in the annotator's words.
        lease: the lease that this ends; None where the tool knows no leases.
        provenance: other facts about it, a JSON object.
    """

    item: str
    reason: str | None = None
    lease: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelResult:
    """The result of recording one entry.

    Args:
        item: id of the item.
        status: accepted (fills a slot), conflict (fills one too, and the item's labels disagree
            now), surplus (kept, fills none: others were first), duplicate (says what the
            annotator's last answer said), updated (replaces the annotator's label), skipped,
            retracted, or rejected (nothing was recorded).
        late: the lease had expired.
        seq: the row of the history that holds the answer; None if rejected.
        detail: why it was rejected.
    """

    item: str
    status: Status
    late: bool
    seq: int | None
    detail: str | None = None


@dataclass(frozen=True)
class LabelRow:
    """A row of the history of answers.

    Args:
        project: project of the history.
        seq: 1, 2, … within the project.
        item: id of the item.
        annotator: annotator who answered.
        value: the label; None for skips and retractions.
        status: accepted, surplus, updated, skipped or retracted.
        slot: order of acceptance among the item's labels; None for one that is not for training.
        late: the lease had expired.
        lease: the lease it was made under; None for one made without.
        reason: reason of a skip.
        provenance: provenance that the entry brought.
        resolution: the row that holds the item's value to train on after this one, None if none.
        superseded_by: the same annotator's next row on the item.
        time: seconds since the epoch.
    """

    project: str
    seq: int
    item: str
    annotator: str
    value: Any
    status: str
    slot: int | None
    late: bool
    lease: str | None
    reason: str | None
    provenance: dict[str, Any]
    resolution: int | None
    superseded_by: int | None
    time: float
