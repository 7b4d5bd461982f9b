"""Leases and labels."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from rayal.service.schemas.base import (
    Annotator,
    Answered,
    Body,
    Count,
    ItemId,
    Key,
    LabelValue,
    Moment,
    Page,
    Text,
    Whole,
    example,
)


class LeaseBody(Body):
    """The annotator who asks for work, and the number of items."""

    model_config = example(annotator="ada", count=10)
    annotator: Annotator
    count: Whole = Field(1, ge=1, le=100, description="items, counting those already held")
    ttl_s: float | None = Field(
        None, gt=0, le=86_400, description="seconds that new leases last; null: as the project says"
    )


class Suggestion(Answered):
    """The prediction of the active model for an item."""

    label: Any = Field(description="a class, or a number within its bounds")
    probs: list[FiniteFloat] | None = Field(
        description="by class, in the order of the classes; null of a number"
    )
    mean: FiniteFloat | None = Field(None, description="of a number; null of a class")
    variance: FiniteFloat | None = Field(
        None, description="about the mean, of model and noise; null of a class"
    )
    model_version: str


class LeasedItem(Answered):
    """The item of a lease."""

    id: str
    key: Key
    content: str = Field(description="path of its content, signed and short-lived")


class LeaseInfo(Answered):
    """An annotator's hold on an item until ``expires_at``."""

    lease_id: str
    annotator: str
    item: LeasedItem
    round: int = Field(description="-1: the initial choice")
    rank: int
    score: FiniteFloat | None
    suggestion: Suggestion | None
    expires_at: Moment


class LeaseList(Answered):
    """Work for an annotator; where there is none, why, and Retry-After says when to ask again."""

    leases: list[LeaseInfo]
    reason: Literal["training", "held", "finished", "nothing-offered"] | None = Field(
        default=None,
        description="training: a round chooses the next items; held: others hold what is offered, "
        "or this annotator has answered all of it; nothing-offered: close a round",
    )


class ExtendBody(Body):
    """The seconds that a lease shall last from now."""

    model_config = example(ttl_s=900)
    ttl_s: float = Field(gt=0, le=86_400)


class LabelItem(Body):
    """One answer: a label, or a skip with its reason."""

    model_config = example(item="birds/0017.png", label="cat", annotator="ada")
    item: ItemId
    annotator: Annotator
    label: LabelValue | None = Field(default=None, description="required unless skip is true")
    skip: bool = Field(default=False, description="hide the item from this annotator")
    reason: Text | None = Field(default=None, description="of a skip")
    lease_id: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{32}$", description="the lease it was made under"
    )

    client_id: Text | None = Field(
        default=None, description="the tool's own id of the answer; kept"
    )
    labeled_at: float | None = Field(default=None, description="when the answer was given; kept")
    model_version_seen: Text | None = Field(
        default=None, description="of the suggestion shown; kept"
    )

    @model_validator(mode="after")
    def _one(self) -> LabelItem:
        if self.skip == (self.label is not None):
            raise ValueError("give either a label, or skip: true")
        if self.reason is not None and not self.skip:
            raise ValueError("a reason belongs to skip: true")
        return self


class LabelBatch(Body):
    """Answers, taken one after another; a bad one does not hold up the others."""

    labels: list[LabelItem] = Field(min_length=1, max_length=1000)


class RelabelBody(Body):
    """The new answer of an annotator for an item."""

    model_config = example(label="dog")
    label: LabelValue


class LabelOutcome(Answered):
    """The outcome of one answer."""

    model_config = example(
        item="birds/0017.png",
        key="00f3a1c45be27d98",
        status="accepted",
        late=False,
        label_id=42,
        detail=None,
    )
    item: str
    key: Key
    status: Literal[
        "accepted",
        "surplus",
        "duplicate",
        "updated",
        "conflict",
        "rejected",
        "skipped",
        "retracted",
    ] = Field(
        description="accepted: fills a slot; surplus: kept, not for training; duplicate: equal to "
        "the annotator's present label; updated: replaces it; conflict: kept, others disagree; "
        "rejected: nothing was recorded, detail says why"
    )
    late: bool = Field(description="the lease had expired")
    label_id: int | None = Field(description="number in the project's history")
    detail: str | None


class LabelResults(Answered):
    """One result per answer, in the order of the answers."""

    results: list[LabelOutcome]


class LabelInfo(Answered):
    """A row of the label history."""

    label_id: int
    item: str
    key: Key
    annotator: str
    label: Any = Field(description="null for skips and retractions")
    status: str
    late: bool
    lease_id: str | None
    reason: str | None = Field(description="of a skip")
    provenance: dict[str, Any] = Field(description="what the client told of the answer")
    superseded_by: int | None = Field(description="the label that replaced this one")
    labeled_at: Moment


class LabelPage(Page):
    """A page of the label history, in order."""

    labels: list[LabelInfo]
    last: Count = Field(description="label_id of the last row; since= goes on from here")


class Resolved(Answered):
    """The value that an item is trained on."""

    item: str
    key: Key
    label: Any


class ResolvedPage(Page):
    """The labels to train on, by agreement, in the order of the item ids."""

    labels: list[Resolved]
