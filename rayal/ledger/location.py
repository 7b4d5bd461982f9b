"""Where a storage root keeps its ledger: in a file of its own, or in a database that it names."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from rayal.errors import LedgerError, StorageError

FILE = "ledger.sqlite"
NOTE = "database"  # holds the URL where the ledger is not in FILE
POSTGRESQL = 'database="postgresql+psycopg://USER@HOST/NAME"'


def has_ledger(root: Path) -> bool:
    """Whether a storage root has a ledger, without opening it."""
    return (root / FILE).exists() or (root / NOTE).exists()


def noted_database(root: Path) -> str | None:
    """Return the URL of the database that the root was made with, None if it has none."""
    try:
        return (root / NOTE).read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{root / NOTE} cannot be read ({error}); it names the ledger") from None


def one_url(root: Path, given: str | None, noted: str | None) -> str:
    """Return the URL of a root's database, or raise LedgerError if it is not the given one."""
    if given is None or noted is None:
        if noted is None and (root / FILE).exists():
            raise LedgerError(
                f"{root} keeps its ledger in {FILE}; leave the database out, or choose another "
                "storage root"
            )
        return str(noted if given is None else given)
    if parsed_url(given) != parsed_url(noted):
        raise LedgerError(
            f"{root} keeps its ledger in {parsed_url(noted)!r}, given was {parsed_url(given)!r}; "
            f"leave the database out, or choose another storage root (the URL is in {root / NOTE})"
        )
    return noted


def note_database(root: Path, url: URL) -> None:
    """Write the URL where only the owner reads it, whole or not at all."""
    root.mkdir(parents=True, exist_ok=True)
    new = root / f".{NOTE}.{os.getpid()}.{threading.get_ident()}"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(url.render_as_string(hide_password=False) + "\n")
    os.replace(new, root / NOTE)


def parsed_url(database: str) -> URL:
    """Return a PostgreSQL URL, or raise LedgerError."""
    try:
        url = make_url(database)
        url.get_dialect()
    except (ArgumentError, NoSuchModuleError) as error:
        raise LedgerError(f"database is not a URL ({error}); give {POSTGRESQL}") from None
    if url.get_backend_name() != "postgresql":
        raise LedgerError(
            f"database {url!r} is of dialect {url.get_backend_name()!r}; allowed: SQLite in "
            f"the storage root (leave database out) and PostgreSQL ({POSTGRESQL})"
        )
    return url
