from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayal.errors import LedgerError, UnknownNameError
from rayal.ledger import ColumnsPart, LabelEntry, Ledger, PoolPart

POOL_FILE = "pools/digits/a.arrow"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as opened:
        opened.commit_snapshot("digits", [PoolPart("a", POOL_FILE, "pool", 10, 7, 4096)], {})
        for project in ("p", "q"):
            opened.create_project(project, "digits", {})
            opened.begin_round(project, 0, snapshot=1, labels_seq=0, seeds={"model": 1})
        yield opened


def checkpoint(ledger: Ledger, epoch: int, file: str, *, final: bool = False) -> None:
    ledger.commit_checkpoint("p", 0, model="m", member=2, epoch=epoch, file=file, final=final)


def columns(part: str = "a", *, file: str = "x.arrow", key_sum: int = 2**63) -> ColumnsPart:
    return ColumnsPart("hash", part, file, 10, key_sum)


def test_a_begun_round_comes_back_unchanged(ledger: Ledger) -> None:
    ledger.label("p", "ann", [LabelEntry("i", 1)])
    first = ledger.begin_round("p", 1, snapshot=1, labels_seq=1, seeds={"model": 2})
    again = ledger.begin_round("p", 1, snapshot=9, labels_seq=9, seeds={"model": 9})
    assert first == again
    assert (first.round, first.snapshot, first.labels_seq, first.seeds) == (1, 1, 1, {"model": 2})
    assert [r.round for r in ledger.rounds("p")] == [0, 1]
    assert [r.round for r in ledger.rounds("q")] == [0]


def test_a_round_rests_on_what_exists(ledger: Ledger) -> None:
    with pytest.raises(UnknownNameError, match="no snapshot 2"):
        ledger.begin_round("p", 1, snapshot=2, labels_seq=0, seeds={})
    with pytest.raises(LedgerError, match="labels_seq 1 of round 1 is not within 0 to 0"):
        ledger.begin_round("p", 1, snapshot=1, labels_seq=1, seeds={})


def test_stages_finish_once(ledger: Ledger) -> None:
    assert ledger.stage("p", 0, "train") is None
    ledger.finish_stage("p", 0, "train", {"loss": 0.1}, seconds=2.5)
    row = ledger.stage("p", 0, "train")
    assert row is not None
    assert (row.output, row.seconds) == ({"loss": 0.1}, 2.5)
    with pytest.raises(LedgerError, match=r"stage 'train' of round 0.*finished already"):
        ledger.finish_stage("p", 0, "train", {}, seconds=1)
    assert ledger.stage("p", 0, "train") == row
    assert ledger.stage("q", 0, "train") is None


def test_stages_stand_in_the_order_of_a_round(ledger: Ledger) -> None:
    ledger.begin_round("p", 1, snapshot=1, labels_seq=0, seeds={})
    for round, stage in ((1, "prepare"), (0, "train"), (0, "evaluate"), (0, "prepare")):
        ledger.finish_stage("p", round, stage, {}, seconds=0)
    assert [(s.round, s.stage) for s in ledger.stages("p")] == [
        (0, "prepare"),
        (0, "train"),
        (0, "evaluate"),
        (1, "prepare"),
    ]


def test_stages_need_a_name_and_a_round(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="stage 'sleep' does not exist; stages: prepare, embed"):
        ledger.finish_stage("p", 0, "sleep", {}, seconds=0)
    with pytest.raises(LedgerError, match=r"round 3 of project 'p' was not begun; begun: \[0\]"):
        ledger.finish_stage("p", 3, "train", {}, seconds=0)
    with pytest.raises(LedgerError, match=r"output of stage 'train'.*JSON"):
        ledger.finish_stage("p", 0, "train", {"loss": float("nan")}, seconds=0)


def test_the_latest_epoch_counts(ledger: Ledger) -> None:
    assert ledger.checkpoint("m", 2) is None
    checkpoint(ledger, 9, "e9")
    checkpoint(ledger, 10, "e10", final=True)
    checkpoint(ledger, 2, "e2")
    latest = ledger.checkpoint("m", 2)
    assert latest is not None
    assert (latest.epoch, latest.file, latest.final) == (10, "e10", True)
    assert ledger.checkpoint("m", 1) is None


def test_the_first_file_of_an_epoch_stands_unless_a_final_one_comes(ledger: Ledger) -> None:
    checkpoint(ledger, 1, "first")
    ledger.commit_checkpoint("q", 0, model="m", member=2, epoch=1, file="second", final=False)
    assert ledger.files() == {POOL_FILE, "first"}
    checkpoint(ledger, 1, "final", final=True)
    checkpoint(ledger, 1, "late", final=False)
    checkpoint(ledger, 1, "late", final=True)
    assert ledger.files() == {POOL_FILE, "final"}


def test_what_comes_behind_the_furthest_epoch_does_not_count(ledger: Ledger) -> None:
    values = {"model": "m", "member": 2}

    def commit(epoch: int, file: str, final: bool = False) -> tuple[int, str, bool]:
        row = ledger.commit_checkpoint("q", 0, epoch=epoch, file=file, final=final, **values)  # type: ignore[arg-type]
        return row.epoch, row.file, row.final

    assert commit(2, "e2") == (2, "e2", False)
    assert commit(1, "late") == commit(2, "again") == (2, "e2", False)
    assert commit(3, "e3") == (3, "e3", False)
    assert [row.epoch for row in ledger.checkpoints("m", 2)] == [3, 2]
    assert commit(4, "end", final=True) == (4, "end", True)
    assert commit(5, "beyond") == commit(4, "twice", final=True) == (4, "end", True)
    assert ledger.files() == {POOL_FILE, "e2", "e3", "end"}


def test_columns_come_back_by_part(ledger: Ledger) -> None:
    ledger.commit_columns("p", 0, columns("b", file="b.arrow", key_sum=2**64 - 1))
    first = ledger.commit_columns("p", 0, columns("a"))
    second = ledger.commit_columns("q", 0, columns("a", file="other.arrow"))
    assert first == second == "x.arrow"
    found = ledger.columns("hash")
    assert list(found) == ["a", "b"]
    assert found["a"] == columns("a")
    assert found["b"].key_sum == 2**64 - 1
    assert ledger.columns("other") == {}


def test_columns_of_other_rows_are_refused(ledger: Ledger) -> None:
    ledger.commit_columns("p", 0, columns())
    with pytest.raises(LedgerError, match=r"key sum.*one of x\.arrow and y\.arrow is damaged"):
        ledger.commit_columns("p", 0, columns(file="y.arrow", key_sum=5))


def test_files_that_count_need_a_round(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="round 4 of project 'p' was not begun"):
        ledger.commit_columns("p", 4, columns())
    with pytest.raises(LedgerError, match="relative to the storage root"):
        checkpoint(ledger, 1, "/tmp/e1")


def test_forgotten_files_no_longer_count(ledger: Ledger) -> None:
    checkpoint(ledger, 1, "e1")
    checkpoint(ledger, 2, "e2")
    ledger.commit_columns("p", 0, columns())
    ledger.forget_files(["e2", "x.arrow", "never there"])
    assert ledger.files() == {POOL_FILE, "e1"}
    assert ledger.columns("hash") == {}
    latest = ledger.checkpoint("m", 2)
    assert latest is not None
    assert latest.epoch == 1
    last = list(ledger.events())[-1]
    assert last.kind == "forget"
    assert [entry[:2] for entry in last.payload] == [
        ["delete", "checkpoints"],
        ["delete", "column_parts"],
    ]
    ledger.commit_columns("p", 0, columns(key_sum=5))
    assert ledger.columns("hash")["a"].key_sum == 5


def test_forgetting_nothing_tells_nothing(ledger: Ledger) -> None:
    before = list(ledger.events())
    ledger.forget_files([])
    ledger.forget_files(["never there"])
    assert list(ledger.events()) == before


def test_parts_of_a_pool_are_not_forgotten(ledger: Ledger) -> None:
    checkpoint(ledger, 1, "e1")
    with pytest.raises(LedgerError, match="part of a pool and cannot be forgotten"):
        ledger.forget_files(["e1", POOL_FILE])
    assert ledger.files() == {POOL_FILE, "e1"}
