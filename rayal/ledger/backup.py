"""Backups that an upgrade makes: a whole copy of the ledger under its final name, or none."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain, count
from pathlib import Path

from sqlalchemy import URL

from rayal.errors import LedgerError, SettingsError, StorageError
from rayal.failpoints import failpoint

_DRAFT = ".tmp-"  # prefix of names that never count


def backup_path(root: Path, wanted: Path | None, version: str, suffix: str) -> Path:
    """Return the path of a backup, or raise SettingsError unless a file may be made there.

    Args:
        root: the storage root, where it goes by default.
        wanted: a file, or a folder for a file of the default name.
        version: the schema version from before which it is.
        suffix: suffix of the default name.
    """
    path = root if wanted is None else wanted
    if path.is_dir():
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        numbers = chain([""], (f"-{number}" for number in count(2)))  # two within a second
        names = (f"ledger-before-{version}-{stamp}{number}{suffix}" for number in numbers)
        return next(path / name for name in names if not (path / name).exists())
    if path.exists():
        raise SettingsError(f"backup {str(path)!r} exists; name another file, or move it away")
    if not path.parent.is_dir():
        raise SettingsError(f"folder {str(path.parent)!r} does not exist; make it first")
    return path


def remove_drafts(root: Path) -> None:
    """Remove what killed upgrades of a storage root left there; no other one may be at work."""
    for draft in root.glob(f"{_DRAFT}ledger-before-*"):
        draft.unlink()


def copy_sqlite(source: sqlite3.Connection, ledger: Path, path: Path) -> None:
    """Copy a ledger's database to another file, and compare the two.

    Args:
        source: a connection to the ledger that lets no other one write.
        ledger: its file, whose permissions the copy gets.
        path: the copy.

    Raises:
        StorageError: the copy is not whole.
    """
    with _whole(path) as draft:
        try:
            with closing(sqlite3.connect(draft)) as target:
                source.backup(target)
                original, copied = _summary(source), _summary(target)
        except sqlite3.Error as error:
            raise StorageError(f"the backup {path} failed: {error}; nothing was changed") from error
        if original != copied or copied["integrity"] != "ok":
            raise StorageError(
                f"the backup {path} is not whole, or not what the ledger holds "
                f"({copied['integrity']}); nothing was changed: check the disks, or back up "
                "otherwise (docs/backup.md) and repeat with --backed-up"
            )
        shutil.copymode(ledger, draft)


def _summary(connection: sqlite3.Connection) -> dict[str, object]:
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    counts = {
        name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
        for (name,) in names.fetchall()
    }
    integrity: str = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    return {"integrity": " ".join(integrity.split()), "counts": counts}


def dump_postgresql(url: URL, path: Path) -> None:
    """Write a database to a file that pg_restore reads, and read it once.

    Args:
        url: the database.
        path: the file.

    Raises:
        LedgerError: the programs of PostgreSQL are not there.
        StorageError: one of them failed.
    """
    programs = [shutil.which(name) for name in ("pg_dump", "pg_restore")]
    dump, restore = programs
    if dump is None or restore is None:
        raise LedgerError(
            "pg_dump and pg_restore are not on PATH, so that no backup can be made; install "
            "PostgreSQL's client programs, or back up otherwise and repeat with --backed-up"
        )
    address = url.set(drivername="postgresql", password=None).render_as_string()
    environment = os.environ | ({} if url.password is None else {"PGPASSWORD": str(url.password)})
    with _whole(path) as draft:
        for words in (
            [dump, "--format=custom", f"--file={draft}", f"--dbname={address}"],
            [restore, f"--file={os.devnull}", str(draft)],
        ):
            done = subprocess.run(
                words, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise StorageError(
                    f"the backup {path} failed: {done.stderr.strip()}; nothing was changed: use "
                    "the server's own pg_dump, or back up otherwise and repeat with --backed-up"
                )


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a draft file to write, which gets its final name if nothing is raised."""
    draft = path.with_name(f"{_DRAFT}{path.name}")
    draft.unlink(missing_ok=True)
    draft.touch(0o600)
    try:
        yield draft
        _sync(draft)
        failpoint("upgrade.backup")
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
