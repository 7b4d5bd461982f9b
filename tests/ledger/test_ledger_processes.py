from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import forked
import pytest

from rayal.ledger import LabelEntry, Ledger, Pick, PoolPart

pytestmark = pytest.mark.processes

LEASE = """
import sys, time
from rayal.ledger import Ledger
seen = set()
with Ledger(sys.argv[1], create=False) as ledger:
    print("ready", flush=True)
    sys.stdin.readline()
    for count in range(5, 200, 5):
        new = {x.item for x in ledger.lease("p", sys.argv[2], count)} - seen
        if not new:
            break
        seen |= new
        time.sleep(0.005)  # SQLite's lock is not fair: let the other in
print(*sorted(seen), flush=True)
"""
SELECT = """
import sys
from rayal.ledger import Ledger, Pick
with Ledger(sys.argv[1], create=False) as ledger:
    picks = [Pick(f"s{i}", i, i, None, None) for i in range(4)]
    ledger.commit_selection("p", 0, picks, [], {}, stage="select", output={}, seconds=0)
"""
LABEL = """
import sys
from rayal.ledger import LabelEntry, Ledger
with Ledger(sys.argv[1], create=False) as ledger:
    ledger.label("p", "ann", [LabelEntry(f"i{i:03}", i) for i in range(4)])
"""


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as opened:
        part = PoolPart("a", "pools/digits/a.arrow", "pool", 10, 7, 4096)
        opened.commit_snapshot("digits", [part], {})
        opened.create_project("p", "digits", {})
        opened.begin_round("p", 0, snapshot=1, labels_seq=0, seeds={})
        picks = [Pick(f"i{i:03}", i, i, None, None) for i in range(60)]
        opened.commit_selection("p", -1, picks, [], {}, stage=None, output={}, seconds=0)
        yield opened


def run(code: str, root: Path, failpoint: str) -> int:
    env = os.environ | {"RAYAL_FAILPOINT": failpoint}
    return forked.run("-c", code, root, env=env, check=False).returncode


def test_two_processes_never_lease_the_same_item(ledger: Ledger) -> None:
    children = [forked.start("-c", LEASE, ledger.root, name) for name in ("ann", "bob")]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:  # both are open: start them at once
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    ann, bob = (set(child.communicate().split()) for child in children)
    assert [child.returncode for child in children] == [0, 0]
    assert not ann & bob
    assert ann | bob == {f"i{i:03}" for i in range(60)}
    assert ann and bob


def test_a_kill_within_a_selection_leaves_nothing_of_it(ledger: Ledger) -> None:
    before = list(ledger.events())
    assert run(SELECT, ledger.root, "select.insert") == -signal.SIGKILL
    assert ledger.selection("p", 0) is None
    assert ledger.stage("p", 0, "select") is None
    assert "s0" not in ledger.states("p")
    assert list(ledger.events()) == before
    picks = [Pick("s0", 0, 0, None, None)]
    ledger.commit_selection("p", 0, picks, [], {}, stage="select", output={}, seconds=0)
    selection = ledger.selection("p", 0)
    assert selection is not None
    assert selection.picks == tuple(picks)


def test_a_kill_within_labels_leaves_nothing_of_them(ledger: Ledger) -> None:
    before = list(ledger.events())
    assert run(LABEL, ledger.root, "label.insert") == -signal.SIGKILL
    assert ledger.labels("p") == []
    assert set(ledger.states("p").values()) == {"offered"}
    assert list(ledger.events()) == before
    (again,) = ledger.label("p", "ann", [LabelEntry("i000", 0)])
    assert (again.status, again.seq) == ("accepted", 1)
