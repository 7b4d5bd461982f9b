"""Projects as answers show them; what a client may say of one stands in ``bodies``."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from rayal.service.schemas.base import Answered, Count, Moment, Page


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
