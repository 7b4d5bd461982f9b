from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rayal.errors import LedgerError, ScoreError
from rayal.ledger import Appearance, LabelEntry, LabelRow, LeaseRow, Ledger, Pick, PoolPart

BIG = 2**64 - 1


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as opened:
        part = PoolPart("a", "pools/digits/a.arrow", "pool", 10, 7, 4096)
        opened.commit_snapshot("digits", [part], {})
        opened.create_project("p", "digits", {})
        opened.begin_round("p", 0, snapshot=1, labels_seq=0, seeds={})
        yield opened


def pick(
    item: str,
    rank: int,
    *,
    key: int | None = None,
    score: float | None = 0.1,
    probability: float | None = None,
) -> Pick:
    return Pick(item, BIG - rank if key is None else key, rank, score, probability)


def initial(ledger: Ledger, *items: str) -> None:
    picks = [pick(item, rank) for rank, item in enumerate(items)]
    ledger.commit_selection("p", -1, picks, [], {"by": 1}, stage=None, output={}, seconds=0)


def select(ledger: Ledger, picks: list[Pick], others: list[Pick] | None = None) -> None:
    ledger.commit_selection(
        "p", 0, picks, others or [], {"by": 2}, stage="select", output={"n": 1}, seconds=1.5
    )


def test_a_selection_comes_back_by_rank(ledger: Ledger) -> None:
    assert ledger.selection("p", 0) is None
    picks = [pick("b", 1, score=None), pick("a", 0, score=1 / 3, probability=0.25)]
    others = [pick("d", 1), pick("c", 0, key=2**63)]
    select(ledger, picks, others)
    found = ledger.selection("p", 0)
    assert found is not None
    assert found.picks == (picks[1], picks[0])
    assert found.runners_up == (others[1], others[0])
    assert found.provenance == {"by": 2}
    stage = ledger.stage("p", 0, "select")
    assert stage is not None
    assert (stage.output, stage.seconds) == ({"n": 1}, 1.5)


def test_picks_alone_are_offered(ledger: Ledger) -> None:
    select(ledger, [pick("b", 0), pick("a", 1)], [pick("c", 0)])
    assert ledger.states("p") == {"a": "offered", "b": "offered"}


def test_a_selection_is_one_event(ledger: Ledger) -> None:
    before = len(list(ledger.events()))
    select(ledger, [pick("a", 0)])
    (event,) = list(ledger.events())[before:]
    assert (event.kind, event.project) == ("selection", "p")
    assert [entry[1] for entry in event.payload] == ["selections", "picks", "items", "stages"]


def test_the_initial_choice_has_no_stage(ledger: Ledger) -> None:
    initial(ledger, "x")
    assert ledger.stages("p") == []
    with pytest.raises(LedgerError, match="selection of round 0 must finish a stage"):
        ledger.commit_selection("p", 0, [], [], {}, stage=None, output={}, seconds=0)
    with pytest.raises(LedgerError, match=r"output \['n'\] has no stage"):
        ledger.commit_selection("p", -1, [], [], {}, stage=None, output={"n": 1}, seconds=0)


def test_a_round_selects_once(ledger: Ledger) -> None:
    select(ledger, [pick("a", 0)])
    with pytest.raises(LedgerError, match="round 0 of project 'p' has a selection already"):
        select(ledger, [pick("b", 0)])
    assert ledger.states("p") == {"a": "offered"}


def test_a_finished_stage_undoes_the_selection(ledger: Ledger) -> None:
    ledger.finish_stage("p", 0, "select", {}, seconds=1)
    with pytest.raises(LedgerError, match="finished already"):
        select(ledger, [pick("a", 0)])
    assert ledger.selection("p", 0) is None
    assert ledger.states("p") == {}


@pytest.mark.parametrize("field", ["score", "probability"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_are_numbers(ledger: Ledger, field: str, value: float) -> None:
    odd: Any = {field: value}
    with pytest.raises(ScoreError, match=f"{field} of item 'odd' is {value}"):
        select(ledger, [pick("a", 0), replace(pick("odd", 1), **odd)])


def test_items_and_ranks_stand_once(ledger: Ledger) -> None:
    for picks, others in (
        ([pick("a", 0), pick("a", 1)], []),
        ([pick("a", 0)], [pick("a", 0)]),
        ([pick("a", 0), pick("b", 0)], []),
    ):
        with pytest.raises(LedgerError, match="stands twice in the selection"):
            select(ledger, picks, others)


def test_an_offered_item_is_not_offered_again(ledger: Ledger) -> None:
    initial(ledger, "a")
    with pytest.raises(LedgerError, match="item 'a' was offered in round -1 already"):
        select(ledger, [pick("b", 0), pick("a", 1)])
    assert ledger.states("p") == {"a": "offered"}


def test_a_pick_that_was_labeled_meanwhile_keeps_its_label(ledger: Ledger) -> None:
    ledger.label("p", "import", [LabelEntry("a", "cat")])
    select(ledger, [pick("a", 0), pick("b", 1)])
    assert ledger.states("p") == {"a": "labeled", "b": "offered"}
    assert [lease.item for lease in ledger.lease("p", "ann", 5)] == ["b"]
    assert ledger.resolved("p") == {"a": "cat"}


def test_a_pick_with_a_free_slot_is_handed_out(ledger: Ledger) -> None:
    ledger.create_project("two", "digits", {"labeling": {"labels_per_item": 2}})
    ledger.label("two", "import", [LabelEntry("a", "cat")])
    picks = [pick("b", 0), pick("a", 1, score=0.5)]
    ledger.commit_selection("two", -1, picks, [], {}, stage=None, output={}, seconds=0)
    assert ledger.states("two") == {"a": "offered", "b": "offered"}
    found = ledger.lease("two", "ann", 5)
    assert [(x.item, x.rank, x.score) for x in found] == [("b", 0, 0.1), ("a", 1, 0.5)]
    assert [x.item for x in ledger.lease("two", "bob", 5)] == ["b"]


def test_why_tells_appearances_then_work_in_order(ledger: Ledger) -> None:
    ledger.commit_selection(
        "p", -1, [pick("x", 0)], [pick("a", 0)], {"by": 1}, stage=None, output={}, seconds=0
    )
    select(ledger, [pick("a", 3, score=0.75)])
    first = ledger.lease("p", "ann", 5, ttl=10, now=100)[1]
    second = ledger.lease("p", "bob", 5, ttl=10, now=200)[1]
    ledger.label("p", "bob", [LabelEntry("a", 1, second.lease)], now=205)
    ledger.label("p", "ann", [LabelEntry("a", 2, first.lease)], now=300)
    story = ledger.why("p", "a")
    assert story[:2] == [
        Appearance("p", -1, "a", BIG, 0, 0.1, None, False, {"by": 1}),
        Appearance("p", 0, "a", BIG - 3, 3, 0.75, None, True, {"by": 2}),
    ]
    assert [type(row) for row in story[2:]] == [LeaseRow, LeaseRow, LabelRow, LabelRow]
    assert [r.state for r in story if isinstance(r, LeaseRow)] == ["expired", "labeled"]
    assert [r.status for r in story if isinstance(r, LabelRow)] == ["accepted", "surplus"]
    assert ledger.why("p", "never seen") == []
