"""The ledger's tables by version: which one a ledger has, and which one this program reads."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, MetaData, select

from rayal.errors import LedgerError
from rayal.ledger.schema import SCHEMA_VERSION, meta, metadata

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
    """Let a ledger note a version in place of any other."""
    conn.execute(meta.delete().where(_WORD))
    conn.execute(meta.insert().values(name="schema_version", value=version))
