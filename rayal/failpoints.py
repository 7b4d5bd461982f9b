"""Named points at which a test can end this process, as a power cut would, or let it wait.

``RAYAL_FAILPOINT=train.epoch:3`` sends SIGKILL to the process the third time it passes the point
``train.epoch``. With ``train.epoch:3@FILE`` only the first process of many that gets there dies: it
makes the file. ``RAYAL_WAITPOINT=train.epoch:3@FILE`` lets the process wait there until somebody
makes the file, so that what two processes do in turn is certain; ``FILE.here`` tells that it waits.
Unset, a point costs two dictionary look-ups.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

NAMES = (
    "ingest.begin",
    "ingest.part",
    "ingest.commit",
    "embed.write",
    "embed.commit",
    "train.begin",
    "train.epoch",
    "scan.write",
    "scan.commit",
    "neighbors.commit",
    "select",
    "memory",
    "select.insert",
    "label.insert",
    "evaluate",
    "upgrade.backup",
    "upgrade.commit",
)
WORKERS = ("scan.write", "train.epoch", "shard.answer")  # passed by workers, where Ray runs them
WAIT = 120.0  # seconds after which nobody will make the file that a process waits for
_passed: Counter[tuple[str, str]] = Counter()


def failpoint(name: str) -> None:
    """End this process, or let it wait, if the environment asks for it at this pass of ``name``."""
    file = _asked("RAYAL_FAILPOINT", name)
    if file is not None and (not file or _first(file)):
        os.kill(os.getpid(), signal.SIGKILL)
    file = _asked("RAYAL_WAITPOINT", name)
    if file is not None:
        _wait(file)


def _asked(variable: str, name: str) -> str | None:
    """Return the file that a variable names, "" for none, if it means this pass; else None."""
    wanted = os.environ.get(variable)
    if not wanted:
        return None
    point, _, count = wanted.partition(":")
    if point != name:
        return None
    count, _, file = count.partition("@")
    _passed[variable, name] += 1
    return file if _passed[variable, name] == int(count or 1) else None


def _wait(file: str) -> None:
    """Tell that this process waits, and wait for a file."""
    _first(f"{file}.here")
    deadline = time.monotonic() + WAIT
    while not os.path.exists(file):
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody made {file} for {WAIT:g} s")
        time.sleep(0.005)


def _first(file: str) -> bool:
    """Make the file; return whether it was not there."""
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
