"""The tables of a ledger, and the two column types that both databases need.

Every table carries its project or its pool; ``events`` tells each write once more, and ``meta``
holds the schema's version.
"""

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
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.types import TypeDecorator

from rayal.errors import LedgerError

SCHEMA_VERSION = "1"
STAGES = ("prepare", "embed", "train", "evaluate", "scan", "auxiliary", "select", "label")


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
        """Return the value of a stored text."""
        return json.loads(value)


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


def _text(name: str, **kw: Any) -> Column[Any]:
    return Column(name, String, nullable=False, **kw)


def _int(name: str, **kw: Any) -> Column[Any]:
    return Column(name, BigInteger, nullable=False, autoincrement=False, **kw)


def _time(name: str) -> Column[Any]:
    return Column(name, Double, nullable=False)  # seconds since the epoch


def _json(name: str) -> Column[Any]:
    return Column(name, Json, nullable=False)


def _key(name: str) -> Column[Any]:
    return Column(name, Unsigned64, nullable=False)


def _parent(table: str, *columns: str) -> ForeignKeyConstraint:
    return ForeignKeyConstraint(columns, [f"{table}.{c}" for c in columns])


metadata = MetaData()
meta = Table("meta", metadata, _text("name", primary_key=True), _text("value"))
events = Table(
    "events",
    metadata,
    Column("seq", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True),
    _time("time"),
    Column("project", String),  # null: a pool, or files that no single project owns
    _text("kind"),
    _json("payload"),  # [[op, table, row, …], …]
    Index("events_project", "project", "seq"),
    sqlite_autoincrement=True,
)

snapshots = Table(
    "snapshots",
    metadata,
    _text("pool", primary_key=True),
    _int("number", primary_key=True),
    _json("info"),
    _time("created"),
)
parts = Table(
    "parts",
    metadata,
    _text("pool", primary_key=True),
    _text("part", primary_key=True),
    _int("number"),  # the first snapshot that holds the part; every later one holds it too
    _int("position"),  # commit order within the pool
    *(_text(c) for c in ("file", "role")),
    _int("rows"),
    _key("key_sum"),
    _int("bytes"),
    _parent("snapshots", "pool", "number"),
    Index("parts_position", "pool", "position", unique=True),
)

projects = Table(
    "projects",
    metadata,
    _text("project", primary_key=True),
    _text("pool"),
    _json("settings"),
    _time("created"),
)
rounds = Table(
    "rounds",
    metadata,
    _text("project", primary_key=True),
    _int("round", primary_key=True),
    _int("snapshot"),
    _int("labels_seq"),
    _json("seeds"),
    _time("begun"),
    _parent("projects", "project"),
)
stages = Table(
    "stages",
    metadata,
    _text("project", primary_key=True),
    _int("round", primary_key=True),
    _text("stage", primary_key=True),
    _json("output"),
    Column("seconds", Double, nullable=False),
    _time("finished"),
    _parent("rounds", "project", "round"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    _text("model", primary_key=True),
    _int("member", primary_key=True),
    _int("epoch", primary_key=True),
    _text("project"),
    _int("round"),
    _text("file"),
    Column("final", Boolean, nullable=False),
    _time("committed"),
    _parent("rounds", "project", "round"),
    Index("checkpoints_file", "file"),
)
column_parts = Table(
    "column_parts",
    metadata,
    _text("columns", primary_key=True),
    _text("part", primary_key=True),
    _text("project"),
    _int("round"),
    _text("file"),
    _int("rows"),
    _key("key_sum"),
    _time("committed"),
    _parent("rounds", "project", "round"),
    Index("column_parts_file", "file"),
)

selections = Table(
    "selections",
    metadata,
    _text("project", primary_key=True),
    _int("round", primary_key=True),  # -1: the initial choice
    _json("provenance"),
    _time("committed"),
    _parent("projects", "project"),
)
picks = Table(
    "picks",
    metadata,
    _text("project", primary_key=True),
    _int("round", primary_key=True),
    _text("item", primary_key=True),
    _key("key"),
    _int("rank"),
    Column("score", Double),
    Column("probability", Double),
    Column("picked", Boolean, nullable=False),  # false: among the best not picked
    _parent("selections", "project", "round"),
    Index("picks_item", "project", "item"),
)

items = Table(
    "items",
    metadata,
    _text("project", primary_key=True),
    _text("item", primary_key=True),
    Column("round", BigInteger),  # round, rank and score are null until the item is offered
    Column("rank", BigInteger),
    Column("score", Double),
    _int("need"),  # how many annotators are wanted
    _int("accepted"),  # how many of these slots a label fills
    _parent("projects", "project"),
)
# Work is handed out from the open items alone, however many are done.
Index(
    "items_open",
    items.c.project,
    items.c["round"],
    items.c["rank"],
    sqlite_where=items.c.accepted < items.c.need,
    postgresql_where=items.c.accepted < items.c.need,
)
leases = Table(
    "leases",
    metadata,
    _text("lease", primary_key=True),
    *(_text(c) for c in ("project", "item", "annotator")),
    _text("state"),  # active | expired | returned | revoked | labeled
    _time("granted"),
    _time("expires"),
    _parent("items", "project", "item"),
    Index("leases_item", "project", "item"),
    Index("leases_state", "project", "state", "expires"),
)
labels = Table(
    "labels",
    metadata,
    _text("project", primary_key=True),
    _int("seq", primary_key=True),  # 1, 2, … within the project
    *(_text(c) for c in ("item", "annotator")),
    _json("value"),
    _text("status"),  # accepted | surplus | updated
    Column("slot", BigInteger),  # which of the item's slots it fills; null: surplus
    Column("late", Boolean, nullable=False),
    Column("lease", String),
    Column("superseded_by", BigInteger),
    _time("time"),
    _parent("items", "project", "item"),
    Index("labels_item", "project", "item", "annotator"),
)
