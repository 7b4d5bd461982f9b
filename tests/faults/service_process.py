"""A running ``rayal serve`` for tests: started, killed by pid, asked over loopback alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from sklearn.datasets import load_digits

SECONDS_TO_START = 180.0
RETRIED = (500, 502, 503, 504, 408, 429)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


class Service:
    """A service as a child process in a session of its own.

    Args:
        root: the storage root.
        options: further arguments of the command.
        environment: further variables.
    """

    def __init__(
        self, root: Path, *options: str, environment: dict[str, str] | None = None
    ) -> None:
        self.root, self.options = root, options
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = root.parent / f"{root.name}.log"
        self.token_file = root.parent / f"{root.name}.token"
        self.environment = environment or {}
        self.process: subprocess.Popen[bytes] | None = None
        self.clients: list[httpx.Client] = []

    def start(self) -> None:
        """Start the service and wait until it is ready."""
        command = [
            *(sys.executable, "-m", "rayal", "serve", "--storage", str(self.root)),
            *("--port", str(self.port), "--token-file", str(self.token_file), *self.options),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | self.environment,
            )
        until = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=2.0).status_code == 200:
                    return
            time.sleep(0.3)
        raise AssertionError(f"not ready in {SECONDS_TO_START} s: {self.log.read_text()[-4000:]}")

    @property
    def token(self) -> str:
        """The administrator's token."""
        return self.token_file.read_text().strip()

    def pids(self, *words: str) -> list[int]:
        """Return the processes of the service whose command line holds all words."""
        assert self.process is not None
        parents: dict[int, int] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
        return [pid for pid in parents if self._mine(pid, parents) and _holds(pid, words)]

    def _mine(self, pid: int, parents: dict[int, int]) -> bool:
        """Whether a process descends from the command, or is of its session."""
        assert self.process is not None
        with contextlib.suppress(OSError):
            if os.getsid(pid) == self.process.pid:
                return True
        while pid in parents and pid != self.process.pid:
            pid = parents[pid]
        return pid == self.process.pid

    def kill(self) -> None:
        """End the whole tree as a power cut would."""
        assert self.process is not None
        for _ in range(5):  # what one process started meanwhile
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """Ask the service to end and return its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=60.0)
        self.kill()
        return code


def _again(answer: httpx.Response) -> bool:
    """Whether a call is to be repeated: also where Serve is up again before the application."""
    of_the_service = "problem+json" in answer.headers.get("content-type", "")
    return answer.status_code in RETRIED or (answer.status_code == 404 and not of_the_service)


def _holds(pid: int, words: tuple[str, ...]) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return False
    return all(word in line for word in words)


@contextlib.contextmanager
def running(service: Service) -> Iterator[Service]:
    """Start a service, and end it whatever happens."""
    service.start()
    try:
        yield service
    finally:
        for client in service.clients:
            client.close()
        service.kill()


class Annotator:
    """A client that repeats every call, under one idempotency key, until it is answered.

    Args:
        service: the service.
        project: its project.
        name: who labels.
        patience: seconds after which a call gives up.
    """

    def __init__(
        self, service: Service, project: str, name: str, *, patience: float = 120.0
    ) -> None:
        self.service, self.project, self.name, self.patience = service, project, name, patience
        self.http = httpx.Client(
            base_url=service.url, timeout=30.0, headers={"Authorization": f"Bearer {service.token}"}
        )
        service.clients.append(self.http)
        self.accepted: dict[str, str] = {}
        self.failures = 0

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the answer's body."""
        headers = {"Idempotency-Key": uuid.uuid4().hex} if method == "POST" else {}
        until = time.monotonic() + self.patience
        while True:
            answer = None
            with contextlib.suppress(httpx.HTTPError):
                answer = self.http.request(method, path, json=body, headers=headers)
            if answer is not None and not _again(answer):
                assert answer.is_success, (method, path, answer.status_code, answer.text)
                return answer.json() if answer.content else None
            self.failures += 1
            shown = None if answer is None else (answer.status_code, answer.text)
            assert time.monotonic() < until, (method, path, shown)
            time.sleep(0.2)

    def project_path(self, rest: str) -> str:
        """Return a path below the project's."""
        return f"/v1/projects/{self.project}{rest}"

    def label_some(self, truth: dict[str, str], count: int = 5) -> int:
        """Lease up to ``count`` items, label them, and return how many were accepted."""
        body = {"annotator": self.name, "count": count}
        leases = self.call("POST", self.project_path("/leases"), body)["leases"]
        if not leases:
            return 0
        labels = [
            {
                "item": lease["item"]["id"],
                "label": truth[lease["item"]["id"]],
                "annotator": self.name,
                "lease_id": lease["lease_id"],
            }
            for lease in leases
        ]
        results = self.call("POST", self.project_path("/labels"), {"labels": labels})["results"]
        for label, result in zip(labels, results, strict=True):
            if result["status"] in ("accepted", "duplicate", "updated"):
                self.accepted[label["item"]] = label["label"]
        return sum(r["status"] == "accepted" for r in results)

    def label_until_round(
        self, truth: dict[str, str], last: int, *, seconds: float = 300.0
    ) -> None:
        """Label what is offered until a round has offered its batch."""
        until = time.monotonic() + seconds
        while not self.has_offered(last):
            assert time.monotonic() < until, self.call("GET", "/v1/jobs")
            if not self.label_some(truth):
                time.sleep(0.3)

    def has_offered(self, round: int) -> bool:
        """Return whether a round has chosen its batch."""
        rounds = self.call("GET", self.project_path("/rounds"))["rounds"]
        return any(r["n"] == round and r["stage"] in ("label", "done") for r in rounds)


def digits_truth() -> dict[str, str]:
    """Return the label of every item of the built-in pool of digits."""
    from rayal.pool.readers.builtin import builtin

    found: dict[str, str] = {}
    for source in builtin("digits"):
        for rows in source.read():
            found |= zip(rows.ids, (str(label) for label in rows.labels or ()), strict=True)
    assert len(found) == len(load_digits().target)
    return found
