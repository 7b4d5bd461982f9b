"""The common bases of the models of bodies and answers, and the parameters of paths."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat

from rayal.service.routing import PATTERNS
from rayal.types import id_keys

# no NUL: databases cannot hold it
ItemId = Annotated[
    str,
    Field(
        min_length=1,
        max_length=1024,
        pattern=r"^[^\x00]+$",
        description="an item's id, as it was ingested",
        examples=["birds/0017.png"],
    ),
]
Annotator = Annotated[
    str,
    Field(
        pattern=r"^[^/\x00-\x1f]{1,128}$",
        description="who asks or answers: any name that stands for one person",
        examples=["ada"],
    ),
]
LabelValue = Annotated[
    str | int | float, Field(description="a class name, or a number", examples=["cat"])
]
Text = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")]
Key = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$", examples=["00f3a1c45be27d98"])]
Moment = Annotated[FiniteFloat, Field(description="seconds since the epoch")]
Count = Annotated[int, Field(ge=0)]


def _whole(given: Any) -> Any:
    """Take 3.0 for 3, as JSON schemas do."""
    return int(given) if isinstance(given, float) and given.is_integer() else given


Whole = Annotated[int, BeforeValidator(_whole)]


def _path(name: str, description: str, example: Any) -> Any:
    return Path(pattern=f"^({PATTERNS[name]})$", description=description, examples=[example])


ProjectName = Annotated[str, _path("project", "name of the project", "birds")]
ItemKey = Annotated[str, _path("item", "id key of the item", "00f3a1c45be27d98")]
LeaseId = Annotated[str, _path("lease", "id of the lease", "5d0e" * 8)]
AnnotatorName = Annotated[str, _path("annotator", "name of the annotator", "ada")]
RoundNumber = Annotated[
    int, Path(ge=-1, le=999_999, description="-1 is the initial choice", examples=[0])
]
Version = Annotated[str, _path("version", "version of a model", "r0003-9c1f")]
JobId = Annotated[str, _path("job", "id of the job", "41c0" * 8)]
TokenId = Annotated[str, _path("token", "id of the token", "9d7e" * 8)]
Limit = Annotated[int, Query(ge=1, le=1000, description="rows of a page")]
Cursor = Annotated[
    str | None,
    Query(
        max_length=4096,
        pattern=r"^[A-Za-z0-9_-]+$",
        description="`next` of the page before; leave it out to begin",
    ),
]


class Body(BaseModel):
    """A body: unknown members are refused, values are not coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Answered(BaseModel):
    """An answer, or a part of one."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Page(Answered):
    """A page of a list."""

    next: str | None = Field(None, description="cursor of the next page; null after the last")


def key_of(item: str) -> str:
    """Return the id key by which paths name an item."""
    return f"{int(id_keys([item])[0]):016x}"


def example(**values: Any) -> ConfigDict:
    """Return a configuration that shows an example in the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": [values]})
