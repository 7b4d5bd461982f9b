from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayal.errors import LedgerError, UnknownNameError
from rayal.ledger import JobRow, Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as opened:
        for project in ("p", "q"):
            opened.create_project(project, "digits", {})
        yield opened


def claimed(ledger: Ledger, owner: str, *, now: float) -> str | None:
    job = ledger.claim_job(owner, now=now)
    return None if job is None else f"{job.project} {job.kind}"


def test_a_job_is_done(ledger: Ledger) -> None:
    asked = ledger.add_job("p", "round", {"n": (1,)}, now=1)
    assert asked == JobRow(
        job=asked.job,
        project="p",
        kind="round",
        args={"n": [1]},
        state="queued",
        progress={},
        result=None,
        error=None,
        attempts=0,
        created=1,
        started=None,
        finished=None,
        heartbeat=None,
        owner=None,
    )
    job = ledger.claim_job("r1", now=2)
    assert job == ledger.job(asked.job)
    assert (job.job, job.state, job.owner, job.attempts) == (asked.job, "running", "r1", 1)
    assert (job.started, job.heartbeat) == (2, 2)
    assert ledger.beat(job.job, "r1", {"stage": "train"}, now=3)
    assert ledger.job(job.job).progress == {"stage": "train"}
    assert ledger.finish_job(job.job, "r1", {"picks": 5}, now=4)
    done = ledger.job(job.job)
    assert (done.state, done.result, done.finished, done.heartbeat) == ("done", {"picks": 5}, 4, 3)
    assert ledger.claim_job("r1", now=5) is None


def test_an_unfinished_job_is_not_asked_for_twice(ledger: Ledger) -> None:
    first = ledger.add_job("p", "round", {}, now=1)
    assert ledger.add_job("p", "round", {"other": 1}, now=2) == first
    assert ledger.add_job("p", "round", {}, once=False, now=2).job != first.job
    assert ledger.add_job("p", "predict", {}, now=2).job != first.job
    assert ledger.add_job("q", "round", {}, now=2).job != first.job
    for _ in range(2):
        job = ledger.claim_job("r1", now=3)
        assert job is not None
        assert job.project == "p" or ledger.finish_job(job.job, "r1", None, now=3)
    assert ledger.add_job("p", "round", {}, now=4).job == first.job  # it runs


def test_one_job_runs_per_project_the_oldest_first(ledger: Ledger) -> None:
    for number, (project, kind) in enumerate([("p", "a"), ("p", "b"), ("q", "a"), ("q", "b")]):
        ledger.add_job(project, kind, {}, now=number)
    assert claimed(ledger, "r1", now=9) == "p a"
    assert claimed(ledger, "r2", now=9) == "q a"
    assert claimed(ledger, "r3", now=9) is None
    (job,) = ledger.jobs("p", state="running")
    ledger.fail_job(job.job, "r1", "no labels", now=10)
    assert ledger.job(job.job).error == "no labels"
    assert claimed(ledger, "r3", now=11) == "p b"


def test_a_worker_takes_the_kinds_it_can_do(ledger: Ledger) -> None:
    ledger.add_job("p", "predict", {}, now=1)
    ledger.add_job("q", "round", {}, now=2)
    assert ledger.claim_job("r1", kinds=["ingest"], now=3) is None
    job = ledger.claim_job("r1", kinds=["round", "ingest"], now=3)
    assert job is not None and job.kind == "round"


def test_a_silent_job_is_begun_again_by_another(ledger: Ledger) -> None:
    asked = ledger.add_job("p", "round", {}, now=0)
    ledger.add_job("p", "predict", {}, now=1)
    ledger.claim_job("r1", now=10)
    ledger.beat(asked.job, "r1", {"done": 1}, now=50)
    assert ledger.claim_job("r2", stale=60, now=109) is None
    job = ledger.claim_job("r2", stale=60, now=110)
    assert job is not None
    assert (job.job, job.owner, job.attempts, job.progress) == (asked.job, "r2", 2, {})
    assert not ledger.beat(asked.job, "r1", {"done": 2}, now=111)
    assert not ledger.finish_job(asked.job, "r1", {}, now=111)
    assert not ledger.fail_job(asked.job, "r1", "late", now=111)
    assert ledger.job(asked.job) == job
    assert ledger.finish_job(asked.job, "r2", {}, now=112)


def test_a_cancelled_job_learns_of_it(ledger: Ledger) -> None:
    asked = ledger.add_job("p", "round", {}, now=0)
    ledger.claim_job("r1", now=1)
    assert ledger.cancel_job(asked.job, now=2).state == "cancelled"
    assert not ledger.beat(asked.job, "r1", {}, now=3)
    assert not ledger.finish_job(asked.job, "r1", {}, now=3)
    assert ledger.cancel_job(asked.job, now=4).finished == 2
    assert ledger.retry_job(asked.job, now=5).state == "queued"
    again = ledger.claim_job("r2", now=6)
    assert again is not None and (again.job, again.attempts) == (asked.job, 2)
    assert ledger.retry_job(asked.job, now=7).state == "running"
    ledger.finish_job(asked.job, "r2", None, now=8)
    assert ledger.cancel_job(asked.job, now=9).state == "done"
    with pytest.raises(LedgerError, match="is done; ask for a new one"):
        ledger.retry_job(asked.job, now=9)


def test_jobs_of_an_owner_that_ends_wait_again(ledger: Ledger) -> None:
    for project in ("p", "q"):
        ledger.add_job(project, "round", {}, now=0)
        ledger.claim_job("r1", now=1)
    assert ledger.release_jobs("r2", now=2) == 0
    assert ledger.release_jobs("r1", now=2) == 2
    assert {(j.state, j.owner) for j in ledger.jobs()} == {("queued", None)}
    assert claimed(ledger, "r2", now=3) == "p round"


def test_jobs_come_in_pages(ledger: Ledger) -> None:
    made = [ledger.add_job("p" if i % 2 else "q", "x", {}, once=False, now=0) for i in range(6)]
    names = [j.job for j in made]
    assert [j.job for j in ledger.jobs()] == names
    assert [j.job for j in ledger.jobs(after=names[1], limit=3)] == names[2:5]
    assert [j.job for j in ledger.jobs("p")] == names[1::2]
    with pytest.raises(UnknownNameError, match="job 'none' does not exist"):
        ledger.jobs(after="none")


def test_unknown_jobs_are_named(ledger: Ledger) -> None:
    for call in (ledger.job, ledger.cancel_job, ledger.retry_job):
        with pytest.raises(UnknownNameError, match="job 'none' does not exist"):
            call("none")
    with pytest.raises(UnknownNameError, match="does not exist"):
        ledger.beat("no\0ne", "r1", {})


def test_jobs_of_a_deleted_project_are_cancelled(ledger: Ledger) -> None:
    asked = [ledger.add_job("p", kind, {}, now=0).job for kind in ("a", "b")]
    ledger.claim_job("r1", now=1)
    ledger.delete_project("p", now=2)
    assert {ledger.job(job).state for job in asked} == {"cancelled"}
    assert ledger.claim_job("r2", now=3) is None
