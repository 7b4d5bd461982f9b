"""Projects as answers show them, and tokens; what a client may say of one stands in ``bodies``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from rayal.service.auth import SCOPE
from rayal.service.schemas.base import Answered, Body, Count, Moment, Page, example


class ProjectInfo(Answered):
    """A project, and how it stands."""

    name: str
    version: int = Field(description="grows with every change; the ETag")
    pool: str
    items: Count = Field(description="items of its pool that can be labeled")
    settings: dict[str, Any]
    labels: dict[str, Any] = Field(
        description="what answers look like: {kind: class, classes}, or {kind: number, low, high}"
    )
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


class TokenBody(Body):
    """A token to make."""

    model_config = example(name="labeling tool", scopes=["project:birds:label"])
    name: str = Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]+$")
    scopes: list[Annotated[str, Field(pattern=SCOPE)]] = Field(
        min_length=1,
        max_length=100,
        description="admin, or project:NAME:write, label or read; write includes label includes "
        "read",
    )
    ttl_s: float | None = Field(
        None, gt=0, le=10 * 366 * 86_400, description="seconds until it expires; null: never"
    )


class TokenInfo(Answered):
    """A token, without its secret."""

    token_id: str
    name: str
    scopes: list[str]
    created_at: Moment
    expires_at: Moment | None
    revoked_at: Moment | None


class TokenMade(TokenInfo):
    """A new token; its text is in this answer and nowhere else."""

    token: str | None = Field(
        description="null where the answer is a repeated one: the text is not kept; revoke the "
        "token and make another"
    )


class TokenList(Answered):
    """All tokens, in the order in which they were made."""

    tokens: list[TokenInfo]
