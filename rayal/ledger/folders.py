"""Folders that processes make and hold by a lock, and that go when nothing is in them."""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

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
        seconds: how long to wait for another holder.

    Raises:
        BlockingIOError: another holds it for longer.
        FileNotFoundError: it was removed again and again.
    """
    deadline = time.monotonic() + seconds
    made = False
    for _ in range(_TRIES):
        try:
            made |= _make(path)
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue  # removed between the two, or its parent was
        try:
            _lock(descriptor, deadline)
            if _is(descriptor, path):
                yield Folder(path, made)
                return
        finally:
            os.close(descriptor)
        made = False
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
