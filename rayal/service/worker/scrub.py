"""Taking forgotten items out of staged files, which may wait for a job or for their end by age."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path

from rayal.service.inbox import INBOX


def scrub(root: Path, gone: Iterable[str]) -> list[Path]:
    """Take the lines of items out of all staged files, and return the files that had some.

    A file is replaced as a whole: whoever reads it goes on with what it was.

    Args:
        root: the storage root.
        gone: ids of the items.
    """
    named, changed = frozenset(gone), []
    for path in sorted((Path(root) / INBOX).glob("*.ndjson")) if named else ():
        try:
            with path.open("rb") as lines:
                affected = any(_id_of(line) in named for line in lines)
            if affected:
                _rewrite(path, named)
                changed.append(path)
        except FileNotFoundError:  # its job has ended meanwhile
            continue
    return changed


def _rewrite(path: Path, named: frozenset[str]) -> None:
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with path.open("rb") as lines, draft.open("xb") as file:
            file.writelines(line for line in lines if _id_of(line) not in named)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def _id_of(line: bytes) -> str | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    item = value.get("id") if isinstance(value, dict) else None
    return item if isinstance(item, str) else None
