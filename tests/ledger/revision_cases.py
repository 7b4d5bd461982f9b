"""A made-up later revision, and what a ledger's tables are and hold in either database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import BigInteger, Column, Connection, Engine, MetaData, String, Table, text

from rayal.ledger.columns import NAME, parent
from rayal.ledger.schema import SCHEMA, Schema, metadata

OLD, NEW = SCHEMA.version, str(int(SCHEMA.version) + 1)
SCRIPT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "{new:04}", "{old:04}"
NAME = sa.String().with_variant(sa.String(collation="C"), "postgresql")


def upgrade():
    op.add_column("items", sa.Column("note", sa.String))
    op.add_column("labels", sa.Column("weight", sa.BigInteger, nullable=False, server_default="3"))
    op.create_table(
        "marks",
        sa.Column("project", NAME, primary_key=True),
        sa.Column("item", NAME, primary_key=True),
        sa.Column("mark", sa.String, nullable=False),
        sa.ForeignKeyConstraint(["project", "item"], ["items.project", "items.item"]),
    )
    # SQLite copies these two: one that others refer to, with a partial index, and the events
    with op.batch_alter_table("items") as items:
        items.alter_column("need", server_default="1")
    with op.batch_alter_table("events", table_kwargs={"sqlite_autoincrement": True}) as events:
        events.alter_column("kind", server_default="other")
"""
PLACES = {
    "sqlite": (
        "SELECT tbl_name, name, replace(sql, '\"', '') FROM sqlite_master WHERE type = 'index'",
        "SELECT m.name, i.* FROM sqlite_master m, pragma_table_info(m.name) i "
        "WHERE m.type = 'table'",
        "SELECT m.name, f.seq, f.\"table\", f.\"from\", f.\"to\", f.on_delete "
        "FROM sqlite_master m, pragma_foreign_key_list(m.name) f WHERE m.type = 'table'",
        "SELECT name, sql LIKE '%AUTOINCREMENT%' FROM sqlite_master WHERE type = 'table'",
    ),
    "postgresql": (
        "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "SELECT table_name, ordinal_position, column_name, data_type, is_nullable, "
        "column_default, collation_name FROM information_schema.columns "
        "WHERE table_schema = 'public'",
        "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE connamespace = 'public'::regnamespace",
    ),
}  # fmt: skip


def later(folder: Path) -> Schema:
    """Return the next version, as a later rayal would read it, with the revision to it."""
    tables = MetaData()
    for table in metadata.sorted_tables:
        table.to_metadata(tables)
    tables.tables["items"].append_column(Column("note", String))
    weight: Column[Any] = Column("weight", BigInteger, nullable=False, server_default="3")
    tables.tables["labels"].append_column(weight)
    tables.tables["items"].c.need.server_default = _default("1")
    tables.tables["events"].c.kind.server_default = _default("other")
    Table(
        "marks",
        tables,
        *(Column(name, NAME, primary_key=True) for name in ("project", "item")),
        Column("mark", String, nullable=False),
        parent("items", "project", "item"),
    )
    folder.mkdir()
    script = SCRIPT.replace("{new:04}", f"{int(NEW):04}").replace("{old:04}", f"{int(OLD):04}")
    (folder / "rev_made_up.py").write_text(script)
    return Schema(tables, NEW, (*SCHEMA.scripts, folder))


def _default(value: str) -> Any:
    return Column("_", String, server_default=value).server_default


def differences(engine: Engine, tables: MetaData) -> list[Any]:
    """Return what Alembic would change to make a database the given tables."""
    options = {"compare_type": True, "compare_server_default": True}
    with engine.connect() as conn:
        return list(compare_metadata(MigrationContext.configure(conn, opts=options), tables))


def outline(conn: Connection) -> list[tuple[Any, ...]]:
    """Return all that a database says of its tables: more than Alembic compares."""
    found = [row for query in PLACES[conn.dialect.name] for row in conn.execute(text(query))]
    plain = (tuple(" ".join(v.split()) if isinstance(v, str) else v for v in r) for r in found)
    return sorted(plain, key=repr)


def contents(engine: Engine, tables: MetaData = metadata) -> dict[str, list[str]]:
    """Return every row of the given tables, but the version."""
    with engine.connect() as conn:
        return {
            name: sorted(repr(dict(row)) for row in conn.execute(table.select()).mappings())
            for name, table in tables.tables.items()
            if name != "meta"
        }
