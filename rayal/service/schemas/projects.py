"""Projects: what is labeled, by which model, and how annotators work together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from rayal.service.auth import PROJECT
from rayal.service.schemas.base import Answered, Body, Count, Moment, Page, example

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00]+$")]
Classes = Annotated[list[Name], Field(min_length=1, max_length=10_000)]


class TaskBody(Body):
    """What a row is and what is predicted."""

    kind: Literal["image", "table"]
    classes: Classes | None = Field(None, description="null: those of the pool's known labels")
    size: Annotated[list[Positive], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[H, W] to resize to"
    )
    channels: Literal[1, 3] | None = None
    flip: bool | None = Field(None, description="augment by mirroring")
    features: list[Name] | None = Field(None, description="of a table: names, in order")


class ModelBody(Body):
    """The networks that are trained; only registered ones."""

    network: Name | None = Field(None, description="registered network; null: small_cnn")
    params: dict[str, Any] = Field({}, description="of the network")
    members: Positive = 1
    threads_per_model: Positive = 1


class LearnerBody(Body):
    """How a member is trained; further members are the learner's hyperparameters."""

    model_config = ConfigDict(extra="allow")
    name: Name = "supervised"
    preset: Name | None = None


class StrategyBody(Body):
    """How items are chosen; further members are the strategy's hyperparameters."""

    model_config = ConfigDict(extra="allow")
    name: Name


class InitialBody(Body):
    """The first items, which are chosen without a model."""

    strategy: Name = "random"
    count: Positive = 100


class SeedsBody(Body):
    """The three sources of chance."""

    pool: Seed = 0
    model: Seed = 0
    query: Seed = 0


class ScanBody(Body):
    """How the committee runs over the pool."""

    batch: Positive = 64
    precision: Literal["fp32", "bf16"] = "fp32"


class LabelingBody(Body):
    """How annotators work together."""

    labels_per_item: Annotated[int, Field(ge=1, le=100)] = 1
    agreement: Literal["first", "majority", "all"] = "first"
    max_labels: Annotated[int, Field(ge=1, le=200)] | None = Field(
        None, description="null: labels_per_item + 2"
    )
    max_skips: Annotated[int, Field(ge=1, le=100)] = 3
    lease_ttl_s: Annotated[float, Field(gt=0, le=86_400)] = 900.0


class AutoBody(Body):
    """When rounds begin by themselves."""

    quorum: Positive | None = Field(None, description="new labels; null: a whole batch")
    ready: Count = Field(0, description="items that stay open while a round trains")
    start: bool = Field(True, description="choose the first items at once")


class PoolBody(Body):
    """A pool that is ingested from a path under the service's allowed prefixes."""

    path: str = Field(min_length=1, max_length=4096, pattern=r"^[^\x00]+$")
    id: Name | None = Field(None, description="column of the ids")
    label: Name | None = Field(None, description="column of known labels")
    features: list[Name] | None = None


class ProjectBody(Body):
    """A project to make."""

    model_config = example(
        name="birds",
        task={"kind": "image", "classes": ["sparrow", "tit"], "size": [32, 32]},
        model={"network": "small_cnn"},
        strategy="badge",
        initial={"count": 50},
        batch_size=20,
        labeling={"labels_per_item": 2, "agreement": "majority"},
    )
    name: str = Field(pattern=f"^({PROJECT})$", description="letters, digits, . _ and -")
    task: TaskBody
    model: ModelBody = Field(ModelBody())
    learner: LearnerBody = Field(LearnerBody())
    strategy: Name | StrategyBody = Field(description="a registered strategy")
    initial: InitialBody = Field(InitialBody())
    batch_size: Positive = Field(100, description="items that a round offers")
    rounds: Count | None = Field(None, description="the last round; null: as long as there are items")
    seeds: Seed | SeedsBody = 0
    scan: ScanBody = Field(ScanBody())
    pool: Name | PoolBody | None = Field(
        None, description="name of a pool in the storage, or a path; null: items are pushed"
    )
    labeling: LabelingBody = Field(LabelingBody())
    auto: AutoBody = Field(AutoBody())


class ProjectPatch(Body):
    """What may change while a project lives; members that are left out stay."""

    model_config = example(batch_size=50, auto={"ready": 40})
    classes: Classes | None = Field(None, description="may only grow")
    batch_size: Positive | None = None
    rounds: Count | None = None
    labeling: LabelingBody | None = None
    auto: AutoBody | None = None


class ProjectInfo(Answered):
    """A project, and how it stands."""

    name: str
    version: int = Field(description="grows with every change; the ETag")
    pool: str
    items: Count = Field(description="items of its pool that can be labeled")
    settings: dict[str, Any]
    counts: dict[str, Count] = Field(description="items by state")
    ready: Count = Field(description="items that can be leased now")
    model: str | None = Field(description="the active version")
    job: str | None = Field(description="an unfinished job of the project")
    created_at: Moment


class ProjectSummary(Answered):
    """A project of a list."""

    name: str
    version: int
    created_at: Moment


class ProjectPage(Page):
    """The projects that the token may read, by name."""

    projects: list[ProjectSummary]


