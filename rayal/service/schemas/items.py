"""Items, the ranked list of what is offered, and why an item was chosen."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, model_validator

from rayal.service.schemas.base import Answered, Body, Count, ItemId, Key, Page, Whole, example

State = Literal["unlabeled", "offered", "leased", "labeled", "skipped", "conflict", "forgotten"]
Name = Annotated[str, Field(pattern=r"^[^\x00]*$")]
Features = dict[Name, float] | list[float]


Role = Literal["pool", "test"]
ROLE: Any = Field("pool", description="test: measured on, never offered for labeling")


class ItemContent(Body):
    """The content of an item: one of uri, data, text and features."""

    model_config = example(uri="/data/birds/0017.png")
    uri: str | None = Field(
        None,
        max_length=4096,
        pattern=r"^[^\x00]+$",
        description="an absolute path or an http(s) URL below the allowed prefixes; read at once",
    )
    data: Name | None = Field(
        None, description="the file, in base64", json_schema_extra={"contentEncoding": "base64"}
    )
    text: str | None = Field(
        None, description="of a pool of texts; stored in composed form (NFC) as UTF-8"
    )
    features: Features | None = Field(None, description="of a table: by name, or in their order")

    @model_validator(mode="after")
    def _one(self) -> ItemContent:
        names = ("uri", "data", "text", "features")
        present = [n for n in names if getattr(self, n) is not None]
        if len(present) != 1:
            text = "give one of uri, data, text and features"
            raise ValueError(f"{text}, not {present or 'none of them'}")
        return self


class ItemPush(ItemContent):
    """An item to add; an id is required unless data is given, whose default is its SHA-256."""

    model_config = example(id="birds/0017.png", uri="/data/birds/0017.png")
    id: ItemId | None = None
    role: Role = ROLE

    @model_validator(mode="after")
    def _named(self) -> ItemPush:
        if self.id is None and self.data is None:
            raise ValueError("id is missing; only data has a default id, sha256:<hex>")
        return self


class ItemPut(ItemContent):
    """An item to add, under the key of its id."""

    model_config = example(id="birds/0017.png", uri="/data/birds/0017.png")
    id: ItemId
    role: Role = ROLE


class ItemsBody(Body):
    """Items to add."""

    items: list[ItemPush] = Field(min_length=1, max_length=1000)


class Refused(Answered):
    """An item that was not added, and why."""

    id: str
    key: Key
    detail: str


class ItemsPushed(Answered):
    """The outcome of pushed items; the same id with the same content is unchanged."""

    created: Count
    unchanged: Count
    conflicts: list[Refused] = Field(description="ids known with another content")
    rejected: list[Refused] = Field(description="items that cannot be read")


class ItemInfo(Answered):
    """An item, and how it stands; what it never was offered for is null."""

    id: str
    key: Key
    state: State
    round: int | None = Field(description="that offered it; -1: the initial choice")
    rank: int | None
    score: FiniteFloat | None
    content: str = Field(description="path of its content, signed and short-lived")


class ItemPage(Page):
    """A page of items."""

    items: list[ItemInfo]


class RankedBody(Body):
    """The number of the best open items to return."""

    model_config = example(count=100)
    count: Whole = Field(100, ge=1, le=1000)
    cursor: str | None = Field(None, max_length=4096, pattern=r"^[A-Za-z0-9_-]+$")


class Ranked(Answered):
    """An open item in the order of its rank."""

    id: str
    key: Key
    round: int
    rank: int
    score: FiniteFloat | None


class RankedPage(Page):
    """Open items, the best first; no lease is taken."""

    items: list[Ranked]


class Why(Answered):
    """An item's story: selections that named it, then leases and labels in order of time."""

    id: str
    key: Key
    state: State
    selections: list[dict[str, Any]] = Field(
        description="round, rank, score, probability, picked, and the provenance of the choice"
    )
    history: list[dict[str, Any]] = Field(description="leases and labels, by time")


class QueryBody(Body):
    """Columns of any items, and how to choose among them."""

    model_config = example(
        strategy="margin", k=1, columns={"log_probs": [[-0.7, -0.7], [-0.1, -2.3]]}
    )
    strategy: str = Field(
        max_length=64, pattern=r"^[A-Za-z0-9_]+$", description="a registered strategy"
    )
    params: dict[str, Any] = Field({}, description="its hyperparameters")
    columns: dict[str, list[Any]] = Field(
        min_length=1, max_length=16, description="name to rows; all have as many rows"
    )
    k: Whole = Field(ge=1, le=10_000)
    ids: list[ItemId] | None = Field(None, max_length=10_000)
    labeled: dict[str, list[Any]] | None = Field(None, max_length=16)
    seed: Whole = Field(0, ge=0, lt=2**63)


class ColumnPick(Answered):
    """A chosen row."""

    position: Count
    id: str
    score: FiniteFloat | None


class Picks(Answered):
    """The choice, in pick order: the same as ``rayal.select`` makes."""

    picks: list[ColumnPick]
    approximation: dict[str, Any] | None = Field(description="null: the choice is exact")
