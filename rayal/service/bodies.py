"""The sections of a client's request about a project, checked once and frozen.

Only registered names get through. A section that a run's settings have too restricts theirs. What
can name code or files (``module:factory``, backbones and their weights, devices) is fixed as a
class variable there: it is no key any more, so it is refused as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from rayal.errors import SettingsError
from rayal.labels import ClassLabel, NumberLabel, number_label
from rayal.settings.parameters import explain
from rayal.settings.run import (
    Cell,
    InitialSettings,
    LearnerSettings,
    ModelSettings,
    ScanSettings,
    SeedSettings,
    SelectionSettings,
    StrategySettings,
)
from rayal.settings.sections import Count, Section, Text, Texts, key
from rayal.settings.yamlfile import copied

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$"
Side = Annotated[int, Field(ge=1, le=4096)]
Members = Annotated[int, Field(ge=1, le=64)]
Items = Annotated[int, Field(ge=1, le=100_000)]
Registered = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=100)]


class TaskBody(Section):
    """The type of the rows and of the prediction."""

    kind: Literal["image", "table", "text"] = Field(
        description="Kind of the rows: image, table or text."
    )
    target: Literal["class", "number"] | None = key(
        None, "Predict a class or a number; null: a class."
    )
    classes: Texts | None = key(
        None,
        "Names of the classes, in order; not with target number.",
        max_length=10_000,
        validate_default=True,
    )
    low: float | None = key(None, "Smallest number that a label may be; null: any.")
    high: float | None = key(None, "Largest number that a label may be; null: any.")
    size: tuple[Side, Side] | None = key(None, "[height, width] to which images are resized.")
    channels: Literal[1, 3] | None = key(None, "Channels of an image: 1 is grey, 3 is RGB.")
    features: Texts | None = key(None, "Names of a table's numbers, in order.")
    length: Annotated[int, Field(ge=1, le=4096)] | None = key(
        None, "Tokens of a text, longer ones are cut; null: 64."
    )
    vocabulary: Annotated[int, Field(ge=16, le=200_000)] | None = key(
        None, "Most tokens of the tokeniser; null: 8000."
    )
    tokenizer: Literal["wordpiece", "bpe"] | None = key(
        None, "Tokeniser that is trained on the texts: wordpiece or bpe; null: wordpiece."
    )
    lowercase: bool | None = key(None, "Texts are put into lower case; null: true.")

    @field_validator("classes")
    @classmethod
    def _named(cls, given: Texts | None, info: ValidationInfo) -> Texts | None:
        number = info.data.get("target") == "number"
        if given is None and not number:
            raise ValueError("name the classes, or set target: number")
        if given is not None and number:
            raise ValueError("target is number, which has no classes; leave one of them out")
        return given

    @field_validator("low", "high", mode="before")
    @classmethod
    def _number(cls, given: Any, info: ValidationInfo) -> Any:
        if given is not None and info.data.get("target") != "number":
            raise ValueError("it bounds a number; set target: number, or leave it out")
        return float(given) if type(given) is int else given

    @model_validator(mode="after")
    def _bounded(self) -> TaskBody:
        self.labels()
        return self

    def labels(self) -> ClassLabel | NumberLabel:
        """Return what the answers look like."""
        if self.target == "number":
            return number_label(self.low, self.high)
        return ClassLabel(self.classes or ())


class ModelBody(ModelSettings):
    """The networks that are trained."""

    backbone: ClassVar[None] = None  # type: ignore[misc]
    weights: ClassVar[None] = None  # type: ignore[misc]
    frozen: ClassVar[bool] = False  # type: ignore[misc]
    head: ClassVar[None] = None  # type: ignore[misc]
    quorum: ClassVar[None] = None  # type: ignore[misc]
    network: Registered | None = key(
        None, "Registered network; null: small_cnn, kim_cnn or mlp, by task.kind."
    )
    params: dict[str, Any] = key({}, "Parameters of the network.")
    members: Members = key(1, "Networks in the committee.")
    threads_per_model: Members = key(1, "Torch threads of one network; part of its hash.")

    @field_validator("params")
    @classmethod
    def _short(cls, given: dict[str, Any]) -> dict[str, Any]:
        long = [n for n, v in given.items() if isinstance(v, tuple | list) and len(v) > 64]
        if long:
            raise ValueError(f"{long[0]} has more than 64 entries")
        return given


class LearnerBody(LearnerSettings):
    """The training of one member; further keys are the learner's hyperparameters."""

    name: Registered = key("supervised", "Registered learner.")


class StrategyBody(StrategySettings):
    """The choice of items; further keys are the strategy's hyperparameters."""

    label: ClassVar[None] = None  # type: ignore[misc]
    name: Registered = Field(description="Registered strategy.")


class InitialBody(InitialSettings):
    """The labels of round 0."""

    balanced: ClassVar[bool] = False  # type: ignore[misc]
    strategy: Registered = key("random", "Registered strategy that chooses the first items.")
    count: Items = key(100, "Labels of round 0.")


class ScanBody(ScanSettings):
    """The scan of the committee over the pool."""

    device: ClassVar[Literal["cpu"]] = "cpu"  # type: ignore[misc]
    compile: ClassVar[bool] = False  # type: ignore[misc]
    batch: Annotated[int, Field(ge=1, le=4096)] = key(64, "Rows of one forward pass.")


class PoolBody(Section):
    """A source below the service's prefixes, which is ingested when the project is made."""

    path: Text = Field(description="Absolute path of a folder of images, or of a table.")
    id: Text | None = key(None, "Column of the ids; null: the relative path, or file:row.")
    label: Text | None = key(None, "Column of the labels that are known.")
    features: Texts | None = key(None, "Numeric columns; null: all but id and label.")
    test: Text | None = key(None, "A second path, whose items are the test.")


class LabelingBody(Section):
    """The number of people who label an item, and the rule by which their answers count."""

    labels_per_item: Annotated[int, Field(ge=1, le=100)] = key(
        1, "Annotators that each item needs."
    )
    agreement: Literal["first", "majority", "all"] = key(
        "first", "Which label counts: the first, that of the majority, or one that all gave."
    )
    max_labels: Count | None = key(
        None, "Most labels of an item whose annotators disagree; null: two more."
    )
    max_skips: Count = key(3, "Annotators who skip an item before it is given up.")
    lease_ttl_s: Annotated[float, Field(gt=0, le=31_536_000)] = key(
        900.0, "Seconds until a lease expires."
    )
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = key(
        0.0, "How far numbers may lie apart that agree."
    )

    @field_validator("lease_ttl_s", "tolerance", mode="before")
    @classmethod
    def _number(cls, given: Any) -> Any:
        return float(given) if type(given) is int else given


class AutoBody(Section):
    """The conditions under which rounds begin by themselves."""

    quorum: Items | None = key(None, "New labels that close a round; null: the batch.")
    ready: Annotated[int, Field(ge=0, le=100_000)] = key(
        0, "Items that are offered beyond the first batch."
    )
    start: bool = key(True, "Rounds begin by themselves.")


class ProjectBody(Section):
    """A project as a client asks for it."""

    selection: ClassVar[SelectionSettings] = SelectionSettings()
    keep: ClassVar[str] = "last"
    shards: ClassVar[int] = 1
    name: Annotated[str, Field(pattern=NAME)] = Field(description="Letters, digits, '.', '_', '-'.")
    task: TaskBody = Field(description="What a row is, and what is predicted.")
    model: ModelBody = key(ModelBody(), "The networks that are trained.")
    learner: LearnerBody = key(
        LearnerBody(), "How one network is trained; further keys are its hyperparameters."
    )
    strategy: StrategyBody = Field(
        description="Name of a strategy, or a mapping of name and hyperparameters."
    )
    initial: InitialBody = key(InitialBody(), "The labels of round 0.")
    batch_size: Items = key(100, "Labels asked for in a round.")
    rounds: Annotated[int, Field(ge=0)] | None = key(
        None, "Rounds after the first; null: for as long as there are items."
    )
    seeds: SeedSettings = key(
        SeedSettings(pool=0, model=0, query=0), "An integer, or a mapping of pool, model and query."
    )
    scan: ScanBody = key(ScanBody(), "How the committee runs over the pool.")
    pool: PoolBody | Text | None = key(
        None, "Name of a pool that is there, or a source below the allowed folders."
    )
    labeling: LabelingBody = key(
        LabelingBody(), "How many people label an item, and which label counts."
    )
    auto: AutoBody = key(AutoBody(), "When rounds begin by themselves.")

    @property
    def batch(self) -> int:
        """Labels asked for in a round."""
        return self.batch_size

    def task_options(self) -> dict[str, Any]:
        """Return the keys of the task that are set; a table's features belong to its pool."""
        return self.task.model_dump(exclude={"features"}, exclude_none=True)

    def cell(self) -> Cell:
        """Return the strategy and the seeds, as a run's curves have them."""
        name = self.strategy.name
        return Cell(name, name, self.strategy.params, self.seeds.seeds())


class QueryBody(Section):
    """A choice among columns that the request holds."""

    strategy: StrategyBody = Field(
        description="Name of a strategy, or a mapping of name and hyperparameters."
    )
    params: dict[str, Any] = key({}, "further hyperparameters")
    columns: dict[str, Any] = Field(description="name to rows of numbers")
    k: Annotated[int, Field(ge=0)] = Field(description="number of picks")
    ids: list[str] | None = key(None, "of the rows; null: their positions")
    labeled: dict[str, Any] | None = key(None, "columns of labeled rows")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = key(0, "the query seed")


def query_of(given: Mapping[str, Any]) -> QueryBody:
    """Return a query; the columns are looked at later.

    Raises:
        SettingsError: for every key or value that is refused.
    """
    try:
        return QueryBody.model_validate(given)
    except ValidationError as error:
        raise SettingsError("\n".join(explain(error))) from None


def parsed(given: Mapping[str, Any]) -> ProjectBody:
    """Return a request's body.

    Raises:
        SettingsError: for every key or value that is refused: one line each, with its path.
    """
    try:
        return ProjectBody.model_validate(copied(given, tuple))
    except ValidationError as error:
        raise SettingsError("\n".join(explain(error))) from None


def merged(old: Any, new: Any) -> Any:
    """Return JSON changed as a merge patch says (RFC 7396): null removes a key."""
    if not isinstance(new, Mapping):
        return new
    base = dict(old) if isinstance(old, Mapping) else {}
    for name, value in new.items():
        if value is None:
            base.pop(name, None)
        else:
            base[name] = merged(base.get(name), value)
    return base
