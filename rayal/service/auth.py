"""Bearer tokens, stored as the SHA-256 of a 256-bit secret, and their scopes."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Literal

from rayal.errors import SettingsError
from rayal.service.problems import ProblemError

if TYPE_CHECKING:
    from rayal.ledger.records import TokenRow

PREFIX = "ryl_"
PROJECT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"  # names of projects, in paths and scopes
SCOPE = rf"^(admin|project:{PROJECT}:(write|label|read))$"
_LEVELS = ("read", "label", "write")  # each includes those before it
_TOKEN = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")

Level = Literal["none", "any", "read", "label", "write", "admin"]


@dataclass(frozen=True)
class Need:
    """The rights that a route asks of a token.

    Args:
        level: ``none`` (no token), ``any`` token, a level within the project, or ``admin``.
        of: the path parameter that names the project, or the job whose project it is.
        signed: whether a signed URL does as well.
    """

    level: Level
    of: Literal["project", "job"] = "project"
    signed: bool = False


OPEN, ANY, ADMIN = Need("none"), Need("any"), Need("admin")
READ, LABEL, WRITE = Need("read"), Need("label"), Need("write")
READ_JOB, WRITE_JOB = Need("read", of="job"), Need("write", of="job")
READ_OR_SIGNED = Need("read", signed=True)


def new_token() -> str:
    """Return the text of a new token: 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """Return the form in which a token is stored."""
    return sha256(token.encode()).hexdigest()


def presented(header: str | None) -> str:
    """Return the token of an Authorization header.

    Raises:
        ProblemError: there is none, or none of this service's form.
    """
    scheme, _, token = (header or "").partition(" ")
    if not header:
        raise unauthenticated("send Authorization: Bearer and a token of this service")
    if scheme.lower() != "bearer" or not _TOKEN.fullmatch(token.strip()):
        raise unauthenticated("the Authorization header holds no token of this service", bad=True)
    return token.strip()


def check(row: TokenRow | None, hashed: str, now: float) -> TokenRow:
    """Return the row of a presented token.

    Raises:
        ProblemError: it is unknown, revoked or expired.
    """
    if row is None or not hmac.compare_digest(row.hash, hashed):
        raise unauthenticated("the token is unknown", bad=True)
    if row.revoked is not None:
        raise unauthenticated("the token was revoked", bad=True)
    if row.expires is not None and row.expires <= now:
        raise unauthenticated("the token has expired", bad=True)
    return row


def allows(scopes: Sequence[str], need: Need, project: str | None) -> bool:
    """Return whether scopes suffice for a need within a project."""
    if need.level in ("none", "any") or "admin" in scopes:
        return True
    if need.level == "admin" or project is None:
        return False
    enough = _LEVELS[_LEVELS.index(need.level) :]
    return any(f"project:{project}:{level}" in scopes for level in enough)


def require(row: TokenRow, need: Need, project: str | None) -> None:
    """Refuse a token whose scopes do not suffice."""
    if not allows(row.scopes, need, project):
        wanted = "admin" if need.level == "admin" else f"project:{project}:{need.level}"
        challenge = f'Bearer realm="rayal", error="insufficient_scope", scope="{wanted}"'
        raise ProblemError(
            "forbidden",
            f"this needs the scope {wanted}; the token has {', '.join(row.scopes) or 'none'}",
            headers={"WWW-Authenticate": challenge},
        )


def check_scopes(scopes: Sequence[str]) -> tuple[str, ...]:
    """Return scopes, each once, or raise SettingsError at one that does not exist."""
    for scope in scopes:
        if not re.fullmatch(SCOPE, scope):
            raise SettingsError(
                f"scope {scope!r} does not exist; scopes are admin, project:NAME:write, "
                "project:NAME:label and project:NAME:read"
            )
    return tuple(dict.fromkeys(scopes))


def unauthenticated(detail: str, *, bad: bool = False) -> ProblemError:
    """Return the problem of a request without a valid token."""
    challenge = 'Bearer realm="rayal"' + (', error="invalid_token"' if bad else "")
    return ProblemError("unauthenticated", detail, headers={"WWW-Authenticate": challenge})
