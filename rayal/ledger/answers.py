"""The rows of an annotator's work as frozen values: items, leases, labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
        provenance: what else is known of it (tool, model version seen, …), a JSON object.
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
        provenance: what else is known of it, a JSON object.
    """

    item: str
    reason: str | None = None
    lease: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelResult:
    """What became of an entry.

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
        project: whose history.
        seq: 1, 2, … within the project.
        item: id of the item.
        annotator: who says so.
        value: the label; None for skips and retractions.
        status: accepted, surplus, updated, skipped or retracted.
        slot: order of acceptance among the item's labels; None for one that is not for training.
        late: the lease had expired.
        lease: the lease it was made under; None for one made without.
        reason: of a skip.
        provenance: what the entry told of itself.
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
