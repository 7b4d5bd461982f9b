"""Sign short-lived URLs of items' contents, and cursors of lists."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from rayal.service.problems import ProblemError

_CURSOR_MAC = 8  # bytes: a cursor opens nothing that its token does not


def content_path(secret: bytes, project: str, key: str, expires: float) -> str:
    """Return path and query under which an item's content is served until a time.

    Args:
        secret: the key of the service.
        project: name of the project.
        key: id key of the item, 16 hex digits.
        expires: seconds since the epoch.
    """
    until = int(expires)
    signature = _content_signature(secret, project, key, until)
    return f"/v1/projects/{project}/items/{key}/content?expires={until}&signature={signature}"


def check_content(
    secret: bytes, project: str, key: str, *, expires: int, signature: str, now: float
) -> None:
    """Refuse a signed URL that was changed, or is past its time."""
    wanted = _content_signature(secret, project, key, expires)
    if not hmac.compare_digest(wanted.encode(), signature.encode()):
        raise ProblemError("forbidden", "the signature does not belong to this URL")
    if expires <= now:
        raise ProblemError("forbidden", "the signed URL has expired; ask for the item again")


def cursor(secret: bytes, scope: str, position: Sequence[Any]) -> str:
    """Return a cursor: where a list goes on, bound to the list that it was made for."""
    text = json.dumps(list(position), separators=(",", ":")).encode()
    return _encode(_mac(secret, f"cursor\n{scope}\n".encode() + text)[:_CURSOR_MAC] + text)


def position(secret: bytes, scope: str, cursor: str | None) -> list[Any] | None:
    """Return what a cursor says, None without one.

    Raises:
        ProblemError: it was not made by this service for this list.
    """
    if cursor is None:
        return None
    try:
        raw = base64.urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4))
    except (binascii.Error, ValueError):
        raise _foreign() from None
    mac, text = raw[:_CURSOR_MAC], raw[_CURSOR_MAC:]
    if not hmac.compare_digest(
        mac, _mac(secret, f"cursor\n{scope}\n".encode() + text)[:_CURSOR_MAC]
    ):
        raise _foreign()
    return list(json.loads(text))


def _foreign() -> ProblemError:
    detail = "the cursor is not one of this list; begin without a cursor"
    return ProblemError("validation", detail, errors=[("query:cursor", detail)])


def _content_signature(secret: bytes, project: str, key: str, expires: int) -> str:
    return _encode(_mac(secret, f"content\n{project}\n{key}\n{expires}".encode()))


def _mac(secret: bytes, text: bytes) -> bytes:
    return hmac.new(secret, text, sha256).digest()


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
