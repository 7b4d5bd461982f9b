"""The tables of a ledger.

Every table carries its project or its pool; ``events`` tells each write once more, and ``meta``
holds the schema's version. What ``UNTOLD`` names is not told by events: answers kept for repeated
requests, and the beats of running jobs.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    select,
)

from rayal.errors import LedgerError
from rayal.ledger.columns import (
    NAME,
    flag,
    id_key,
    json_value,
    moment,
    parent,
    text,
    whole,
)

SCHEMA_VERSION = "1"
STAGES = (
    "prepare", "embed", "pretrain", "train", "evaluate", "scan", "auxiliary", "select", "label"
)  # fmt: skip
UNTOLD = ("meta", "events", "idempotency", "beats")

metadata = MetaData()
meta = Table("meta", metadata, text("name", primary_key=True), text("value"))
events = Table(
    "events",
    metadata,
    Column("seq", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True),
    moment("time"),
    Column("project", NAME),  # null for a pool, or for files that no single project owns
    text("kind"),
    json_value("payload"),  # [[op, table, row, …], …]
    Index("events_project", "project", "seq"),
    sqlite_autoincrement=True,
)

snapshots = Table(
    "snapshots",
    metadata,
    text("pool", primary_key=True),
    whole("number", primary_key=True),
    json_value("info"),
    moment("created"),
)
parts = Table(
    "parts",
    metadata,
    text("pool", primary_key=True),
    text("part", primary_key=True),
    whole("number"),  # the first snapshot that holds the part; every later one holds it too
    whole("position"),  # commit order within the pool
    *(text(c) for c in ("file", "role")),
    whole("rows"),
    id_key("key_sum"),
    whole("bytes"),
    parent("snapshots", "pool", "number"),
    Index("parts_position", "pool", "position", unique=True),
)

projects = Table(
    "projects",
    metadata,
    text("project", primary_key=True),
    text("pool"),
    json_value("settings"),
    moment("created"),
    whole("version"),  # 1, 2, …: one more with each change of the settings
    Column("deleted", Double),
)
rounds = Table(
    "rounds",
    metadata,
    text("project", primary_key=True),
    whole("round", primary_key=True),
    whole("snapshot"),
    whole("labels_seq"),
    json_value("seeds"),
    moment("begun"),
    parent("projects", "project"),
)
stages = Table(
    "stages",
    metadata,
    text("project", primary_key=True),
    whole("round", primary_key=True),
    text("stage", primary_key=True),
    json_value("output"),
    Column("seconds", Double, nullable=False),
    moment("finished"),
    parent("rounds", "project", "round"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    text("model", primary_key=True),
    whole("member", primary_key=True),
    whole("epoch", primary_key=True),
    text("project"),
    whole("round"),
    text("file"),
    flag("final"),
    moment("committed"),
    parent("rounds", "project", "round"),
    Index("checkpoints_file", "file"),
)
column_parts = Table(
    "column_parts",
    metadata,
    text("columns", primary_key=True),
    text("part", primary_key=True),
    text("project"),
    whole("round"),
    text("file"),
    whole("rows"),
    id_key("key_sum"),
    moment("committed"),
    parent("rounds", "project", "round"),
    Index("column_parts_file", "file"),
)

selections = Table(
    "selections",
    metadata,
    text("project", primary_key=True),
    whole("round", primary_key=True),  # -1: the initial choice
    json_value("provenance"),
    moment("committed"),
    parent("projects", "project"),
)
picks = Table(
    "picks",
    metadata,
    text("project", primary_key=True),
    whole("round", primary_key=True),
    text("item", primary_key=True),
    id_key("key"),
    whole("rank"),
    Column("score", Double),
    Column("probability", Double),
    flag("picked"),  # false: among the best not picked
    parent("selections", "project", "round"),
    Index("picks_item", "project", "item"),
)

items = Table(
    "items",
    metadata,
    text("project", primary_key=True),
    text("item", primary_key=True),
    Column("round", BigInteger),  # round, rank and score are null until the item is offered
    Column("rank", BigInteger),
    Column("score", Double),
    whole("need"),  # number of annotators that are needed
    whole("accepted"),  # number of these slots that a label fills
    flag("conflict"),  # its labels disagree
    flag("skipped"),  # so many annotators skipped it that it is no longer offered
    flag("forgotten"),  # a tombstone
    flag("open"),  # offered, with a slot that no label fills, and none of the above
    parent("projects", "project"),
)
# Work is handed out from the open items alone, however many are done.
Index(
    "items_open",
    items.c.project,
    items.c["round"],
    items.c["rank"],
    sqlite_where=items.c.open.is_(True),
    postgresql_where=items.c.open.is_(True),
)
leases = Table(
    "leases",
    metadata,
    text("lease", primary_key=True),
    *(text(c) for c in ("project", "item", "annotator")),
    text("state"),  # active | expired | returned | revoked | labeled | skipped
    moment("granted"),
    moment("expires"),
    parent("items", "project", "item"),
    Index("leases_item", "project", "item"),
    Index("leases_state", "project", "state", "expires"),
)
labels = Table(
    "labels",
    metadata,
    text("project", primary_key=True),
    whole("seq", primary_key=True),  # 1, 2, … within the project
    *(text(c) for c in ("item", "annotator")),
    json_value("value"),  # null for skips and retractions
    text("status"),  # accepted | surplus | updated | skipped | retracted
    Column("slot", BigInteger),  # order of acceptance among the item's labels; null: fills none
    flag("late"),
    Column("lease", NAME),  # null: unleased
    Column("reason", String),  # of a skip
    json_value("provenance"),
    Column("resolution", BigInteger),  # the row with the item's value after this one; null: none
    Column("superseded_by", BigInteger),
    moment("time"),
    parent("items", "project", "item"),
    Index("labels_item", "project", "item", "annotator"),
)

jobs = Table(
    "jobs",
    metadata,
    text("job", primary_key=True),
    whole("number", unique=True),  # the order in which they were asked for
    *(text(c) for c in ("project", "kind")),
    json_value("args"),
    text("state"),  # queued | running | done | failed | cancelled
    json_value("result"),
    Column("error", String),
    whole("attempts"),
    moment("created"),
    Column("started", Double),
    Column("finished", Double),
    Column("owner", NAME),
    parent("projects", "project"),
    Index("jobs_state", "state", "number"),
)
# One at a time per project, whoever asks.
Index(
    "jobs_running",
    jobs.c.project,
    unique=True,
    sqlite_where=jobs.c.state == "running",
    postgresql_where=jobs.c.state == "running",
)
beats = Table(
    "beats",
    metadata,
    text("job", primary_key=True),
    moment("heartbeat"),
    json_value("progress"),
)
models = Table(
    "models",
    metadata,
    text("project", primary_key=True),
    text("version", primary_key=True),
    whole("round"),
    text("model"),
    json_value("info"),
    moment("created"),
    flag("active"),
    parent("projects", "project"),
)
suggestions = Table(
    "suggestions",
    metadata,
    *(text(c, primary_key=True) for c in ("project", "version", "item")),
    json_value("label"),
    json_value("probs"),
    parent("models", "project", "version"),
    Index("suggestions_item", "project", "item"),
)

tokens = Table(
    "tokens",
    metadata,
    text("token_id", primary_key=True),
    text("name"),
    json_value("scopes"),
    text("hash", unique=True),  # SHA-256 of the secret, hex
    moment("created"),
    Column("expires", Double),
    Column("revoked", Double),
)
idempotency = Table(
    "idempotency",
    metadata,
    *(text(c, primary_key=True) for c in ("scope", "key")),
    text("fingerprint"),
    whole("status"),
    Column("body", LargeBinary, nullable=False),
    json_value("headers"),
    moment("created"),
    Index("idempotency_created", "created"),
)


_WORD = meta.c.name == "schema_version"


@dataclass(frozen=True)
class Schema:
    """The tables of one version, and how older ones become these.

    Args:
        metadata: the tables.
        version: 1, 2, … as text, the word that ``meta`` holds and nothing else repeats.
        scripts: folders with the revisions up to that version.
    """

    metadata: MetaData
    version: str
    scripts: tuple[Path, ...]

    def create(self, conn: Connection) -> None:
        """Make every table in an empty database, and note the version."""
        self.metadata.create_all(conn)
        note_version(conn, self.version)

    def older(self, version: str | None, where: str) -> bool:
        """Return whether a ledger has older tables than these, or raise LedgerError.

        Args:
            version: the ledger's word; None if it has none.
            where: the ledger, for the message.

        Raises:
            LedgerError: no version that this program knows of.
        """
        if version is None or not (version.isascii() and version.isdigit()) or int(version) < 1:
            raise LedgerError(
                f"{where} has schema version {version}, which no rayal writes; it holds another "
                "program's tables or is damaged: restore a backup, or choose another storage root"
            )
        if int(version) > int(self.version):
            raise LedgerError(
                f"{where} has schema version {version}, this rayal reads {self.version}; open it "
                "with the newer rayal that wrote it, or restore the backup from before its upgrade"
            )
        return int(version) < int(self.version)

    def check(self, version: str | None, where: str, root: Path) -> None:
        """Raise LedgerError unless the version is this one.

        Args:
            version: the ledger's word; None if it has none.
            where: the ledger, for the message.
            root: the storage root.
        """
        if self.older(version, where):
            raise LedgerError(
                f"{where} has schema version {version}, this rayal reads {self.version}; end what "
                f"works on it, then: rayal upgrade {shlex.quote(str(root))}"
            )


SCHEMA = Schema(metadata, SCHEMA_VERSION, (Path(__file__).parent / "migrations",))


def noted_version(conn: Connection) -> str | None:
    """Return the version that a ledger notes, None if it notes none."""
    version: str | None = conn.scalar(select(meta.c.value).where(_WORD))
    return version


def note_version(conn: Connection, version: str) -> None:
    """Write a version into a ledger in place of any other."""
    conn.execute(meta.delete().where(_WORD))
    conn.execute(meta.insert().values(name="schema_version", value=version))
