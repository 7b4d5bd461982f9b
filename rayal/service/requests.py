"""Requests whose bodies are bounded while they stream in, and whose JSON is what RFC 8259 says."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from typing import Any

from anyio.to_thread import run_sync
from starlette.requests import Request

from rayal.service.problems import ProblemError

MAX_DEPTH = 32
_LARGE = 1 << 16  # bytes from which on a body is parsed beside the event loop
_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[^\[\]{}"]+', re.DOTALL)
_INNERMOST = re.compile(r"\[\]|\{\}")
_ODD_NUMBER = re.compile(r"\d{19}|[eE]\+?\d{3}")
_ODD_TEXT = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


class BoundedRequest(Request):
    """A request whose body may have ``limit`` bytes, and whose JSON is read strictly."""

    limit = 0

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body piece by piece; refuse it as soon as it is too large."""
        check_length(self.headers.get("content-length"), self.limit)
        seen = 0
        async for piece in super().stream():
            seen += len(piece)
            if seen > self.limit:
                raise too_large(self.limit)
            yield piece

    async def json(self) -> Any:
        """Return the value of the body."""
        raw = await self.body()
        return await run_sync(parse_json, raw) if len(raw) > _LARGE else parse_json(raw)


def check_length(declared: str | None, limit: int) -> None:
    """Refuse a body by its declared length, before a byte of it is read."""
    if declared is not None and (not declared.isdecimal() or int(declared[:20]) > limit):
        raise too_large(limit)


def too_large(limit: int) -> ProblemError:
    """Return the problem of a body above its limit."""
    return ProblemError("too-large", f"the body may have {limit} bytes; send less at once")


def parse_json(raw: bytes) -> Any:
    """Return the value of a JSON text.

    Refused are text that is not UTF-8, NaN and Infinity, numbers beyond 64 bits or a double,
    NUL and lone surrogates in strings, and values nested deeper than 32.
    """
    try:
        text = raw.decode()
        value = _loads(text)
    except UnicodeDecodeError as error:
        raise _invalid(f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"not JSON at character {error.pos}: {error.msg}") from None
    except RecursionError:
        raise _invalid(f"nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise _invalid(str(error)) from None
    if _too_deep(text):
        raise _invalid(f"nested deeper than {MAX_DEPTH}")
    if _ODD_TEXT.search(text):
        check_text(value)
    return value


def check_text(value: Any) -> None:
    """Refuse a value with a string that no database or UTF-8 text can hold."""
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise _invalid("a string holds NUL or a lone surrogate")
    elif isinstance(value, list):
        for inner in value:
            check_text(inner)
    elif isinstance(value, dict):
        for name, inner in value.items():
            check_text(name)
            check_text(inner)


def _loads(text: str) -> Any:
    if _ODD_NUMBER.search(text):  # a call per number is slow, and rarely needed
        return json.loads(
            text, parse_constant=_constant, parse_float=_float, parse_int=_int, strict=True
        )
    return json.loads(text, parse_constant=_constant)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; leave the value out, or give null where it is allowed")


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"number {text[:20]} is larger than a double")
    return number


def _int(text: str) -> int:
    if len(text) > 20 or not -(1 << 63) <= int(text) < 1 << 63:
        raise ValueError(f"number {text[:20]}… does not fit 64 bits")
    return int(text)


def _too_deep(text: str) -> bool:
    """Say whether brackets nest deeper than allowed: each pass removes the innermost ones."""
    brackets = _STRINGS.sub("", text)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return False
        brackets = _INNERMOST.sub("", brackets)
    return bool(brackets)


def _invalid(detail: str) -> ProblemError:
    return ProblemError("validation", f"the body: {detail}", errors=[("", detail)])
