"""The service loses nothing while replicas, the whole tree, the disk or the database fail."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer
from service_process import Annotator, Service, digits_truth, running

from rayal.ledger import Ledger

pytestmark = pytest.mark.slow
PROJECT = "digits"
BODY: dict[str, Any] = {
    "name": PROJECT,
    "pool": "digits",
    "task": {"kind": "image", "classes": [str(digit) for digit in range(10)]},
    "model": {"network": "mlp", "params": {"widths": [32]}},
    "learner": {"name": "supervised", "steps": 400, "batch": 32, "epoch_steps": 50},
    "strategy": "badge",
    "initial": {"count": 40},
    "batch_size": 20,
    "seeds": 3,
}


@pytest.fixture(scope="module")
def truth() -> dict[str, str]:
    return digits_truth()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, truth: dict[str, str]) -> dict[int, Any]:
    """Return the picks of a run in this process, without a service."""
    root = tmp_path_factory.mktemp("undisturbed") / "root"
    project = made(root)
    for _ in range(2):
        project.prepare()
        answer(project, truth)
        project.train()
    return picks_of(root, 1)


def made(root: Path) -> Any:
    """Make the pool and the project of ``BODY`` in a storage root and open it."""
    from rayal.engine.project import Project
    from rayal.pool.ingest import ingest
    from rayal.pool.readers.builtin import builtin
    from rayal.service.creation import create_project
    from rayal.service.uris import Prefixes

    ingest(root, "digits", builtin("digits"))
    with Ledger(root) as ledger:
        create_project(ledger, BODY, prefixes=Prefixes())
        for job in ledger.jobs(PROJECT):
            ledger.cancel_job(job.job)
    return Project.open(root, PROJECT)


def answer(project: Any, truth: dict[str, str]) -> None:
    while leases := project.lease(100):
        project.tell({lease.item: truth[lease.item] for lease in leases})


def picks_of(root: Path, last: int) -> dict[int, list[str]]:
    with Ledger(root, create=False) as ledger:
        rows = {r: ledger.selection(PROJECT, r) for r in range(-1, last + 1)}
        return {r: [p.item for p in row.picks] for r, row in rows.items() if row is not None}


def check_ledger(root: Path, *annotators: Annotator) -> None:
    """Raise unless every accepted label is there, and no item has more than it needs."""
    with Ledger(root, create=False) as ledger:
        history = ledger.labels(PROJECT)
        held = {(row.item, row.annotator): row.value for row in history}
        for annotator in annotators:
            for item, label in annotator.accepted.items():
                assert held[item, annotator.name] == label
        filled = Counter(row.item for row in history if row.slot is not None)
        assert max(filled.values()) == 1


def created(service: Service, name: str = "ann") -> Annotator:
    annotator = Annotator(service, PROJECT, name)
    annotator.call("POST", "/v1/projects", BODY)
    return annotator


def ingress(service: Service) -> int:
    """Return the process of the ingress replica, once there is one."""
    until = time.monotonic() + 60.0
    while time.monotonic() < until:
        found = service.pids("ServeReplica:rayal:Ingress")
        if len(found) == 1:
            return found[0]
        time.sleep(0.1)
    raise AssertionError("no ingress replica came up")


def in_background(annotators: list[Annotator], truth: dict[str, str], stop: threading.Event) -> Any:
    """Let annotators label until they are told to stop."""
    errors: list[BaseException] = []

    def work(annotator: Annotator) -> None:
        try:
            while not stop.is_set():
                annotator.label_some(truth, 3)
                time.sleep(0.05)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(a,)) for a in annotators]
    for thread in threads:
        thread.start()

    def end() -> None:
        stop.set()
        for thread in threads:
            thread.join(timeout=130.0)
        assert not errors, errors

    return end


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    from rayal.pool.ingest import ingest
    from rayal.pool.readers.builtin import builtin

    root = tmp_path / "root"
    ingest(root, "digits", builtin("digits"))
    with running(Service(root)) as service:
        yield service


def test_a_killed_ingress_replica_loses_no_label(service: Service, truth: dict[str, str]) -> None:
    first = created(service)
    others = [Annotator(service, PROJECT, f"a{i}") for i in range(4)]
    end = in_background(others, truth, threading.Event())
    for _ in range(2):
        time.sleep(3.0)
        os.kill(ingress(service), signal.SIGKILL)
    first.label_until_round(truth, 1)
    end()
    check_ledger(service.root, first, *others)


def test_a_killed_tree_goes_on_to_the_same_picks(
    service: Service, truth: dict[str, str], undisturbed: dict[int, Any]
) -> None:
    annotator = created(service)
    annotator.label_until_round(truth, -1)
    others = [Annotator(service, PROJECT, f"a{i}") for i in range(3)]
    end = in_background(others, truth, threading.Event())
    deadline = time.monotonic() + 120.0
    while not service.pids("rayal.service.worker.process"):  # a round has begun
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    service.kill()
    time.sleep(1.0)
    service.start()
    annotator.label_until_round(truth, 1)
    end()
    check_ledger(service.root, annotator, *others)
    assert picks_of(service.root, 1) == undisturbed


def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path, truth: dict[str, str]) -> None:
    with small_disk(tmp_path / "disk") as disk, running(Service(disk / "root")) as service:
        from rayal.pool.ingest import ingest
        from rayal.pool.readers.builtin import builtin

        ingest(service.root, "digits", builtin("digits"))
        annotator = created(service)
        annotator.label_until_round(truth, 0)
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as out:
            while True:
                out.write(b"\0" * 4096)
                out.flush()
        end = in_background([annotator], truth, stop := threading.Event())
        time.sleep(4.0)
        assert annotator.failures > 0  # refused, and asked again
        refused = annotator.http.post("/v1/tokens", json={"name": "t", "scopes": ["admin"]})
        assert refused.status_code in (503, 507), refused.text
        assert refused.headers["content-type"] == "application/problem+json"
        filler.unlink()
        annotator.call("GET", "/v1/jobs")
        stop.set()
        end()
        annotator.label_until_round(truth, 1)
        check_ledger(service.root, annotator)


@contextlib.contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """Give a file system of 64 MB in memory."""
    path.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path)], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted: {made.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_restarted_database_loses_nothing(
    postgres: PostgresServer, tmp_path: Path, truth: dict[str, str]
) -> None:
    from rayal.pool.ingest import ingest
    from rayal.pool.readers.builtin import builtin

    root = tmp_path / "root"
    url = postgres.database()
    Ledger(root, database=url).close()
    ingest(root, "digits", builtin("digits"))
    with running(Service(root, "--database", url)) as service:
        first = created(service)
        others = [Annotator(service, PROJECT, f"a{i}") for i in range(4)]
        end = in_background(others, truth, stop := threading.Event())
        time.sleep(3.0)
        postgres.stop(at_once=True)
        time.sleep(2.0)
        postgres.start()
        first.label_until_round(truth, 1)
        stop.set()
        end()
        check_ledger(root, first, *others)
        assert service.stop() == 0
