"""Types of the service's answers: plain dictionaries, as they came, with named members.

Times are seconds since the epoch. An item's ``key`` is what URLs name it by.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class ProjectSummary(TypedDict):
    """A project of a list."""

    name: str
    version: int
    created_at: float


class ProjectInfo(ProjectSummary):
    """A project with its settings, and how it stands."""

    pool: str
    items: int
    settings: dict[str, Any]
    labels: dict[str, Any]
    counts: dict[str, int]
    ready: int
    model: str | None
    job: str | None


class ItemInfo(TypedDict):
    """An item, and how it stands; what it never was offered for is None."""

    id: str
    key: str
    state: str
    round: int | None
    rank: int | None
    score: float | None
    content: str


class Ranked(TypedDict):
    """An offered item in the order of its rank."""

    id: str
    key: str
    round: int
    rank: int
    score: float | None


class Refused(TypedDict):
    """An item that was not added, and why."""

    id: str
    key: str
    detail: str


class Pushed(TypedDict):
    """The result of a push: conflicts are ids known with another content."""

    created: int
    unchanged: int
    conflicts: list[Refused]
    rejected: list[Refused]


class Suggestion(TypedDict):
    """The active model's prediction for an item; see ``Prediction``."""

    label: Any
    probs: list[float] | None
    mean: float | None
    variance: float | None
    model_version: str


class LeasedItem(TypedDict):
    """The item of a lease; ``content`` is a signed path that needs no token."""

    id: str
    key: str
    content: str


class LeaseInfo(TypedDict):
    """An annotator's hold on an item until ``expires_at``."""

    lease_id: str
    annotator: str
    item: LeasedItem
    round: int
    rank: int
    score: float | None
    suggestion: Suggestion | None
    expires_at: float


class LeaseList(TypedDict):
    """Work for an annotator; where there is none, why."""

    leases: list[LeaseInfo]
    reason: NotRequired[Literal["training", "held", "finished", "nothing-offered"] | None]


class LabelOutcome(TypedDict):
    """The result of one answer; ``label_id`` numbers the project's history."""

    item: str
    key: str
    status: Literal[
        "accepted",
        "surplus",
        "duplicate",
        "updated",
        "conflict",
        "rejected",
        "skipped",
        "retracted",
    ]
    late: bool
    label_id: int | None
    detail: str | None


class LabelInfo(TypedDict):
    """A row of the label history."""

    label_id: int
    item: str
    key: str
    annotator: str
    label: Any
    status: str
    late: bool
    lease_id: str | None
    reason: str | None
    provenance: dict[str, Any]
    superseded_by: int | None
    labeled_at: float


class ResolvedLabel(TypedDict):
    """The value that an item is trained on."""

    item: str
    key: str
    label: Any


class RoundInfo(TypedDict):
    """A round: what it works on, what was asked for and what came, its model and metrics."""

    n: int
    stage: str
    wanted: int
    offered: int
    leased: int
    labeled: int
    skipped: int
    conflict: int
    labels: int
    model: str | None
    metrics: dict[str, float | None]
    error: str | None


class ModelInfo(TypedDict):
    """An immutable version of the committee."""

    version: str
    round: int
    active: bool
    labels: int | None
    metrics: dict[str, float | None]
    created_at: float


class Prediction(TypedDict):
    """A model's prediction for an item or input.

    ``probs`` are by class, in their order, and None of a number, which has ``mean`` and
    ``variance``; its label is the mean, within the bounds.
    """

    item: str | None
    label: Any
    probs: list[float] | None
    mean: float | None
    variance: float | None


class ColumnPick(TypedDict):
    """A chosen row: its position in the columns, its id, and its score."""

    position: int
    id: str
    score: float | None


class Picks(TypedDict):
    """The choice, in pick order; ``approximation`` is None where it is exact."""

    picks: list[ColumnPick]
    approximation: dict[str, Any] | None


class CurveInfo(TypedDict):
    """The learning curve by round, labels by annotator, and how far annotators agree."""

    curve: list[dict[str, Any]]
    annotators: dict[str, int]
    agreement: dict[str, Any]
    counts: dict[str, int]


class JobInfo(TypedDict):
    """Long work."""

    job: str
    project: str | None
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    progress: dict[str, Any] | None
    result: Any
    error: str | None
    attempts: int
    created_at: float
    started_at: float | None
    finished_at: float | None


class TokenInfo(TypedDict):
    """An access token, without its secret."""

    token_id: str
    name: str
    scopes: list[str]
    created_at: float
    expires_at: float | None
    revoked_at: float | None


class TokenMade(TokenInfo):
    """A new token: its text, which is None where this try only repeats one that was answered."""

    token: str | None
