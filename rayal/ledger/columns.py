"""JSON as the ledger writes it, and the columns of its tables in both databases."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Dialect,
    Double,
    ForeignKeyConstraint,
    String,
    Text,
)
from sqlalchemy.types import TypeDecorator

from rayal.errors import LedgerError

# Both databases order text by code point, so that pages of names agree with sorted().
NAME = String().with_variant(String(collation="C"), "postgresql")


def to_json(value: Any, *, sort_keys: bool = False) -> str:
    """Return the text of a JSON value; numbers that are not finite raise ValueError."""
    return json.dumps(value, allow_nan=False, separators=(",", ":"), sort_keys=sort_keys)


def plain(value: Any, what: str) -> Any:
    """Return the value as JSON gives it back: tuples become lists, keys become text."""
    try:
        return json.loads(to_json(value))
    except (TypeError, ValueError) as error:
        raise LedgerError(
            f"{what} cannot be written as JSON: {error}; give text, finite numbers, true, false, "
            "null, lists and objects of these"
        ) from None


class Json(TypeDecorator[Any]):
    """JSON as text: a database's own type may turn 1.0 into 1, or reorder keys."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        """Return the text to store."""
        return to_json(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        """Return the value of a stored text; None where an outer join found no row."""
        return None if value is None else json.loads(value)


class Unsigned64(TypeDecorator[int]):
    """An unsigned 64-bit number in a signed column, as its two's complement."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        """Return the signed number to store."""
        if value is None or not 0 <= value < 1 << 64:
            raise ValueError(f"{value!r} is not an unsigned 64-bit number")
        return int(value) - (1 << 64) if value >= 1 << 63 else int(value)

    def process_result_value(self, value: int | None, dialect: Dialect) -> int | None:
        """Return the unsigned number of a stored one."""
        return None if value is None else value % (1 << 64)


def text(name: str, **kw: Any) -> Column[Any]:
    """Return a column of a name or other text, never null."""
    return Column(name, NAME, nullable=False, **kw)


def whole(name: str, **kw: Any) -> Column[Any]:
    """Return a column of a whole number, never null."""
    return Column(name, BigInteger, nullable=False, autoincrement=False, **kw)


def moment(name: str) -> Column[Any]:
    """Return a column of a time, seconds since the epoch, never null."""
    return Column(name, Double, nullable=False)


def json_value(name: str) -> Column[Any]:
    """Return a column of a JSON value, never null."""
    return Column(name, Json, nullable=False)


def flag(name: str) -> Column[Any]:
    """Return a column of true or false, never null."""
    return Column(name, Boolean, nullable=False)


def id_key(name: str) -> Column[Any]:
    """Return a column of an unsigned 64-bit number, never null."""
    return Column(name, Unsigned64, nullable=False)


def parent(table: str, *columns: str) -> ForeignKeyConstraint:
    """Return the constraint that a row of ``table`` with these columns exists."""
    return ForeignKeyConstraint(columns, [f"{table}.{c}" for c in columns])
