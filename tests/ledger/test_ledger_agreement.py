"""Skips, retractions, agreement: each rule by hand."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rayal.errors import LeaseError, SettingsError
from rayal.ledger import LabelEntry, Labeling, LabelRow, LeaseRow, Ledger, Pick, SkipEntry

Say = tuple[str, Any]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as opened:
        yield opened


def make(ledger: Ledger, **labeling: Any) -> None:
    ledger.create_project("p", "digits", {"labeling": labeling})
    picks = [Pick(item, rank, rank, None, None) for rank, item in enumerate("ab")]
    ledger.commit_selection("p", -1, picks, [], {}, stage=None, output={}, seconds=0)


def say(ledger: Ledger, who: str, value: Any, *, item: str = "a", now: float = 10) -> str:
    (result,) = ledger.label("p", who, [LabelEntry(item, value)], now=now)
    return result.status


def skip(ledger: Ledger, who: str, *, item: str = "a", now: float = 10) -> str:
    (result,) = ledger.label("p", who, [SkipEntry(item, "blurred")], now=now)
    return result.status


def held(ledger: Ledger, who: str, *, now: float = 10) -> list[str]:
    return [x.item for x in ledger.lease("p", who, 9, now=now)]


def lease_states(ledger: Ledger, item: str = "a") -> dict[str, str]:
    rows = [row for row in ledger.why("p", item) if isinstance(row, LeaseRow)]
    return {row.annotator: row.state for row in rows}


def item(ledger: Ledger, name: str = "a") -> tuple[str, int, int]:
    row = next(row for row in ledger.items_page("p", now=10) if row.item == name)
    return row.state, row.need, row.accepted


# -- settings ------------------------------------------------------------------------------------


def test_labeling_has_defaults() -> None:
    assert Labeling.of({}) == Labeling(1, "first", 3, 3, 900.0)
    assert Labeling.of({"labeling": {"labels_per_item": 4}}).max_labels == 6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels_per_item": True}, "labels_per_item is True"),
        ({"labels_per_item": 3, "max_labels": 2}, "max_labels is 2; .* from 3 on"),
        ({"agreement": "mayority"}, "did you mean 'majority'"),
        ({"agreement": 1}, "agreement is 1"),
        ({"max_skips": 0}, "max_skips is 0"),
        ({"lease_ttl": 0}, "lease_ttl is 0"),
        ({"lease_ttl": "60"}, "lease_ttl is '60'"),
        ({"lease_ttl_s": 60}, "labeling.lease_ttl_s does not exist; did you mean 'lease_ttl'"),
        ([], r"labeling is \[\]"),
    ],
)
def test_labeling_is_checked(ledger: Ledger, wrong: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ledger.create_project("p", "digits", {"labeling": wrong})
    assert ledger.projects() == []


def test_leases_last_as_the_settings_say(ledger: Ledger) -> None:
    make(ledger, lease_ttl=60)
    assert ledger.lease("p", "ann", 1, now=100)[0].expires == 160


# -- skips -----------------------------------------------------------------------------------------


def test_a_skip_ends_the_lease_and_hides_the_item_from_its_annotator(ledger: Ledger) -> None:
    make(ledger)
    (lease,) = ledger.lease("p", "ann", 1, now=0)
    (result,) = ledger.label("p", "ann", [SkipEntry("a", "dark", lease.lease)], now=1)
    assert (result.status, result.late, result.seq) == ("skipped", False, 1)
    assert lease_states(ledger) == {"ann": "skipped"}
    assert item(ledger) == ("offered", 1, 0)
    assert held(ledger, "ann") == ["b"]
    assert held(ledger, "bob") == ["a"]
    assert ledger.resolved("p") == {}
    (row,) = [r for r in ledger.why("p", "a") if isinstance(r, LabelRow)]
    assert (row.status, row.reason, row.value, row.lease) == ("skipped", "dark", None, lease.lease)
    with pytest.raises(LeaseError, match="is skipped; ask for other work"):
        ledger.extend("p", lease.lease, 10, now=2)


def test_a_skip_under_an_expired_lease_is_late(ledger: Ledger) -> None:
    make(ledger, lease_ttl=5)
    (lease,) = ledger.lease("p", "ann", 1, now=0)
    (result,) = ledger.label("p", "ann", [SkipEntry("a", lease=lease.lease)], now=9)
    assert (result.status, result.late) == ("skipped", True)


def test_a_skip_is_a_duplicate_the_second_time(ledger: Ledger) -> None:
    make(ledger)
    assert [skip(ledger, "ann"), skip(ledger, "ann")] == ["skipped", "duplicate"]
    assert ledger.labels_seq("p") == 1


def test_max_skips_takes_an_item_out_of_the_offers(ledger: Ledger) -> None:
    make(ledger, max_skips=2)
    skip(ledger, "ann")
    assert item(ledger) == ("offered", 1, 0)
    skip(ledger, "bob")
    assert item(ledger) == ("skipped", 1, 0)
    assert held(ledger, "cat") == ["b"]
    assert ledger.open_items("p") == ["b"]
    assert ledger.counts("p", now=10) == {
        "wanted": 2,
        "offered": 0,
        "leased": 1,
        "labeled": 0,
        "skipped": 1,
        "conflict": 0,
    }
    assert say(ledger, "dan", 1) == "accepted"  # work is never thrown away
    assert item(ledger) == ("labeled", 1, 1)


def test_a_lease_on_an_item_that_others_skip_lives(ledger: Ledger) -> None:
    make(ledger, max_skips=1, labels_per_item=2)
    (lease, _) = ledger.lease("p", "ann", 9, now=0)
    skip(ledger, "bob")
    assert item(ledger) == ("leased", 2, 0)
    assert ledger.extend("p", lease.lease, 1000, now=20).expires == 1020
    ledger.label("p", "ann", [LabelEntry("a", 1, lease.lease)], now=30)
    assert item(ledger) == ("skipped", 2, 1)  # bob's skip stands, one label is there
    assert ledger.resolved("p") == {"a": 1}


def test_a_label_ends_a_skip(ledger: Ledger) -> None:
    make(ledger, max_skips=1, labels_per_item=2)
    skip(ledger, "ann")
    assert item(ledger) == ("skipped", 2, 0)
    assert say(ledger, "ann", 1) == "accepted"
    assert item(ledger) == ("offered", 2, 1)
    assert [row.superseded_by for row in ledger.labels("p")] == [2, None]


def test_a_skip_after_a_label_is_rejected(ledger: Ledger) -> None:
    make(ledger)
    say(ledger, "ann", 1)
    (result,) = ledger.label("p", "ann", [SkipEntry("a")], now=11)
    assert (result.status, result.seq) == ("rejected", None)
    assert "retract the label first" in str(result.detail)
    assert ledger.resolved("p") == {"a": 1}


# -- retractions -----------------------------------------------------------------------------------


def test_a_retraction_frees_the_slot_and_asks_again(ledger: Ledger) -> None:
    make(ledger)
    say(ledger, "ann", 1)
    first = ledger.retract("p", "ann", "a", now=11)
    assert (first.status, first.seq) == ("retracted", 2)
    assert ledger.retract("p", "ann", "a", now=12) == first
    assert item(ledger) == ("offered", 1, 0)
    assert [ledger.resolved("p", n) for n in (0, 1, 2)] == [{}, {"a": 1}, {}]
    assert held(ledger, "ann") == ["a", "b"]
    assert say(ledger, "ann", 1) == "accepted"
    assert ledger.resolved("p") == {"a": 1}
    assert [row.status for row in ledger.labels("p")] == ["accepted", "retracted", "accepted"]


def test_nothing_said_is_nothing_to_retract(ledger: Ledger) -> None:
    make(ledger)
    result = ledger.retract("p", "ann", "a", now=1)
    assert (result.status, result.seq) == ("rejected", None)
    assert "has no answer of annotator 'ann'" in str(result.detail)
    assert list(ledger.events())[-1].kind == "selection"


def test_a_skip_may_be_taken_back(ledger: Ledger) -> None:
    make(ledger, max_skips=1)
    skip(ledger, "ann")
    assert held(ledger, "ann") == ["b"]
    assert ledger.retract("p", "ann", "a", now=11).status == "retracted"
    assert item(ledger) == ("offered", 1, 0)
    assert held(ledger, "ann") == ["b", "a"]  # b is held already


def test_surplus_is_not_moved_into_a_free_slot(ledger: Ledger) -> None:
    make(ledger)
    say(ledger, "ann", 1)
    assert say(ledger, "bob", 2) == "surplus"
    ledger.retract("p", "ann", "a", now=11)
    assert ledger.resolved("p") == {}
    assert item(ledger) == ("offered", 1, 0)
    assert say(ledger, "bob", 2) == "duplicate"
    assert ledger.resolved("p") == {}
    assert say(ledger, "bob", 3) == "updated"  # a new word takes the slot
    assert ledger.resolved("p") == {"a": 3}
    assert item(ledger) == ("labeled", 1, 1)


def test_the_earliest_standing_label_is_first(ledger: Ledger) -> None:
    make(ledger, labels_per_item=2)
    say(ledger, "ann", 1)
    say(ledger, "bob", 2)
    ledger.retract("p", "ann", "a", now=11)
    assert ledger.resolved("p") == {"a": 2}
    say(ledger, "cat", 3)
    say(ledger, "ann", 1)
    assert ledger.resolved("p") == {"a": 2}
    assert [row.slot for row in ledger.labels("p")] == [1, 2, None, 3, None]


def test_a_label_that_was_retracted_for_a_never_offered_item_leaves_it_unlabeled(
    ledger: Ledger,
) -> None:
    make(ledger)
    say(ledger, "ann", 1, item="new")
    assert item(ledger, "new") == ("labeled", 1, 1)
    ledger.retract("p", "ann", "new", now=11)
    assert item(ledger, "new") == ("unlabeled", 1, 0)
    assert ledger.item_states("p", ["new", "never", "a"]) == {
        "new": "unlabeled",
        "never": "unlabeled",
        "a": "offered",
    }


# -- agreement -------------------------------------------------------------------------------------


def test_majority_waits_for_all_slots(ledger: Ledger) -> None:
    make(ledger, labels_per_item=3, agreement="majority")
    say(ledger, "ann", 1)
    say(ledger, "bob", 1)
    assert ledger.resolved("p") == {}
    assert item(ledger) == ("offered", 3, 2)
    assert say(ledger, "cat", 2) == "accepted"
    assert ledger.resolved("p") == {"a": 1}
    assert item(ledger) == ("labeled", 3, 3)


def test_a_conflict_asks_one_more_annotator_up_to_max_labels(ledger: Ledger) -> None:
    make(ledger, labels_per_item=2, agreement="majority", max_labels=4)
    say(ledger, "ann", 1)
    assert say(ledger, "bob", 2) == "conflict"
    assert item(ledger) == ("conflict", 3, 2)
    assert held(ledger, "ann") == held(ledger, "bob") == ["b"]
    assert held(ledger, "cat") == ["a"]
    assert item(ledger) == ("conflict", 3, 2)
    assert held(ledger, "dan") == []
    assert say(ledger, "cat", 3) == "conflict"
    assert item(ledger) == ("conflict", 4, 3)
    assert say(ledger, "dan", 1) == "conflict"  # 2 of 4 are no majority
    assert item(ledger) == ("conflict", 4, 4)
    assert ledger.resolved("p") == {}
    assert ledger.open_items("p") == ["b"]
    assert say(ledger, "eve", 1) == "surplus"  # counted: 3 of 5
    assert ledger.resolved("p") == {"a": 1}
    assert item(ledger) == ("labeled", 4, 4)


def test_a_third_label_settles_a_conflict(ledger: Ledger) -> None:
    make(ledger, labels_per_item=2, agreement="majority")
    say(ledger, "ann", 1)
    say(ledger, "bob", 2)
    assert say(ledger, "cat", 2) == "accepted"
    assert [ledger.resolved("p", n) for n in (1, 2, 3)] == [{}, {}, {"a": 2}]
    assert item(ledger) == ("labeled", 3, 3)


def test_a_relabel_that_agrees_ends_the_request_for_more(ledger: Ledger) -> None:
    make(ledger, labels_per_item=2, agreement="all")
    say(ledger, "ann", 1)
    say(ledger, "bob", 2)
    assert held(ledger, "cat") == ["a", "b"]
    assert say(ledger, "bob", 1) == "updated"
    assert item(ledger) == ("labeled", 2, 2)
    assert lease_states(ledger) == {"cat": "revoked"}
    assert ledger.resolved("p") == {"a": 1}
    assert say(ledger, "bob", 2) == "updated"  # and starts it again
    assert item(ledger) == ("conflict", 3, 2)
    assert ledger.resolved("p") == {}
    assert ledger.resolved("p", 3) == {"a": 1}


def test_a_retraction_may_settle_a_conflict(ledger: Ledger) -> None:
    make(ledger, labels_per_item=2, agreement="all")
    say(ledger, "ann", 1)
    say(ledger, "bob", 2)
    say(ledger, "cat", 1)
    assert item(ledger) == ("conflict", 4, 3)
    assert held(ledger, "dan") == ["a", "b"]
    ledger.retract("p", "bob", "a", now=11)
    assert item(ledger) == ("labeled", 2, 2)
    assert lease_states(ledger) == {"dan": "revoked"}
    assert ledger.resolved("p") == {"a": 1}


def test_surplus_is_counted_but_not_trained_on(ledger: Ledger) -> None:
    make(ledger, agreement="majority")
    say(ledger, "ann", 1)
    assert ledger.resolved("p") == {"a": 1}
    assert say(ledger, "bob", 2) == "surplus"
    assert item(ledger) == ("conflict", 2, 1)  # 1 of 2 is no majority
    ledger.retract("p", "ann", "a", now=11)
    assert item(ledger) == ("offered", 1, 0)
    assert say(ledger, "cat", 3) == "conflict"
    assert say(ledger, "dan", 2) == "accepted"  # 2 of 3, and dan's fills a slot
    assert ledger.resolved("p") == {"a": 2}


def test_a_majority_of_surplus_alone_is_no_value(ledger: Ledger) -> None:
    make(ledger, agreement="majority", max_labels=1)
    say(ledger, "ann", 1)
    for who in ("bob", "cat", "dan"):
        assert say(ledger, who, 2) == "surplus"
    assert item(ledger) == ("conflict", 1, 1)
    assert ledger.resolved("p") == {}


def test_values_agree_as_json(ledger: Ledger) -> None:
    make(ledger, labels_per_item=2, agreement="all", max_labels=2)
    say(ledger, "ann", {"x": 1, "y": 2})
    say(ledger, "bob", {"y": 2, "x": 1})
    assert ledger.resolved("p") == {"a": {"x": 1, "y": 2}}
    say(ledger, "ann", 1, item="b")
    assert say(ledger, "bob", True, item="b") == "conflict"


def test_an_import_needs_nobody_to_agree_with_until_it_is_offered(ledger: Ledger) -> None:
    make(ledger, labels_per_item=2, agreement="majority")
    assert say(ledger, "import", 1, item="new") == "accepted"
    assert ledger.resolved("p") == {"new": 1}
    assert item(ledger, "new") == ("labeled", 2, 1)
    ledger.commit_snapshot("digits", [], {})
    ledger.begin_round("p", 0, snapshot=1, labels_seq=1, seeds={})
    picks = [Pick("new", 9, 0, None, None)]
    ledger.commit_selection("p", 0, picks, [], {}, stage="select", output={}, seconds=0)
    assert item(ledger, "new") == ("offered", 2, 1)
    assert ledger.resolved("p") == {"new": 1}  # until somebody says more of it
    assert say(ledger, "ann", 2, item="new") == "conflict"
    assert ledger.resolved("p") == {}
    assert ledger.resolved("p", 1) == {"new": 1}


def test_new_labels_are_counted_by_offered_item(ledger: Ledger) -> None:
    make(ledger, labels_per_item=2)
    say(ledger, "ann", 1)
    say(ledger, "bob", 2)
    say(ledger, "cat", 3)  # surplus
    skip(ledger, "ann", item="b")
    assert ledger.new_labels("p", 0) == 1
    assert ledger.new_labels("p", 2) == 0
    say(ledger, "bob", 3)
    assert ledger.new_labels("p", 2) == 1
    say(ledger, "ann", 1, item="import")  # which was never offered
    assert ledger.new_labels("p", 0) == 1
    assert ledger.resolved("p")["import"] == 1
    ledger.retract("p", "bob", "a")
    assert (ledger.new_labels("p", 0), ledger.new_labels("p", 2)) == (1, 0)


# -- leases ----------------------------------------------------------------------------------------


def test_an_entry_is_not_late_if_the_annotator_got_the_item_again(ledger: Ledger) -> None:
    make(ledger, lease_ttl=5)
    (old,) = ledger.lease("p", "ann", 1, now=0)
    (new,) = ledger.lease("p", "ann", 1, now=9)
    assert (old.item, new.item) == ("a", "a")
    (result,) = ledger.label("p", "ann", [LabelEntry("a", 1, old.lease)], now=10)
    assert (result.status, result.late) == ("accepted", False)
    assert ledger.labels("p")[0].lease == new.lease


def test_leases_may_be_asked_for_by_their_annotator_alone(ledger: Ledger) -> None:
    make(ledger)
    (lease,) = ledger.lease("p", "ann", 1, now=0)
    with pytest.raises(LeaseError, match="does not exist in project 'p' for annotator 'bob'"):
        ledger.extend("p", lease.lease, 10, "bob", now=1)
    with pytest.raises(LeaseError, match="does not exist"):
        ledger.give_back("p", lease.lease, "bob", now=1)
    assert ledger.extend("p", lease.lease, 10, "ann", now=1) == lease
    ledger.give_back("p", lease.lease, "ann", now=2)
    assert lease_states(ledger) == {"ann": "returned"}


def test_a_clock_that_goes_back_gives_no_lease_twice(ledger: Ledger) -> None:
    make(ledger, lease_ttl=100)
    (mine,) = ledger.lease("p", "ann", 1, now=1000)
    assert held(ledger, "bob", now=1100) == ["a", "b"]  # ann's expired
    assert held(ledger, "ann", now=500) == []
    assert ledger.states("p", now=500) == {"a": "leased", "b": "leased"}
    (result,) = ledger.label("p", "ann", [LabelEntry("a", 1, mine.lease)], now=500)
    assert (result.status, result.late) == ("accepted", True)
    assert lease_states(ledger) == {"ann": "expired", "bob": "revoked"}


def test_offers_come_in_pages(ledger: Ledger) -> None:
    make(ledger, labels_per_item=2)
    assert [(r.item, r.key, r.round, r.rank) for r in ledger.offered("p", now=0)] == [
        ("a", 0, -1, 0),
        ("b", 1, -1, 1),
    ]
    assert [r.item for r in ledger.offered("p", after=(-1, 0), now=0)] == ["b"]
    assert [r.item for r in ledger.offered("p", limit=1, now=0)] == ["a"]
    for who in ("ann", "bob"):
        ledger.lease("p", who, 1, ttl=50, now=0)
    assert ledger.ready("p", now=0) == 1
    assert [r.item for r in ledger.offered("p", now=49)] == ["b"]
    assert ledger.ready("p", now=50) == 2  # leases past their time hold nothing


def test_history_comes_in_pages(ledger: Ledger) -> None:
    make(ledger)
    for value in range(5):
        say(ledger, "ann", value)
    assert [r.seq for r in ledger.labels("p", since=1, limit=3)] == [2, 3, 4]
    assert [r.item for r in ledger.items_page("p", after="a", state="offered")] == ["b"]


def test_provenance_is_kept(ledger: Ledger) -> None:
    make(ledger)
    entry = LabelEntry("a", 1, provenance={"tool": "cli", "model_version": "r0001-abcd"})
    ledger.label("p", "ann", [entry], now=1)
    assert ledger.labels("p")[0].provenance == {"tool": "cli", "model_version": "r0001-abcd"}


# -- numbers -------------------------------------------------------------------------------------


def resolved(ledger: Ledger) -> Any:
    return ledger.resolved("p").get("a")


@pytest.mark.parametrize("wrong", [-0.1, "1", True, None, [1]])
def test_the_tolerance_is_a_finite_number(ledger: Ledger, wrong: Any) -> None:
    with pytest.raises(SettingsError, match="tolerance is"):
        make(ledger, tolerance=wrong)
    for never in (float("nan"), float("inf")):
        with pytest.raises(SettingsError, match="tolerance is"):
            Labeling(tolerance=never)


def test_the_tolerance_cannot_change(ledger: Ledger) -> None:
    make(ledger, tolerance=0.5)
    with pytest.raises(SettingsError, match=r"labeling\.tolerance .* is 0\.5 and cannot change"):
        ledger.update_project("p", {"labeling": {"tolerance": 0.25}}, version=1)


def test_numbers_agree_exactly_by_default(ledger: Ledger) -> None:
    make(ledger, labels_per_item=2, agreement="all", max_labels=4)
    assert [say(ledger, "ann", 1.5), say(ledger, "bob", 1.5000001)] == ["accepted", "conflict"]
    assert (resolved(ledger), item(ledger)) == (None, ("conflict", 3, 2))
    assert say(ledger, "bob", 1.5) == "updated"
    assert (resolved(ledger), item(ledger)) == (1.5, ("labeled", 2, 2))


def test_a_number_said_again_is_a_duplicate_and_a_near_one_replaces_it(ledger: Ledger) -> None:
    make(ledger, tolerance=1.0)
    assert say(ledger, "ann", 1.5) == "accepted"
    assert say(ledger, "ann", 1.5) == "duplicate"
    assert say(ledger, "ann", 1.75) == "updated"
    assert resolved(ledger) == 1.75


def test_first_takes_the_first_number_whatever_the_tolerance(ledger: Ledger) -> None:
    make(ledger, labels_per_item=3, agreement="first", tolerance=5.0)
    for who, value in (("ann", 9.0), ("bob", 1.0), ("cat", 2.0)):
        assert say(ledger, who, value) == "accepted"
    assert resolved(ledger) == 9.0


@pytest.mark.parametrize(
    ("rule", "tolerance", "said", "made"),
    [
        ("all", 0.5, [1.0, 1.5, 1.25], 1.25),  # the median of three
        ("all", 0.5, [1.5, 1.0], 1.0),  # the lower of two
        ("all", 0.2, [0.8, 0.6], 0.6),  # as doubles they are more than 0.2 apart
        ("all", 0.5, [1.0, 1.5, 1.75], None),  # each is near the next one, not near them all
        ("majority", 0.5, [1.0, 1.5, 9.0], 1.0),
        ("majority", 0.5, [9.0, 1.0, 1.5, 1.25], 1.25),  # 1, 1.25, 1.5: their median
        ("majority", 1.0, [0.0, 1.0, 2.0], 0.0),  # 0, 1 and 1, 2 are as large and wide: the lower
        ("majority", 1.0, [0.0, 1.0, 1.5], 1.0),  # 1, 1.5 is narrower than 0, 1
        ("majority", 0.5, [1.0, 2.0, 3.0], None),
        ("majority", 0.5, [1.0, 1.5, 8.0, 9.0], None),  # half is no majority
    ],
)
def test_numbers_within_the_tolerance_agree(
    ledger: Ledger, rule: str, tolerance: float, said: list[float], made: float | None
) -> None:
    count = len(said)
    make(ledger, labels_per_item=count, agreement=rule, tolerance=tolerance)
    told = [say(ledger, f"w{n}", value) for n, value in enumerate(said)]
    assert told[:-1] == ["accepted"] * (count - 1)
    assert told[-1] == ("accepted" if made is not None else "conflict")
    assert resolved(ledger) == made
    assert item(ledger)[0] == ("labeled" if made is not None else "conflict")


def test_a_surplus_number_is_counted_and_not_trained_on(ledger: Ledger) -> None:
    make(ledger, labels_per_item=2, agreement="majority", max_labels=2, tolerance=1.0)
    assert [say(ledger, "ann", 0.0), say(ledger, "bob", 5.0)] == ["accepted", "conflict"]
    assert [say(ledger, "cat", 6.0), say(ledger, "dan", 6.0)] == ["surplus", "surplus"]
    assert resolved(ledger) == 5.0  # 5, 6, 6 agree; of these bob's fills a slot


def test_the_order_of_numbers_does_not_matter(tmp_path: Path) -> None:
    said = {"ann": 0.0, "bob": 1.0, "cat": 2.0, "dan": 1.5}
    for number, order in enumerate(itertools.permutations(said)):
        with Ledger(tmp_path / str(number)) as ledger:
            make(ledger, labels_per_item=4, agreement="majority", tolerance=1.0)
            for who in order:
                say(ledger, who, said[who])
            assert resolved(ledger) == 1.5  # of 1, 1.5, 2


def test_labels_that_are_no_numbers_know_no_tolerance(ledger: Ledger) -> None:
    make(ledger, labels_per_item=2, agreement="all", tolerance=9.0)
    assert [say(ledger, "ann", True), say(ledger, "bob", 1)] == ["accepted", "conflict"]
    assert say(ledger, "bob", True) == "updated"
    assert resolved(ledger) is True
