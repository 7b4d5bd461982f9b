from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayal.errors import LedgerError
from rayal.ledger import LabelEntry, LabelResult, LeaseRow, Ledger, Pick


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as opened:
        for project, need in (("one", 1), ("two", 2), ("three", 3)):
            opened.create_project(project, "digits", {"labeling": {"labels_per_item": need}})
            picks = [Pick(item, rank, rank, None, None) for rank, item in enumerate("abc")]
            opened.commit_selection(project, -1, picks, [], {}, stage=None, output={}, seconds=0)
        yield opened


def say(
    ledger: Ledger,
    project: str,
    annotator: str,
    answer: tuple[str, Any],
    *,
    lease: str | None = None,
    now: float = 10,
) -> tuple[str, bool, int | None]:
    (result,) = ledger.label(project, annotator, [LabelEntry(*answer, lease)], now=now)
    assert result.item == answer[0]
    return result.status, result.late, result.seq


def states(ledger: Ledger, project: str, item: str) -> dict[str, str]:
    story = ledger.why(project, item)
    return {row.annotator: row.state for row in story if isinstance(row, LeaseRow)}


def test_a_leased_label_is_accepted_once(ledger: Ledger) -> None:
    (lease,) = ledger.lease("one", "ann", 1, now=0)
    assert say(ledger, "one", "ann", ("a", "cat"), lease=lease.lease) == ("accepted", False, 1)
    assert say(ledger, "one", "ann", ("a", "cat"), lease=lease.lease) == ("duplicate", False, 1)
    assert ledger.resolved("one") == {"a": "cat"}
    assert ledger.states("one", now=10)["a"] == "labeled"
    (row,) = ledger.labels("one")
    assert (row.seq, row.lease, row.slot, row.time, row.superseded_by) == (
        1,
        lease.lease,
        1,
        10,
        None,
    )


def test_another_annotator_is_surplus(ledger: Ledger) -> None:
    say(ledger, "one", "ann", ("a", "cat"))
    assert say(ledger, "one", "bob", ("a", "dog")) == ("surplus", False, 2)
    assert say(ledger, "one", "bob", ("a", "dog")) == ("duplicate", False, 2)
    assert say(ledger, "one", "bob", ("a", "cow")) == ("updated", False, 3)
    assert ledger.resolved("one") == {"a": "cat"}
    assert [(r.status, r.slot, r.superseded_by) for r in ledger.labels("one")] == [
        ("accepted", 1, None),
        ("surplus", None, 3),
        ("updated", None, None),
    ]


def test_a_relabel_supersedes_and_keeps_the_slot(ledger: Ledger) -> None:
    say(ledger, "one", "ann", ("a", "cat"))
    assert say(ledger, "one", "ann", ("a", "dog")) == ("updated", False, 2)
    assert say(ledger, "one", "ann", ("a", "cat")) == ("updated", False, 3)
    assert say(ledger, "one", "bob", ("a", "cow")) == ("surplus", False, 4)
    assert [r.superseded_by for r in ledger.labels("one")] == [2, 3, None, None]


def test_resolved_is_the_history_as_it_stood(ledger: Ledger) -> None:
    for item, value in (("b", 1), ("a", 2), ("b", 3)):
        say(ledger, "one", "ann", (item, value))
    assert [ledger.resolved("one", up_to) for up_to in range(4)] == [
        {},
        {"b": 1},
        {"a": 2, "b": 1},
        {"a": 2, "b": 3},
    ]
    assert list(ledger.resolved("one")) == ["a", "b"]
    assert ledger.labels_seq("one") == 3
    assert ledger.labels_seq("two") == 0


def test_with_several_annotators_the_first_slot_counts(ledger: Ledger) -> None:
    say(ledger, "two", "ann", ("a", "cat"))
    say(ledger, "two", "bob", ("a", "dog"))
    assert ledger.resolved("two") == {"a": "cat"}
    say(ledger, "two", "ann", ("a", "cow"))
    assert ledger.resolved("two") == {"a": "cow"}
    assert ledger.resolved("two", 2) == {"a": "cat"}


def test_items_that_were_never_offered_take_labels(ledger: Ledger) -> None:
    assert say(ledger, "two", "import", ("new", 1)) == ("accepted", False, 1)
    assert ledger.states("two", now=10)["new"] == "labeled"
    assert ledger.resolved("two") == {"new": 1}
    assert [x.item for x in ledger.lease("two", "ann", 9, now=0)] == ["a", "b", "c"]


def test_a_late_label_of_an_open_item_is_accepted(ledger: Ledger) -> None:
    (mine,) = ledger.lease("one", "ann", 1, ttl=100, now=0)
    (theirs,) = ledger.lease("one", "bob", 1, ttl=100, now=150)
    assert mine.item == theirs.item == "a"
    assert say(ledger, "one", "ann", ("a", 1), lease=mine.lease, now=160) == ("accepted", True, 1)
    assert states(ledger, "one", "a") == {"ann": "expired", "bob": "revoked"}
    with pytest.raises(LedgerError, match="is revoked"):
        ledger.extend("one", theirs.lease, 10, now=165)
    assert say(ledger, "one", "bob", ("a", 2), lease=theirs.lease, now=170) == ("surplus", False, 2)
    assert ledger.resolved("one") == {"a": 1}


def test_a_late_label_of_a_full_item_is_kept_as_surplus(ledger: Ledger) -> None:
    (mine,) = ledger.lease("one", "ann", 1, ttl=100, now=0)
    say(ledger, "one", "bob", ("a", 2), now=150)
    assert say(ledger, "one", "ann", ("a", 1), lease=mine.lease, now=160) == ("surplus", True, 2)
    assert [row.late for row in ledger.labels("one")] == [False, True]


def test_the_last_slot_revokes_every_open_lease(ledger: Ledger) -> None:
    ledger.lease("two", "ann", 1, now=0)
    say(ledger, "two", "bob", ("a", 1))
    assert states(ledger, "two", "a") == {"ann": "active"}
    say(ledger, "two", "cat", ("a", 1))
    assert states(ledger, "two", "a") == {"ann": "revoked"}


def test_a_slot_filled_from_outside_revokes_the_newest_lease(ledger: Ledger) -> None:
    for moment, annotator in enumerate(("ann", "bob", "cat")):
        ledger.lease("three", annotator, 1, now=moment)
    say(ledger, "three", "eve", ("a", 1))
    assert states(ledger, "three", "a") == {"ann": "active", "bob": "active", "cat": "revoked"}


def test_a_label_without_lease_ends_the_annotators_own(ledger: Ledger) -> None:
    (lease,) = ledger.lease("two", "ann", 1, now=0)
    assert say(ledger, "two", "ann", ("a", 1)) == ("accepted", False, 1)
    assert states(ledger, "two", "a") == {"ann": "labeled"}
    assert ledger.labels("two")[0].lease == lease.lease
    assert [x.item for x in ledger.lease("two", "ann", 1, now=20)] == ["b"]


def test_one_batch_is_taken_in_order(ledger: Ledger) -> None:
    entries = [LabelEntry(i, v) for i, v in (("a", 1), ("n", 1), ("a", 1), ("a", 2), ("a", 3))]
    assert ledger.label("one", "ann", entries) == [
        LabelResult("a", "accepted", False, 1),
        LabelResult("n", "accepted", False, 2),
        LabelResult("a", "duplicate", False, 1),
        LabelResult("a", "updated", False, 3),
        LabelResult("a", "updated", False, 4),
    ]
    assert [row.superseded_by for row in ledger.labels("one")] == [3, None, 4, None]
    assert ledger.resolved("one") == {"a": 3, "n": 1}
    assert ledger.label("one", "ann", []) == []


def test_a_large_batch_is_taken(ledger: Ledger) -> None:
    entries = [LabelEntry(f"i{i:04}", i) for i in range(1300)]
    results = ledger.label("one", "ann", entries)
    assert [r.seq for r in results] == list(range(1, 1301))
    assert {r.status for r in ledger.label("one", "ann", entries)} == {"duplicate"}


@pytest.mark.parametrize("value", [1.0, True, None, "ü", [1, {"b": 2.5, "a": None}], 10**20])
def test_values_come_back_as_they_were(ledger: Ledger, value: Any) -> None:
    say(ledger, "one", "ann", ("a", value))
    found = ledger.resolved("one")["a"]
    assert (found, type(found)) == (value, type(value))


def test_one_and_true_are_two_labels(ledger: Ledger) -> None:
    assert [say(ledger, "one", "ann", ("a", v))[0] for v in (1, True, 1.0)] == [
        "accepted",
        "updated",
        "updated",
    ]


def test_a_wrong_entry_is_rejected_alone(ledger: Ledger) -> None:
    mine, other = ledger.lease("one", "ann", 2, now=0)
    entries = [
        LabelEntry("a", 2, other.lease),
        LabelEntry("a", 2, "none\0"),
        LabelEntry("a", float("nan")),
        LabelEntry("a\0", 1),
        LabelEntry("a", 1, mine.lease),
    ]
    results = ledger.label("one", "ann", entries, now=1)
    assert [r.status for r in results] == ["rejected"] * 4 + ["accepted"]
    details = ["is not a lease of item 'a' by annotator 'ann'"] * 2 + ["as JSON", "holds a NUL"]
    assert all(part in str(r.detail) for part, r in zip(details, results, strict=False))
    assert [(r.seq, r.late) for r in results] == [(None, False)] * 4 + [(1, False)]
    (result,) = ledger.label("one", "bob", entries[:1], now=2)
    assert result.status == "rejected" and "by annotator 'bob'" in str(result.detail)
    assert [row.value for row in ledger.labels("one")] == [1]
    assert states(ledger, "one", "a") == {"ann": "labeled"}
