"""The place of a storage root's ledger: a file of its own, or a database that the root names."""

from __future__ import annotations

import fcntl
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from rayal.errors import LedgerError, SettingsError, StorageError

_TRIES = 1000  # to open a folder that others make and remove


@dataclass(frozen=True)
class Folder:
    """A folder whose lock is held.

    Attributes:
        path: where it lies.
        made: whether it was not there before.
    """

    path: Path
    made: bool

    def remove_empty(self) -> bool:
        """Remove it if nothing is in it, and return whether it is gone; who waits makes it anew."""
        with suppress(OSError):
            self.path.rmdir()
        return not self.path.exists()


@contextmanager
def held(path: Path, seconds: float = math.inf) -> Iterator[Folder]:
    """Make a folder, and hold its lock; another holder may have removed it while this one waited.

    Args:
        path: the folder; its parents are made too.
        seconds: longest wait for another holder.

    Raises:
        BlockingIOError: another holds it for longer.
        FileNotFoundError: it was removed again and again.
    """
    deadline = time.monotonic() + seconds
    created = False
    for _ in range(_TRIES):
        try:
            created |= _make(path)
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # removed between the two, or its parent was
        try:
            _lock(descriptor, deadline)
            if _is(descriptor, path):
                yield Folder(path, created)
                return
        finally:
            os.close(descriptor)
        created = False
    raise FileNotFoundError(f"{path} was removed again and again while it was being opened")


def _make(path: Path) -> bool:
    """Make a folder; return whether it was not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _lock(descriptor: int, deadline: float) -> None:
    if math.isinf(deadline):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.01)


def _is(descriptor: int, path: Path) -> bool:
    """Return whether a path is still that of an open folder."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


FILE = "ledger.sqlite"
NOTE = "database"  # holds the URL where the ledger is not in FILE
POSTGRESQL = 'database="postgresql+psycopg://USER@HOST/NAME"'


def has_ledger(root: Path) -> bool:
    """Return whether a storage root has a ledger, without opening it."""
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


def split(where: str) -> tuple[Path, str]:
    """Return root and project of ``ROOT#PROJECT``."""
    root, mark, project = where.rpartition("#")
    if not mark or not root or not project:
        raise SettingsError(
            f"{where!r} names no project; write ROOT#PROJECT, as runs/demo#badge-s0"
        )
    return Path(root), project
