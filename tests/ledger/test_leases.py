from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayal.errors import LedgerError, SettingsError
from rayal.ledger import LabelEntry, LeaseRow, Ledger, Pick, PoolPart


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as opened:
        part = PoolPart("a", "pools/digits/a.arrow", "pool", 10, 7, 4096)
        opened.commit_snapshot("digits", [part], {})
        for project, need in (("one", 1), ("two", 2)):
            opened.create_project(project, "digits", {"labeling": {"labels_per_item": need}})
            offer(opened, project, "c", "a", "b")
        yield opened


def offer(ledger: Ledger, project: str, *items: str) -> None:
    picks = [Pick(item, rank, rank, rank / 4, None) for rank, item in enumerate(items)]
    ledger.commit_selection(project, -1, picks, [], {}, stage=None, output={}, seconds=0)


def held(ledger: Ledger, project: str, annotator: str, count: int = 9, *, now: float) -> list[str]:
    return [x.item for x in ledger.lease(project, annotator, count, ttl=100, now=now)]


def lease_states(ledger: Ledger, project: str, item: str) -> list[str]:
    return [row.state for row in ledger.why(project, item) if isinstance(row, LeaseRow)]


def test_work_comes_by_round_and_rank(ledger: Ledger) -> None:
    ledger.begin_round("one", 0, snapshot=1, labels_seq=0, seeds={})
    first = [Pick("z", 1, 1, None, None), Pick("y", 2, 0, None, None)]
    ledger.commit_selection("one", 0, first, [], {}, stage="select", output={}, seconds=0)
    leases = ledger.lease("one", "ann", 9, ttl=60, now=1000)
    assert [x.item for x in leases] == ["c", "a", "b", "y", "z"]
    assert [(x.round, x.rank, x.score) for x in leases][1:4] == [
        (-1, 1, 0.25),
        (-1, 2, 0.5),
        (0, 0, None),
    ]
    assert {(x.annotator, x.expires) for x in leases} == {("ann", 1060.0)}
    assert len({x.lease for x in leases}) == 5


def test_open_leases_come_back_first_and_unchanged(ledger: Ledger) -> None:
    first = ledger.lease("one", "ann", 1, ttl=100, now=0)
    again = ledger.lease("one", "ann", 2, ttl=500, now=50)
    assert again[:1] == first
    assert [x.item for x in again] == ["c", "a"]
    assert ledger.lease("one", "ann", 1, now=60) == first


def test_no_item_goes_to_two_annotators_unless_two_are_wanted(ledger: Ledger) -> None:
    assert held(ledger, "one", "ann", 2, now=0) == ["c", "a"]
    assert held(ledger, "one", "bob", now=0) == ["b"]
    assert held(ledger, "one", "cat", now=0) == []
    assert held(ledger, "two", "ann", 2, now=0) == ["c", "a"]
    assert held(ledger, "two", "bob", now=0) == ["c", "a", "b"]
    assert held(ledger, "two", "cat", now=0) == ["b"]


def test_a_labeled_item_does_not_come_back_to_its_annotator(ledger: Ledger) -> None:
    ledger.label("two", "ann", [LabelEntry("c", 1)], now=0)
    assert held(ledger, "two", "ann", now=0) == ["a", "b"]
    assert held(ledger, "two", "bob", now=0) == ["c", "a", "b"]
    assert held(ledger, "two", "cat", now=0) == []


def test_an_expired_lease_frees_its_item(ledger: Ledger) -> None:
    assert held(ledger, "one", "ann", 1, now=0) == ["c"]
    assert held(ledger, "one", "bob", 1, now=99.9) == ["a"]
    assert ledger.states("one", now=99.9) == {"a": "leased", "b": "offered", "c": "leased"}
    assert ledger.states("one", now=100) == {"a": "leased", "b": "offered", "c": "offered"}
    assert held(ledger, "one", "cat", 1, now=100) == ["c"]
    assert lease_states(ledger, "one", "c") == ["expired", "active"]


def test_the_ledger_has_a_clock(ledger: Ledger) -> None:
    before = ledger.now()
    (lease,) = ledger.lease("one", "ann", 1)
    assert before + 900 <= lease.expires <= ledger.now() + 900
    assert ledger.states("one")["c"] == "leased"


def test_extend_lengthens_and_never_shortens(ledger: Ledger) -> None:
    (lease,) = ledger.lease("one", "ann", 1, ttl=100, now=0)
    longer = ledger.extend("one", lease.lease, 200, now=50)
    assert longer.expires == 250
    assert ledger.extend("one", lease.lease, 10, now=60) == longer


def test_an_expired_lease_lives_again_while_its_slot_is_free(ledger: Ledger) -> None:
    (lease,) = ledger.lease("one", "ann", 1, ttl=100, now=0)
    held(ledger, "one", "bob", 0, now=150)
    assert lease_states(ledger, "one", "c") == ["expired"]
    assert ledger.extend("one", lease.lease, 100, now=200).expires == 300
    assert held(ledger, "one", "bob", now=250) == ["a", "b"]
    held(ledger, "one", "cat", now=300)
    with pytest.raises(LedgerError, match="of item 'c' is expired, and its slot is taken"):
        ledger.extend("one", lease.lease, 100, now=310)


def test_an_old_lease_does_not_give_an_item_twice(ledger: Ledger) -> None:
    old = ledger.lease("two", "ann", 1, ttl=100, now=0)[0]
    new = ledger.lease("two", "ann", 1, ttl=100, now=200)[0]
    assert old.item == new.item
    with pytest.raises(LedgerError, match="slot is taken"):
        ledger.extend("two", old.lease, 100, now=210)
    ledger.label("two", "ann", [LabelEntry("c", 1, new.lease)], now=220)
    with pytest.raises(LedgerError, match="slot is taken"):
        ledger.extend("two", old.lease, 100, now=230)


def test_a_lease_that_is_over_is_not_extended(ledger: Ledger) -> None:
    first, second = ledger.lease("one", "ann", 2, now=0)
    ledger.give_back("one", first.lease, now=1)
    ledger.label("one", "ann", [LabelEntry(second.item, 1, second.lease)], now=1)
    with pytest.raises(LedgerError, match="is returned; ask for other work"):
        ledger.extend("one", first.lease, 10, now=2)
    with pytest.raises(LedgerError, match="is labeled; ask for other work"):
        ledger.extend("one", second.lease, 10, now=2)


def test_give_back_frees_the_item_and_may_be_repeated(ledger: Ledger) -> None:
    (lease,) = ledger.lease("one", "ann", 1, now=0)
    ledger.give_back("one", lease.lease, now=1)
    ledger.give_back("one", lease.lease, now=2)
    assert lease_states(ledger, "one", "c") == ["returned"]
    assert held(ledger, "one", "bob", 1, now=3) == ["c"]
    ledger.give_back("one", lease.lease, now=4)
    assert ledger.states("one", now=4)["c"] == "leased"


def test_leases_belong_to_their_project(ledger: Ledger) -> None:
    (lease,) = ledger.lease("one", "ann", 1, now=0)
    with pytest.raises(LedgerError, match="does not exist in project 'two'"):
        ledger.extend("two", lease.lease, 10, now=1)
    with pytest.raises(LedgerError, match="lease 'none' does not exist"):
        ledger.give_back("one", "none", now=1)


def test_count_and_ttl_are_checked(ledger: Ledger) -> None:
    assert ledger.lease("one", "ann", 0) == []
    with pytest.raises(SettingsError, match="count is -1"):
        ledger.lease("one", "ann", -1)
    for ttl in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(SettingsError, match="ttl is"):
            ledger.lease("one", "ann", 1, ttl=ttl)


def test_asking_for_what_is_held_tells_nothing(ledger: Ledger) -> None:
    ledger.lease("one", "ann", 1, now=0)
    before = list(ledger.events())
    ledger.lease("one", "ann", 1, now=1)
    assert list(ledger.events()) == before
