"""Revision 1: the tables of the first ledgers."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")
NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def text(*names: str, key: bool = False) -> list[sa.Column[Any]]:
    """Return columns of texts, never null."""
    return [sa.Column(name, NAME, primary_key=key, nullable=False) for name in names]


def whole(*names: str, key: bool = False) -> list[sa.Column[Any]]:
    """Return columns of whole numbers, never null."""
    types: Any = {"primary_key": key, "autoincrement": False, "nullable": False}
    return [sa.Column(name, sa.BigInteger, **types) for name in names]


def double(*names: str, null: bool = False) -> list[sa.Column[Any]]:
    """Return columns of times and other real numbers."""
    return [sa.Column(name, sa.Double, nullable=null) for name in names]


def json(*names: str) -> list[sa.Column[Any]]:
    """Return columns of JSON values, written as text, never null."""
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def flag(*names: str) -> list[sa.Column[Any]]:
    """Return columns of true or false, never null."""
    return [sa.Column(name, sa.Boolean, nullable=False) for name in names]


def parent(table: str, *names: str) -> sa.ForeignKeyConstraint:
    """Return the constraint that a row of ``table`` with these columns exists."""
    return sa.ForeignKeyConstraint(names, [f"{table}.{name}" for name in names])


def upgrade() -> None:
    """Make the tables in an empty database."""
    op.create_table("meta", *text("name", key=True), *text("value"))
    op.create_table(
        "events",
        sa.Column("seq", NUMBER, primary_key=True),
        *double("time"),
        sa.Column("project", NAME),
        *text("kind"),
        *json("payload"),
        sqlite_autoincrement=True,
    )
    op.create_index("events_project", "events", ["project", "seq"])
    _pools()
    _rounds()
    _files()
    _selections()
    _items()
    _jobs()
    _models()
    _service()


def _pools() -> None:
    op.create_table(
        "snapshots",
        *text("pool", key=True),
        *whole("number", key=True),
        *json("info"),
        *double("created"),
    )
    op.create_table(
        "parts",
        *text("pool", "part", key=True),
        *whole("number", "position"),
        *text("file", "role"),
        *whole("rows", "key_sum", "bytes"),
        parent("snapshots", "pool", "number"),
    )
    op.create_index("parts_position", "parts", ["pool", "position"], unique=True)


def _rounds() -> None:
    op.create_table(
        "projects",
        *text("project", key=True),
        *text("pool"),
        *json("settings"),
        *double("created"),
        *whole("version"),
        *double("deleted", null=True),
    )
    op.create_table(
        "rounds",
        *text("project", key=True),
        *whole("round", key=True),
        *whole("snapshot", "labels_seq"),
        *json("seeds"),
        *double("begun"),
        parent("projects", "project"),
    )
    op.create_table(
        "stages",
        *text("project", key=True),
        *whole("round", key=True),
        *text("stage", key=True),
        *json("output"),
        *double("seconds", "finished"),
        parent("rounds", "project", "round"),
    )


def _files() -> None:
    op.create_table(
        "checkpoints",
        *text("model", key=True),
        *whole("member", "epoch", key=True),
        *text("project"),
        *whole("round"),
        *text("file"),
        *flag("final"),
        *double("committed"),
        parent("rounds", "project", "round"),
    )
    op.create_index("checkpoints_file", "checkpoints", ["file"])
    op.create_table(
        "column_parts",
        *text("columns", "part", key=True),
        *text("project"),
        *whole("round"),
        *text("file"),
        *whole("rows", "key_sum"),
        *double("committed"),
        parent("rounds", "project", "round"),
    )
    op.create_index("column_parts_file", "column_parts", ["file"])


def _selections() -> None:
    op.create_table(
        "selections",
        *text("project", key=True),
        *whole("round", key=True),
        *json("provenance"),
        *double("committed"),
        parent("projects", "project"),
    )
    op.create_table(
        "picks",
        *text("project", key=True),
        *whole("round", key=True),
        *text("item", key=True),
        *whole("key", "rank"),
        *double("score", "probability", null=True),
        *flag("picked"),
        parent("selections", "project", "round"),
    )
    op.create_index("picks_item", "picks", ["project", "item"])


def _items() -> None:
    op.create_table(
        "items",
        *text("project", "item", key=True),
        *(sa.Column(name, sa.BigInteger) for name in ("round", "rank")),
        *double("score", null=True),
        *whole("need", "accepted"),
        *flag("conflict", "skipped", "forgotten", "open"),
        parent("projects", "project"),
    )
    is_open = sa.column("open", sa.Boolean).is_(True)
    op.create_index(
        "items_open",
        "items",
        ["project", "round", "rank"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )
    op.create_table(
        "leases",
        *text("lease", key=True),
        *text("project", "item", "annotator", "state"),
        *double("granted", "expires"),
        parent("items", "project", "item"),
    )
    op.create_index("leases_item", "leases", ["project", "item"])
    op.create_index("leases_state", "leases", ["project", "state", "expires"])
    op.create_table(
        "labels",
        *text("project", key=True),
        *whole("seq", key=True),
        *text("item", "annotator"),
        *json("value"),
        *text("status"),
        sa.Column("slot", sa.BigInteger),
        *flag("late"),
        sa.Column("lease", NAME),
        sa.Column("reason", sa.String),
        *json("provenance"),
        *(sa.Column(name, sa.BigInteger) for name in ("resolution", "superseded_by")),
        *double("time"),
        parent("items", "project", "item"),
    )
    op.create_index("labels_item", "labels", ["project", "item", "annotator"])


def _jobs() -> None:
    op.create_table(
        "jobs",
        *text("job", key=True),
        *whole("number"),
        *text("project", "kind"),
        *json("args"),
        *text("state"),
        *json("result"),
        sa.Column("error", sa.String),
        *whole("attempts"),
        *double("created"),
        *double("started", "finished", null=True),
        sa.Column("owner", NAME),
        parent("projects", "project"),
        sa.UniqueConstraint("number"),
    )
    op.create_index("jobs_state", "jobs", ["state", "number"])
    running = sa.column("state", sa.String) == "running"
    op.create_index(
        "jobs_running",
        "jobs",
        ["project"],
        unique=True,
        sqlite_where=running,
        postgresql_where=running,
    )
    op.create_table("beats", *text("job", key=True), *double("heartbeat"), *json("progress"))


def _models() -> None:
    op.create_table(
        "models",
        *text("project", "version", key=True),
        *whole("round"),
        *text("model"),
        *json("info"),
        *double("created"),
        *flag("active"),
        parent("projects", "project"),
    )
    op.create_table(
        "suggestions",
        *text("project", "version", "item", key=True),
        *json("label", "probs"),
        parent("models", "project", "version"),
    )
    op.create_index("suggestions_item", "suggestions", ["project", "item"])


def _service() -> None:
    op.create_table(
        "tokens",
        *text("token_id", key=True),
        *text("name"),
        *json("scopes"),
        *text("hash"),
        *double("created"),
        *double("expires", "revoked", null=True),
        sa.UniqueConstraint("hash"),
    )
    op.create_table(
        "idempotency",
        *text("scope", "key", key=True),
        *text("fingerprint"),
        *whole("status"),
        sa.Column("body", sa.LargeBinary, nullable=False),
        *json("headers"),
        *double("created"),
    )
    op.create_index("idempotency_created", "idempotency", ["created"])
