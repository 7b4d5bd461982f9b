"""A ledger is taken away by who has made all of it, and by nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rayal.ledger import Ledger, PoolPart
from rayal.ledger.location import held

PART = PoolPart("a", "pools/digits/a.arrow", "pool", 10, 7, 4096)
OPEN = """
import sys
from rayal.ledger import Ledger
with Ledger(sys.argv[1]) as ledger:
    print("ready", flush=True)
    sys.stdin.readline()
    print(ledger.pools(), flush=True)
"""


def withdraw(ledger: Ledger) -> bool:
    with ledger.withdrawn() as gone:
        assert (ledger.root / "ledger.sqlite").exists() is not gone
        return gone


def test_a_ledger_of_ones_own_goes_with_all_its_files(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.commit_snapshot("digits", [PART], {})
    assert withdraw(ledger) and not list(tmp_path.iterdir())
    with Ledger(tmp_path) as again:  # who comes later finds nothing
        assert again.pools() == []


def test_events_of_another_keep_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.commit_snapshot("digits", [PART], {})
    with Ledger(tmp_path) as other:
        other.create_project("p", "digits", {})
    assert not withdraw(ledger)
    with Ledger(tmp_path, create=False) as left:
        assert left.projects() == ["p"]


def test_another_thread_that_has_it_open_keeps_it(tmp_path: Path) -> None:
    with Ledger(tmp_path) as other:
        assert not withdraw(Ledger(tmp_path))
        other.commit_snapshot("digits", [PART], {})
    assert withdraw(Ledger(tmp_path)) is False  # and what it has written since


@pytest.mark.processes
def test_another_process_that_has_it_open_keeps_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.commit_snapshot("digits", [PART], {})
    with subprocess.Popen(
        [sys.executable, "-c", OPEN, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == "ready\n"
        assert not withdraw(ledger)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "['digits']\n"
    assert child.returncode == 0


def test_who_waits_for_a_folder_that_goes_makes_it_anew(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    made: list[tuple[bool, bool]] = []

    def wait() -> None:
        with held(folder) as second:
            made.append((second.made, folder.exists()))

    with held(folder) as first:
        assert first.made
        inode = os.stat(folder).st_ino
        waiting = threading.Thread(target=wait)
        waiting.start()
        while waiting.is_alive() and not _waits(inode):
            pass
        assert first.remove_empty()
    waiting.join()
    assert made == [(True, True)]


def _waits(inode: int) -> bool:
    """Return whether a lock of a file is being waited for."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and f":{inode} " in line for line in lines)


def test_a_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    with held(tmp_path / "folder") as own:
        (own.path / "file").touch()
        assert not own.remove_empty() and own.path.exists()
    with held(tmp_path / "folder") as again:
        assert not again.made
        with pytest.raises(BlockingIOError), held(tmp_path / "folder", 0.0):
            pass
