"""Rounds, models, predictions, the learning curve, and jobs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from rayal.service.schemas.base import (
    Answered,
    Body,
    Count,
    ItemId,
    Moment,
    Page,
    Text,
    Whole,
    example,
)
from rayal.service.schemas.items import ItemContent

Metrics = dict[str, FiniteFloat | None]


class RoundInfo(Answered):
    """A round: what it works on, what was asked for and what came, its model and metrics."""

    n: int = Field(description="-1: the initial choice")
    stage: Literal[
        "prepare",
        "embed",
        "pretrain",
        "train",
        "evaluate",
        "scan",
        "auxiliary",
        "select",
        "label",
        "done",
        "failed",
    ]
    wanted: Count = Field(description="items that the round offered")
    offered: Count
    leased: Count
    labeled: Count
    skipped: Count
    conflict: Count
    labels: Count = Field(description="labels that its model was trained on")
    model: str | None = Field(description="version of its model")
    metrics: Metrics = Field(description="of its model on the test items")
    error: str | None


class RoundList(Answered):
    """All rounds, in order."""

    rounds: list[RoundInfo]


class CloseBody(Body):
    """The reason for closing a round before its quorum."""

    model_config = example(reason="end of the day")
    reason: Text = ""
    min_labels: Whole | None = Field(None, ge=0, description="refuse with fewer new labels")


class ModelInfo(Answered):
    """An immutable version of the committee."""

    version: str
    round: int
    active: bool
    labels: Count | None = Field(description="labels that it was trained on")
    metrics: Metrics
    created_at: Moment


class ModelList(Answered):
    """All versions, in order."""

    models: list[ModelInfo]


class PredictInput(ItemContent):
    """Something to predict that is in no pool; its id, if any, comes back with the answer."""

    id: ItemId | None = None


class PredictBody(Body):
    """Items of the pool, or inputs that are in no pool."""

    model_config = example(items=["birds/0017.png"])
    items: list[ItemId] | None = Field(None, min_length=1, max_length=10_000)
    inputs: list[PredictInput] | None = Field(None, min_length=1, max_length=256)
    model: str = Field(
        "active",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="a version, or `active`",
    )

    @model_validator(mode="after")
    def _one(self) -> PredictBody:
        if (self.items is None) == (self.inputs is None):
            raise ValueError("give either items or inputs")
        return self


class Prediction(Answered):
    """The prediction of a model for an item or input."""

    model_config = example(
        item="birds/0017.png", label="cat", probs=[0.75, 0.25], mean=None, variance=None
    )
    item: str | None
    label: Any = Field(description="the most probable class; of a number the mean, within bounds")
    probs: list[FiniteFloat] | None = Field(
        description="by class, in the order of the classes; null of a number"
    )
    mean: FiniteFloat | None = Field(None, description="of a number; null of a class")
    variance: FiniteFloat | None = Field(
        None, description="about the mean, of model and noise; null of a class"
    )


class Predictions(Answered):
    """One prediction each, in the order that was asked."""

    model: str
    predictions: list[Prediction]


class CurvePoint(Answered):
    """One round of the learning curve."""

    round: int
    labels: Count
    metrics: Metrics
    model: str | None
    seconds: dict[str, FiniteFloat] = Field(description="by stage")


class Agreement(Answered):
    """The agreement of annotators on items that several of them labeled."""

    items: Count = Field(description="labeled by two or more")
    pairs: Count = Field(description="pairs of labels of one item")
    observed: FiniteFloat | None = Field(description="share of pairs that agree")
    alpha: FiniteFloat | None = Field(
        description="Krippendorff's alpha, for nominal data, of numbers for interval data: 1 is "
        "agreement, 0 chance"
    )


class CurveInfo(Answered):
    """The learning curve, and how the annotation goes."""

    curve: list[CurvePoint]
    annotators: dict[str, Count] = Field(description="present labels by annotator")
    agreement: Agreement
    counts: dict[str, Count]


class JobInfo(Answered):
    """Long work."""

    job: str
    project: str | None
    kind: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    progress: dict[str, Any] | None
    result: Any
    error: str | None
    attempts: Count
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None


class JobPage(Page):
    """A page of jobs, in the order in which they were asked for."""

    jobs: list[JobInfo]


class Accepted(Answered):
    """Work that goes on behind the answer; Location is the job's."""

    job: JobInfo
