"""The example that labels over HTTP picks what a run in one process picks."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked
import pytest
import uvicorn
from api_cases import Service, service
from idx_cases import idx_folder

from rayal.evaluation.protocol import run
from rayal.ledger import Ledger
from rayal.pool.from_settings import pool_of
from rayal.service.worker.due import Due
from rayal.service.worker.process import perform
from rayal.settings.run import load

EXAMPLES = Path(__file__).parents[2] / "examples"
ROUNDS, STEPS, COUNT = 1, 10, 30
SETTINGS: dict[str, Any] = {
    "pool": {"source": "fashion-mnist", "subset": 200},
    "task": {"kind": "image", "classes": [str(digit) for digit in range(10)]},
    "model": {"network": "small_cnn"},
    "learner": {"name": "supervised", "steps": STEPS},
    "strategies": ["badge"],
    "initial": {"count": COUNT},
    "rounds": ROUNDS,
    "batch": COUNT,
}


@contextmanager
def listening(made: Service) -> Iterator[str]:
    """Give the address at which a service listens, with its jobs done in a thread."""
    config = uvicorn.Config(made.carrier.app, port=0, log_level="error", ws="none", lifespan="off")
    server, stop = uvicorn.Server(config), threading.Event()
    threads = [
        threading.Thread(target=server.run),
        threading.Thread(target=work, args=(made.ledger, stop)),
    ]
    for thread in threads:
        thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        stop.set()
        for thread in threads:
            thread.join()


def work(ledger: Ledger, stop: threading.Event) -> None:
    """Do jobs as they come, and ask for rounds that are due."""
    due = Due(ledger)
    while not stop.wait(0.05):
        for project in due.projects():
            ledger.add_job(project, "round", {})
        job = ledger.claim_job("test", kinds=["round", "ingest"])
        if job is not None:
            perform(ledger, job, "test")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return idx_folder(folder)


def example(url: str, token: str, data: Path, out: Path, *more: str) -> dict[str, Any]:
    """Run the example, and return what it kept."""
    argv = [
        str(EXAMPLES / "label_over_http.py"), "--url", url, "--token", token,
        "--data", str(data), "--out", str(out), "--subset", "200", "--rounds", str(ROUNDS),
        "--steps", str(STEPS), "--initial", str(COUNT), "--batch", str(COUNT), *more,
    ]  # fmt: skip
    done = forked.run(*argv)
    assert len(done.stdout.splitlines()) == ROUNDS + 1
    kept: dict[str, Any] = json.loads(out.read_text())
    return kept


@pytest.mark.processes
def test_the_picks_and_the_curve_are_those_of_a_run(data: Path, tmp_path: Path) -> None:
    given = {**SETTINGS, "pool": {**SETTINGS["pool"], "data": str(data)}}
    settings = load({**given, "storage": str(tmp_path / "run")})
    with service(tmp_path / "served") as made, listening(made) as url:
        pool = pool_of(settings.pool, made.ledger.root, seed=0)
        token = made.tokens["admin"]
        kept = example(url, token, data, tmp_path / "kept.json", "--pool", pool.name)
    run(settings)
    sys.path.insert(0, str(Path(__file__).parents[1] / "acceptance"))
    from over_http import in_process, over_http

    own = in_process(tmp_path / "run", "badge-s0")
    assert over_http(tmp_path / "kept.json") == own
    assert [len(kept["picks"]), len(own[1])] == [COUNT * (ROUNDS + 1), ROUNDS + 1]


@pytest.mark.processes
def test_images_that_are_pushed(data: Path, tmp_path: Path) -> None:
    with service(tmp_path / "served") as made, listening(made) as url:
        kept = example(url, made.tokens["admin"], data, tmp_path / "kept.json")
        assert made.ledger.project("fashion-http").settings["service"]["pushed"]
    assert len({pick["item"] for pick in kept["picks"]}) == COUNT * (ROUNDS + 1)
    assert all(point["metrics"]["accuracy"] > 0.05 for point in kept["curve"])
