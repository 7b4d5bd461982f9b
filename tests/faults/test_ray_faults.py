"""Ray under SIGKILL: a scanning worker, a member, a shard, a whole node, the job; picks stay."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from sklearn.datasets import load_digits

from rayal.failpoints import WORKERS
from rayal.ledger import Ledger
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.pool.source import Role

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SETTINGS: dict[str, Any] = {
    "pool": {"source": "halves"},
    "model": {"network": "mlp", "params": {"widths": [32]}},
    "learner": {"name": "supervised", "steps": 60, "batch": 16, "epoch_steps": 20},
    "strategies": ["badge", {"name": "ensemble_bald", "members": 2}],
    "initial": {"count": 30},
    "rounds": 2,
    "batch": 40,
    "seeds": [3],
    "keep": "all",
}


def prepared(folder: Path, **changes: Any) -> Path:
    """Ingest a pool of two parts and write the settings."""
    folder.mkdir(exist_ok=True)
    x, y = load_digits(return_X_y=True)
    ids = [f"digit-{i}" for i in range(len(x))]
    pieces: list[tuple[Role, slice]] = [("pool", slice(0, 700)), ("pool", slice(700, 1400))]
    for role, at in (*pieces, ("test", slice(1400, None))):
        source = array_source(x[at], y[at], ids=ids[at], role=role)
        Pool.ingest(folder / "run", "halves", [source])
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({**SETTINGS, "storage": str(folder / "run"), **changes}))
    return config


def run(config: Path, *options: str, **environment: str) -> float:
    """Run to the end and return the seconds."""
    started = time.perf_counter()
    argv = [sys.executable, "-m", "rayal", "run", str(config), *options]
    done = subprocess.run(
        argv, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - started


def picks(folder: Path) -> list[tuple[Any, ...]]:
    table = pq.read_table(folder / "run" / "picks.parquet")
    columns = ("project", "round", "rank", "item", "score")
    return list(zip(*(table[c].to_pylist() for c in columns), strict=True))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Return a local run, and the seconds that the same takes on Ray."""
    local, remote = tmp_path_factory.mktemp("local"), tmp_path_factory.mktemp("ray")
    run(prepared(local))
    seconds = run(prepared(remote), "--executor", "ray")
    assert picks(local) == picks(remote)
    return local, seconds


@pytest.mark.parametrize("point", WORKERS)
def test_a_killed_worker_costs_seconds_and_no_pick(
    point: str, unbroken: tuple[Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, whole = unbroken
    marker = tmp_path / "killed"
    count = {"shard.answer": 4}.get(point, 2)
    seconds = run(
        prepared(tmp_path / "run"), "--executor", "ray", RAYAL_FAILPOINT=f"{point}:{count}@{marker}"
    )
    assert marker.exists(), f"{point} was not passed"
    assert picks(tmp_path / "run") == picks(folder)
    with capsys.disabled():
        sys.stdout.write(f"\n{point}: {seconds - whole:+.1f} s of {whole:.1f} s\n")


# ---- a node -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["train", "scan", "select"])
def test_a_killed_node_costs_seconds_and_no_pick(
    stage: str, unbroken: tuple[Path, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process of its own: the driver's node lives, one of the others dies in a stage."""
    config = prepared(tmp_path)
    script = Path(__file__).with_name("node_loss.py")
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(script), str(config), stage],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "killed in" in done.stdout
    assert picks(tmp_path) == picks(unbroken[0])
    with capsys.disabled():
        sys.stdout.write(
            f"\nnode, {stage}: {time.perf_counter() - started:.1f} s; {done.stdout.strip()}\n"
        )


# ---- jobs ---------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def head(tmp_path: Path) -> Iterator[str]:
    """Start a head on loopback, give its dashboard's address, and end it."""
    ray = Path(sys.executable).with_name("ray")
    ports = {name: free_port() for name in ("port", "dashboard", "agent", "client")}
    argv = [
        str(ray), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={ports['port']}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={ports['dashboard']}",
        f"--dashboard-agent-listen-port={ports['agent']}",
        f"--ray-client-server-port={ports['client']}", "--disable-usage-stats", "--num-cpus=2",
    ]  # fmt: skip
    log = (tmp_path / "head.log").open("w")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # a job's python
    process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, "PATH": path})
    address = f"http://127.0.0.1:{ports['dashboard']}"
    try:
        _wait(lambda: _answers(ports["dashboard"]), 90)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        log.close()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _wait(ready: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.2)


def submitted(head: str, *argv: str) -> str:
    environment = {  # a new cluster asks for its token
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_API_SERVER_ADDRESS": head,
    }
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_a_job_runs_and_submitting_again_continues(
    head: str, unbroken: tuple[Path, float], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    subprocess.run(
        ["git", "clone", "-q", str(Path(__file__).parents[2]), str(repository)], check=True
    )
    config = prepared(tmp_path / "run")
    ray = str(Path(sys.executable).with_name("ray"))
    short = submitted(
        head,
        *(ray, "job", "submit", "--working-dir", str(repository), "--"),
        *("python", "-m", "rayal", "run", str(config), "--address", "auto"),
        *("--set", "strategies=[badge]"),
    )
    assert "badge" in short
    before = events(tmp_path / "run")
    script = repository / "examples" / "submit_job.py"
    again = submitted(
        head, sys.executable, str(script), str(config), "--working-dir", str(repository)
    )
    assert "ensemble_bald" in again
    assert picks(tmp_path / "run") == picks(unbroken[0])
    trained = [e for e in events(tmp_path / "run")[len(before) :] if e.kind == "checkpoint"]
    assert {e.project for e in trained} == {"ensemble_bald-s3"}, "what was done ran again"


def events(folder: Path) -> list[Any]:
    with Ledger(folder / "run", create=False) as ledger:
        return list(ledger.events())


# ---- Ctrl-C -------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_cluster_and_the_same_command_goes_on(
    unbroken: tuple[Path, float], tmp_path: Path
) -> None:
    config = prepared(tmp_path)
    argv = [sys.executable, "-m", "rayal", "run", str(config), "--executor", "ray"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, start_new_session=True)
    _wait(lambda: any(e.kind == "checkpoint" for e in events(tmp_path)), 120)
    group = threading.Thread(target=process.communicate)
    process.send_signal(signal.SIGINT)
    group.start()
    group.join(60)
    assert process.returncode == 130
    _wait(lambda: not _of_session(process.pid), 30)
    run(config, "--executor", "ray")
    assert picks(tmp_path) == picks(unbroken[0])


def _of_session(leader: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == leader and fields[0] != "Z":
                    found.append(int(entry.name))
    return found
