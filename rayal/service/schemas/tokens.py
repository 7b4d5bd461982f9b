"""Access tokens."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from rayal.service.auth import SCOPE
from rayal.service.schemas.base import Answered, Body, Moment, example


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
