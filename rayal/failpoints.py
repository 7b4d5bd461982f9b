"""Named points at which a test can end this process, as a power cut would.

``RAYAL_FAILPOINT=train.epoch:3`` sends SIGKILL to the process the third time it passes the point
``train.epoch``. With ``train.epoch:3@FILE`` only the first process of many that gets there dies: it
makes the file. Unset, a point costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

NAMES = (
    "ingest.part",
    "ingest.commit",
    "embed.write",
    "embed.commit",
    "train.epoch",
    "scan.write",
    "scan.commit",
    "select",
    "memory",
    "select.insert",
    "label.insert",
    "evaluate",
    "upgrade.backup",
    "upgrade.commit",
)
WORKERS = ("scan.write", "train.epoch", "shard.answer")  # passed by workers, where Ray runs them
_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """End the process by SIGKILL if the environment asks for it at this pass of ``name``."""
    wanted = os.environ.get("RAYAL_FAILPOINT")
    if not wanted:
        return
    point, _, count = wanted.partition(":")
    if point != name:
        return
    count, _, file = count.partition("@")
    _passed[name] += 1
    if _passed[name] == int(count or 1) and (not file or _first(file)):
        os.kill(os.getpid(), signal.SIGKILL)


def _first(file: str) -> bool:
    """Make the file; return whether it was not there."""
    try:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
