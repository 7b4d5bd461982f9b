"""What the service's answers hold: plain dictionaries, as they came, with their members named."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class ProjectInfo(TypedDict):
    """A project with its settings and how it stands."""

    name: str
    version: int
    settings: dict[str, Any]
    counts: NotRequired[dict[str, int]]


class ItemInfo(TypedDict):
    """An item: its id, its key in URLs, and what is known of it."""

    id: str
    key: str
    state: NotRequired[str]
    round: NotRequired[int | None]
    rank: NotRequired[int | None]
    score: NotRequired[float | None]


class Pushed(TypedDict):
    """What became of pushed items; conflicts and rejections name theirs."""

    created: int
    unchanged: int
    conflicts: list[dict[str, Any]]
    rejected: list[dict[str, Any]]


class Suggestion(TypedDict):
    """What the active model says of an item."""

    label: Any
    probs: list[float] | None
    model_version: str


class LeaseInfo(TypedDict):
    """An annotator's hold on an item until ``expires_at``, seconds since the epoch."""

    lease_id: str
    item: dict[str, Any]
    rank: int
    score: float | None
    round: int
    expires_at: float
    suggestion: NotRequired[Suggestion | None]


class LabelOutcome(TypedDict):
    """What became of one label."""

    item: str
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
    detail: NotRequired[str | None]


class LabelInfo(TypedDict):
    """A row of the label history."""

    label_id: int
    item: str
    annotator: str
    label: Any
    status: str
    late: bool
    labeled_at: float


class RoundInfo(TypedDict):
    """A round: the stage it is at, what was asked for and what came, its model and metrics."""

    n: int
    stage: str
    wanted: int
    leased: int
    labeled: int
    skipped: int
    model: str | None
    metrics: dict[str, float]
    error: str | None


class ModelInfo(TypedDict):
    """An immutable version of the committee."""

    version: str
    round: int
    active: bool
    created_at: float


class Prediction(TypedDict):
    """What a model says of an item or input."""

    item: str | None
    label: Any
    probs: list[float]


class Ranked(TypedDict):
    """An offered item in the order of its rank."""

    item: str
    rank: int
    score: float | None
    round: int


class JobInfo(TypedDict):
    """Long work: its state is queued, running, done, failed or cancelled."""

    job: str
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    progress: dict[str, Any] | None
    result: Any
    error: str | None


class TokenInfo(TypedDict):
    """An access token; ``token`` itself is in the answer to its creation and nowhere else."""

    token_id: str
    name: str
    scopes: list[str]
    token: NotRequired[str]
