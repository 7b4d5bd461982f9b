"""Many processes at one ledger: nothing is leased or labeled twice, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import forked
import pytest
from postgres_server import PostgresServer

from rayal.ledger import Ledger, Pick

pytestmark = pytest.mark.processes

WORK = """
import sys, threading
from rayal.ledger import LabelEntry, Ledger
lines = []
def work(ledger, who):
    while leases := ledger.lease("p", who, 2):
        results = ledger.label("p", who, [LabelEntry(x.item, 1, x.lease) for x in leases])
        lines.extend(f"{who} {x.item} {r.status}" for x, r in zip(leases, results))
with Ledger(sys.argv[1], create=False) as ledger:
    print("ready", flush=True)
    sys.stdin.readline()
    threads = [threading.Thread(target=work, args=(ledger, f"{sys.argv[2]}-{n}")) for n in range(3)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print("\\n".join(lines), flush=True)
"""
NEED = 2


def contend(ledger: Ledger, processes: int, items: int) -> None:
    ledger.create_project("p", "digits", {"labeling": {"labels_per_item": NEED}})
    picks = [Pick(f"i{i}", i, i, None, None) for i in range(items)]
    ledger.commit_selection("p", -1, picks, [], {}, stage=None, output={}, seconds=0)
    children = [forked.start("-c", WORK, ledger.root, f"w{number}") for number in range(processes)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:  # all are open: start them at once
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    lines = [line.split() for child in children for line in child.communicate().splitlines()]
    assert [child.returncode for child in children] == [0] * processes
    told = [line for line in lines if line]
    assert {status for _, _, status in told} == {"accepted"}
    assert set(Counter((who, item) for who, item, _ in told).values()) == {1}
    assert Counter(item for _, item, _ in told) == {f"i{i}": NEED for i in range(items)}
    kept = Counter(row.item for row in ledger.labels("p"))
    assert kept == {f"i{i}": NEED for i in range(items)}
    assert [row.seq for row in ledger.labels("p")] == list(range(1, NEED * items + 1))
    assert ledger.counts("p")["labeled"] == items
    assert len({who for who, _, _ in told}) > 1


def test_processes_at_one_file(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        contend(ledger, 2, 20)


def test_processes_at_one_postgresql(tmp_path: Path, postgres: PostgresServer) -> None:
    with Ledger(tmp_path, database=postgres.database()) as ledger:
        contend(ledger, 2, 20)


@pytest.mark.slow
def test_many_processes_at_one_file(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        contend(ledger, 8, 300)


@pytest.mark.slow
def test_many_processes_at_one_postgresql(tmp_path: Path, postgres: PostgresServer) -> None:
    with Ledger(tmp_path, database=postgres.database()) as ledger:
        contend(ledger, 8, 300)
