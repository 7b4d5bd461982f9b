"""The runner: has the jobs of a storage root done, each in a process of its own.

It needs nobody to remember anything: jobs are in the ledger. What a runner that died left running
is taken up by the next one, at once where it was on this host, else when it has been silent for
long enough. Its children are niced, so that the service answers while rounds train, and end with
it, however it ends.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rayal.errors import RayalError
from rayal.ledger import JobRow, Ledger
from rayal.service.content import ContentLimits
from rayal.service.inbox import clean
from rayal.service.uris import Prefixes
from rayal.service.worker.due import Due
from rayal.service.worker.kinds import KINDS
from rayal.service.worker.options import WorkOptions
from rayal.service.worker.process import STOPPED

ATTEMPTS = 3  # after which a job whose process dies has failed
STALE_SECONDS = 60.0  # of silence, after which a job is taken from its owner
_CLEAN_SECONDS = 600.0
_STOP_SECONDS = 8.0  # for children to end by themselves
log = logging.getLogger("rayal.service.worker.runner")


@dataclass(frozen=True)
class _Child:
    job: JobRow
    owner: str
    process: subprocess.Popen[bytes]


class Runner:
    """Does the jobs of a storage root until it is told to stop.

    Args:
        root: the storage root.
        jobs: the number of jobs at once; by default one less than the cores, and at least one.
        executor: where rounds work: local | ray.
        address: the address of the Ray cluster.
        poll: seconds between two looks at the ledger.
        niceness: added to that of this process, for the children.
        prefixes: below which uris of staged items may lie.
        limits: the largest images and texts that are taken.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        jobs: int | None = None,
        executor: str = "local",
        address: str | None = None,
        poll: float = 0.5,
        niceness: int = 10,
        prefixes: Prefixes | None = None,
        limits: ContentLimits | None = None,
    ) -> None:
        self._root = Path(root)
        self._jobs = jobs or max(1, len(os.sched_getaffinity(0)) - 1)
        self._poll, self._niceness = poll, niceness
        self._options = WorkOptions(
            executor, address, prefixes or Prefixes(), limits or ContentLimits(), os.getpid()
        )
        self._children: list[_Child] = []
        self._begun = 0
        self._last: dict[str, float] = {}

    def run(self, stop: threading.Event) -> None:
        """Do jobs until ``stop`` is set; then those at work wait again, within 10 s.

        What goes wrong in one look at the ledger is logged, and looked at again later.
        """
        with Ledger(self._root, create=False) as ledger:
            due = Due(ledger)
            try:
                self._take_up(ledger)
                while not stop.wait(self._poll):
                    try:
                        self._look(ledger, due)
                    except Exception:
                        log.exception("the jobs of %s could not be looked at", self._root)
            finally:
                self._end(ledger)

    def _look(self, ledger: Ledger, due: Due) -> None:
        """Reap what has ended, ask for rounds that are due, and begin what waits."""
        self._reap(ledger)
        for project in due.projects():
            ledger.add_job(project, "round", {})
        if ledger.jobs(state="queued", limit=1) or self._is_time("stale", STALE_SECONDS / 6):
            while len(self._children) < self._jobs and self._begin(ledger):
                pass
        if self._is_time("clean", _CLEAN_SECONDS):
            wanted = [*ledger.jobs(state="queued"), *ledger.jobs(state="running")]
            clean(self._root, keep=[str(job.args.get("file")) for job in wanted])

    def _is_time(self, what: str, seconds: float) -> bool:
        """Return whether something was last done that long ago, and if so note it as done now."""
        now = time.monotonic()
        due = now - self._last.get(what, -math.inf) >= seconds
        self._last |= {what: now} if due else {}
        return due

    def _begin(self, ledger: Ledger) -> bool:
        """Begin the next job, if one waits."""
        owner = _owner(self._begun)
        job = ledger.claim_job(owner, kinds=list(KINDS), stale=STALE_SECONDS)
        if job is None:
            return False
        self._begun += 1
        command = [
            sys.executable,
            "-m",
            "rayal.service.worker.process",
            str(self._root),
            job.job,
            owner,
        ]
        threads = {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [*command, self._options.to_json()],
            env={**os.environ, **threads},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a terminal's interrupt is for the runner, which ends it
        )
        with suppress(OSError):
            level = os.getpriority(os.PRIO_PROCESS, 0) + self._niceness
            os.setpriority(os.PRIO_PROCESS, process.pid, min(level, 19))
        log.info("job %s: %s of project %s, attempt %d", *_named(job), job.attempts)
        self._children.append(_Child(job, owner, process))
        return True

    def _reap(self, ledger: Ledger) -> None:
        """Look at the children that have ended: a job whose process died waits again."""
        for child in list(self._children):
            status = child.process.poll()
            if status is None:
                continue
            self._children.remove(child)
            if status in (0, STOPPED):
                log.info("job %s: %s of project %s has ended", *_named(child.job))
                ledger.release_jobs(child.owner)
            elif child.job.attempts < ATTEMPTS:
                log.warning("job %s: its process ended with %d; again", child.job.job, status)
                ledger.release_jobs(child.owner)
            else:
                why = f"signal {-status}" if status < 0 else f"status {status}"
                ledger.fail_job(
                    child.job.job,
                    child.owner,
                    f"the process ended by {why}, as {ATTEMPTS - 1} before; look at the service's "
                    "log and at this machine's memory, then retry the job",
                )

    def _take_up(self, ledger: Ledger) -> None:
        """Let the jobs wait again whose runner was on this host and is gone."""
        for job in ledger.jobs(state="running"):
            if job.owner is not None and _is_gone(job.owner):
                log.info("job %s: %s of project %s was left behind", *_named(job))
                ledger.release_jobs(job.owner)

    def _end(self, ledger: Ledger) -> None:
        for child in self._children:
            child.process.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, deadline - time.monotonic()))
        for child in self._children:
            child.process.kill()
            child.process.wait()
            with suppress(RayalError):
                ledger.release_jobs(child.owner)
        self._children.clear()


def _owner(number: int) -> str:
    """Return a name for the owner of a job, which tells where its runner is."""
    return f"{socket.gethostname()} {os.getpid()} {_born(os.getpid())} {number}"


def _is_gone(owner: str) -> bool:
    """Return whether an owner's runner was on this host and has ended."""
    parts = owner.split(" ")
    if len(parts) != 4 or parts[0] != socket.gethostname():
        return False
    return _born(int(parts[1])) != parts[2]


def _born(pid: int) -> str:
    """Return when a process was started, in ticks since the host was; none if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "none"
    return text.rpartition(")")[2].split()[19]


def _named(job: JobRow) -> tuple[str, str, str]:
    return job.job, job.kind, job.project


def main(argv: Sequence[str]) -> int:
    """Run until SIGTERM or SIGINT: ``python -m rayal.service.worker.runner ROOT [JOBS]``."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level="INFO")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    jobs = int(argv[1]) if len(argv) > 1 else None
    Runner(argv[0], jobs=jobs).run(stop)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
