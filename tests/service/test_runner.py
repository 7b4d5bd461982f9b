"""Rounds in the background: the picks of a run in process, whatever happens to the processes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from service_cases import (
    NOTHING,
    answer,
    body,
    patch_project,
    project,
    push,
    rows,
    table_pool,
    work,
)
from sklearn.datasets import load_digits

from rayal.engine.project import Project
from rayal.engine.spec import ProjectSpec
from rayal.engine.versions import load
from rayal.ledger import JobRow, LabelEntry, Ledger, Pick
from rayal.pool.files import collect_files, drop_files
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.service.creation import create_project
from rayal.service.inbox import PushedItem, push_items, stage
from rayal.service.worker.due import Due
from rayal.service.worker.options import WorkOptions
from rayal.service.worker.process import Heart, Stopped, perform, told
from rayal.service.worker.runner import Runner

ITEMS = rows(60)


def picks(ledger: Ledger, name: str = "p") -> list[list[Pick]]:
    made = [ledger.selection(name, r) for r in range(-1, len(ledger.rounds(name)))]
    return [list(s.picks) for s in made if s is not None]


def in_process(root: Path, rounds: int, *, ready: int = 0, **changes: Any) -> list[list[Pick]]:
    """Return the picks of a project on the same items that knows nothing of the service."""
    asked = body(**changes)
    made = create_project(Ledger(root / "asked"), asked, prefixes=NOTHING)
    pool = table_pool(root, "rows", {i: (x, "no") for i, (x, _) in ITEMS.items()})
    spec = ProjectSpec.from_json(made.settings)
    plain = Project.create(Ledger(root), "p", Pool.open(root, pool.name), spec)
    plain.prepare(ready=ready)
    for _ in range(rounds):
        answer(plain.ledger, ITEMS, 12 if not plain.rounds() and ready else 1000)
        plain.train()
    return picks(plain.ledger)


@pytest.mark.parametrize("strategy", ["badge", "margin"])
def test_rounds_pick_what_a_run_in_process_picks(strategy: str, tmp_path: Path) -> None:
    ledger = project(tmp_path / "service", ITEMS, strategy=strategy)
    assert work(ledger).result == {"offered": 12}
    for number in range(2):
        answer(ledger, ITEMS)
        job = work(ledger)
        assert job.state == "done", job.error
        assert (job.result["round"], job.result["offered"]) == (number, 6)
        assert job.result["labels"] == 12 + 6 * number
    assert picks(ledger) == in_process(tmp_path / "plain", 2, strategy=strategy)


def test_digits_as_files_pick_what_a_run_on_the_arrays_picks(tmp_path: Path) -> None:
    pixels, classes = load_digits(return_X_y=True)
    images = (pixels[:200] * 15).astype(np.uint8).reshape(-1, 8, 8)
    ids = [f"digit-{i}" for i in range(len(images))]
    names = [str(n) for n in range(10)]
    truth = {i: str(c) for i, c in zip(ids, classes, strict=False)}
    asked = body(
        task={"kind": "image", "classes": names, "size": [8, 8], "channels": 1},
        strategy="badge",
        initial={"count": 20},
    )
    service = Ledger(tmp_path / "service")
    row = create_project(service, asked, prefixes=NOTHING)
    role: Literal["pool", "test"]
    given = []
    for n, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        role = "pool" if n < 150 else "test"
        given.append(PushedItem(ids[n], file.getvalue(), role=role))
    assert push_items(service, "p", given, prefixes=NOTHING).created == 200
    sources = [
        array_source(images[at], ids=ids[at], role=role)  # type: ignore[arg-type]
        for role, at in (("pool", slice(0, 150)), ("test", slice(150, 200)))
    ]
    pool = Pool.ingest(tmp_path / "plain", "digits", sources)
    plain = Project.create(
        Ledger(tmp_path / "plain"), "p", pool, ProjectSpec.from_json(row.settings)
    )
    plain.prepare()
    work(service)
    tests = [LabelEntry(i, truth[i]) for i in ids[150:]]
    for ledger in (service, plain.ledger):
        ledger.label("p", "expert", tests)
    for _ in range(2):
        for ledger in (service, plain.ledger):
            ledger.label("p", "ann", [LabelEntry(i, truth[i]) for i in ledger.open_items("p")])
        summary = plain.train()
        job = work(service)
        assert job.state == "done", job.error
        assert job.result["metrics"] == summary.metrics and "accuracy" in summary.metrics
    assert picks(service) == picks(plain.ledger)


def test_ready_items_keep_people_busy_and_enter_the_next_round(tmp_path: Path) -> None:
    ledger = project(tmp_path / "service", ITEMS, auto={"ready": 5})
    assert work(ledger).result == {"offered": 17}
    answer(ledger, ITEMS, 12)
    assert work(ledger).result["labels"] == 12
    assert len(ledger.open_items("p")) == 5 + 6
    answer(ledger, ITEMS)
    assert work(ledger).result["labels"] == 23
    assert picks(ledger) == in_process(tmp_path / "plain", 2, ready=5)


def test_a_round_makes_a_version_with_suggestions(tmp_path: Path) -> None:
    ledger = project(tmp_path, ITEMS)
    work(ledger)
    answer(ledger, ITEMS)
    work(ledger)
    (model,) = ledger.models("p")
    train = ledger.stage("p", 0, "train")
    assert train is not None and model.model == train.output["model"]
    assert model.version == f"r0000-{model.model[:4]}" and model.active
    said = ledger.suggestions("p", ledger.open_items("p"))
    assert set(said) == set(ledger.open_items("p")) and len(said) == 6
    committee = load(ledger, model)
    found = committee.answers(Project(ledger, "p").pool.take(list(said)))
    for suggestion, made in zip(said.values(), found, strict=True):
        assert (suggestion.label, suggestion.probs) == (made.label, list(made.probs))
        assert sum(suggestion.probs) == pytest.approx(1.0, abs=1e-5)
        assert suggestion.version == model.version


def test_versions_stay_loadable(tmp_path: Path) -> None:
    ledger = project(tmp_path, ITEMS)
    work(ledger)
    for _ in range(3):
        answer(ledger, ITEMS)
        work(ledger)
    assert len(ledger.models("p")) == 3
    drop_files(ledger, "p", keep="picks")
    collect_files(ledger, dry_run=False, age=0.0)
    rows_ = Project(ledger, "p").pool.take(list(ITEMS)[:5])
    for model in ledger.models("p"):
        assert len(load(ledger, model).answers(rows_)) == 5
    columns = [p for p in (tmp_path / "columns").rglob("*.arrow")]
    assert columns == []  # while columns of old rounds do go


def test_a_failed_round_keeps_the_old_model_and_can_be_retried(tmp_path: Path) -> None:
    ledger = project(tmp_path / "service", ITEMS)
    work(ledger)
    answer(ledger, ITEMS)
    work(ledger)
    before = ledger.models("p")
    answer(ledger, ITEMS)
    (part,) = (tmp_path / "service" / "pools").rglob("*.arrow")
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    failed = work(ledger)
    assert failed.state == "failed" and failed.error is not None
    assert "damaged" in failed.error and "Traceback" not in failed.error
    assert ledger.models("p") == before and before[0].active
    assert ledger.open_items("p") == []
    assert Due(ledger).projects() == []  # nobody hammers at it
    part.write_bytes(whole)
    ledger.retry_job(failed.job)
    again = ledger.claim_job("me")
    assert again is not None and perform(ledger, again, "me")
    assert [m.active for m in ledger.models("p")] == [False, True]
    assert picks(ledger) == in_process(tmp_path / "plain", 2)


def test_a_round_that_ended_before_its_model_was_a_version_is_ended(tmp_path: Path) -> None:
    ledger = project(tmp_path, ITEMS)
    work(ledger)
    answer(ledger, ITEMS)
    Project(ledger, "p").train()  # as if the process had died right then
    assert ledger.models("p") == []
    answer(ledger, ITEMS)
    first = work(ledger)
    assert first.result["round"] == 0 and [m.round for m in ledger.models("p")] == [0]
    assert work(ledger).result["round"] == 1


def test_a_round_goes_on_with_the_settings_that_it_began_with(tmp_path: Path) -> None:
    ledger = project(tmp_path / "service", ITEMS, strategy="badge")
    work(ledger)
    answer(ledger, ITEMS)
    job = ledger.add_job("p", "round", {})
    claimed = ledger.claim_job("me")
    assert claimed is not None

    class Power(Exception):
        """It went off."""

    def cut(progress: Any) -> None:
        if progress["stage"] == "scan":
            raise Power

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Heart, "tell", lambda _, progress: cut(progress))
        assert not perform(ledger, claimed, "me")
    patch_project(ledger, "p", {"strategy": "random", "batch_size": 3}, version=1)
    ledger.retry_job(job.job)
    again = ledger.claim_job("me")
    assert again is not None and perform(ledger, again, "me")
    assert picks(ledger) == in_process(tmp_path / "plain", 1, strategy="badge")
    answer(ledger, ITEMS)
    assert work(ledger).result["offered"] == 3


def test_without_items_or_labels_a_round_fails_with_what_to_do(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    create_project(ledger, body(), prefixes=NOTHING)
    assert "push items" in str(work(ledger).error)
    assert ledger.selection("p", -1) is None
    push(ledger, "p", ITEMS)
    assert work(ledger).state == "done"
    assert "no labels yet" in str(work(ledger).error)


def test_items_that_come_when_all_are_labeled_are_chosen_from(tmp_path: Path) -> None:
    ledger = project(tmp_path, rows(15))
    more = {**rows(15), **rows(10, seed=1, start=15)}
    work(ledger)
    for offered in (3, 0):
        answer(ledger, more)
        assert work(ledger).result["offered"] == offered
    push(ledger, "p", rows(10, seed=1, start=15))
    assert work(ledger).result["offered"] == 6  # no label is new, but items are
    assert set(ledger.open_items("p")) <= set(rows(10, seed=1, start=15))


def test_when_a_round_is_due(tmp_path: Path) -> None:
    ledger = project(tmp_path, ITEMS, auto={"ready": 3})
    due = Due(ledger)
    assert due.projects() == []
    work(ledger)
    assert due.projects() == []
    open_items = ledger.open_items("p")
    ledger.label("p", "ann", [LabelEntry("row-0059", "no")])  # was it offered?
    unasked = "row-0059" not in open_items
    answer(ledger, ITEMS, 11)
    assert due.projects() == ([] if unasked else ["p"])
    answer(ledger, ITEMS, 1)
    assert due.projects() == ["p"]
    job = ledger.add_job("p", "round", {})
    assert due.projects() == []  # it is asked for
    claimed = ledger.claim_job("me")
    assert claimed is not None and claimed.job == job.job and perform(ledger, claimed, "me")
    answer(ledger, ITEMS, 5)
    assert due.projects() == []
    answer(ledger, ITEMS, 1)
    assert due.projects() == ["p"]
    patch_project(ledger, "p", {"auto": {"start": False}}, version=1)
    assert due.projects() == []
    patch_project(ledger, "p", {"auto": {"start": True, "quorum": 40}}, version=2)
    assert due.projects() == []
    answer(ledger, ITEMS)  # nothing is open any more
    assert due.projects() == ["p"]
    patch_project(ledger, "p", {"rounds": 0}, version=3)
    assert due.projects() == []
    ledger.delete_project("p")
    assert due.projects() == []


def test_labels_of_items_that_were_never_offered_begin_no_round(tmp_path: Path) -> None:
    ledger = project(tmp_path, ITEMS)
    work(ledger)
    unasked = [i for i in ITEMS if i not in ledger.open_items("p")]
    ledger.label("p", "ann", [LabelEntry(i, ITEMS[i][1]) for i in unasked[:20]])
    assert Due(ledger).projects() == []


def test_a_beat_is_not_held_up_by_the_work_and_tells_how_far_it_is(tmp_path: Path) -> None:
    ledger = project(tmp_path, ITEMS)
    ledger.add_job("p", "round", {})
    job = ledger.claim_job("me")
    assert job is not None
    with Heart(ledger, job.job, "me") as heart:
        heart.tell({"stage": "train", "done": 3})
        deadline = time.monotonic() + 5
        while ledger.job(job.job).progress != {"stage": "train", "done": 3}:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert ledger.job(job.job).state == "running"


def test_a_job_that_is_cancelled_or_taken_stops_the_work(tmp_path: Path) -> None:
    ledger = project(tmp_path, ITEMS)
    job = ledger.add_job("p", "round", {})
    assert ledger.claim_job("me") is not None
    called = threading.Event()
    with Heart(ledger, job.job, "me", called.set) as heart:
        ledger.cancel_job(job.job)
        assert called.wait(5)
        with pytest.raises(Stopped):
            heart.tell({})
    assert ledger.job(job.job).state == "cancelled"


def test_errors_are_told_by_their_text_alone() -> None:
    assert told(ValueError("x" * 5000)).startswith("ValueError: xxx")
    assert len(told(ValueError("x" * 5000))) < 2100


def test_options_of_a_child_come_back_from_its_command_line() -> None:
    options = WorkOptions("ray", "127.0.0.1:1", NOTHING, parent=7)
    assert WorkOptions.from_json(options.to_json()) == options


# -- processes ---------------------------------------------------------------------------------


@contextmanager
def running(root: Path, **options: Any) -> Iterator[None]:
    """Have a runner at work in a thread of this process."""
    stop = threading.Event()
    thread = threading.Thread(target=Runner(root, poll=0.05, **options).run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def wait_for(ledger: Ledger, job: str, *states: str, seconds: float = 120) -> JobRow:
    deadline = time.monotonic() + seconds
    while (row := ledger.job(job)).state not in states:
        assert time.monotonic() < deadline, row
        time.sleep(0.05)
    return row


def children(root: Path) -> list[int]:
    """Return the processes that work on a storage root."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"rayal.service.worker.process" in command and str(root).encode() in command:
            found.append(int(folder.name))
    return found


@pytest.mark.processes
def test_killed_in_the_middle_and_side_by_side_rounds_pick_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "service"
    ledger = project(root, ITEMS)
    create_project(ledger, body("q", strategy="badge"), prefixes=NOTHING)
    push(ledger, "q", ITEMS)
    for name in ("p", "q"):
        work(ledger, name)
    file = tmp_path / "killed"
    monkeypatch.setenv("RAYAL_FAILPOINT", f"train.epoch:2@{file}")
    with running(root, jobs=2):
        for name in ("p", "q"):
            answer(ledger, ITEMS, name=name)  # that makes their rounds due
        for name in ("p", "q"):
            while not (jobs := [j for j in ledger.jobs(name) if j.state != "done"]):
                if len(ledger.models(name)):
                    break
                time.sleep(0.05)
            for job in jobs:
                wait_for(ledger, job.job, "done", "failed")
    assert file.exists()
    done = {n: ledger.jobs(n)[-1] for n in ("p", "q")}
    assert {j.state for j in done.values()} == {"done"}
    assert sorted(j.attempts for j in done.values()) == [1, 2]
    assert picks(ledger) == in_process(tmp_path / "plain", 1)
    assert picks(ledger, "q") == in_process(tmp_path / "other", 1, strategy="badge")


@pytest.mark.processes
def test_a_runner_that_is_killed_takes_its_children_along_and_the_next_one_goes_on(
    tmp_path: Path,
) -> None:
    learner = {"name": "supervised", "steps": 10_000_000, "epoch_steps": 20}
    ledger = project(tmp_path, ITEMS, learner=learner)
    work(ledger)
    answer(ledger, ITEMS)
    job = ledger.add_job("p", "round", {}).job
    command = [sys.executable, "-m", "rayal.service.worker.runner", str(tmp_path), "1"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as first:
        while ledger.job(job).progress.get("stage") != "train":
            assert first.poll() is None
            time.sleep(0.05)
        (child,) = children(tmp_path)
        assert os.getpriority(os.PRIO_PROCESS, child) >= 10
        first.kill()
    deadline = time.monotonic() + 10
    while children(tmp_path):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert ledger.job(job).state == "running"  # nobody was left to say otherwise
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as second:
        while ledger.job(job).attempts < 2 or not ledger.job(job).progress:
            assert second.poll() is None
            time.sleep(0.05)
        started = time.monotonic()
        second.send_signal(signal.SIGTERM)
        assert second.wait(10) == 0
        assert time.monotonic() - started < 10
    assert children(tmp_path) == []
    assert ledger.job(job).state == "queued"
    with running(tmp_path, jobs=1):
        while not (ledger.job(job).state == "running" and ledger.job(job).progress):
            time.sleep(0.05)
        ledger.cancel_job(job)
        deadline = time.monotonic() + 15
        while children(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert ledger.job(job).state == "cancelled"
    assert ledger.models("p") == [] and ledger.stage("p", 0, "train") is None


def test_a_job_whose_process_dies_again_and_again_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = project(tmp_path, ITEMS)
    job = ledger.add_job("p", "round", {}).job
    begun = subprocess.Popen

    def dying(command: Any, **given: Any) -> Any:
        return begun([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], **given)

    monkeypatch.setattr(subprocess, "Popen", dying)
    with running(tmp_path, jobs=1):
        row = wait_for(ledger, job, "failed", seconds=30)
    assert row.attempts == 3 and "signal 9" in str(row.error)


def test_staged_files_go_by_age(tmp_path: Path) -> None:
    ledger = project(tmp_path, rows(3))
    names = [stage(tmp_path, [b"{}\n"], limit=10) for _ in range(2)]
    old = time.time() - 100_000
    for name in names:
        os.utime(tmp_path / "inbox" / name, (old, old))
    ledger.add_job("p", "ingest", {"file": names[0]})
    assert ledger.claim_job("somebody else") is not None
    with running(tmp_path, jobs=1):
        deadline = time.monotonic() + 5
        while (tmp_path / "inbox" / names[1]).exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert (tmp_path / "inbox" / names[0]).exists()
