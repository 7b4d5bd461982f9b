"""One job in a process of its own.

``python -m rayal.service.worker.process ROOT JOB OWNER [OPTIONS]`` is what the runner starts.

The work tells how far it is through a thread that beats in the ledger, whatever the work itself is
busy with. What a job does is idempotent: stopped or killed anywhere and done again, it goes on
where it was.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

from rayal.errors import RayalError
from rayal.ledger import JobRow, Ledger
from rayal.service.worker.options import WorkOptions

BEAT_SECONDS = 2.0
TOLD_SECONDS = 1.0  # between two beats at least
GRACE_SECONDS = 5.0  # for the work to end by itself, once it must stop
STOPPED = 3  # exit status of a process that was told to stop
_TEXT = 2000  # characters of an error that clients see
_PDEATHSIG = 1
log = logging.getLogger("rayal.service.worker.process")


class Stopped(BaseException):
    """The job was cancelled, or is another's now, or the process is to end."""


class Heart:
    """Beats for a job from a thread of its own, until the work is done; a context manager.

    Args:
        ledger: the storage root's ledger.
        job: the job's id.
        owner: the runner that works on it.
        stop: called once, in the thread, where the work must stop.
    """

    def __init__(
        self, ledger: Ledger, job: str, owner: str, stop: Callable[[], None] | None = None
    ) -> None:
        self._ledger, self._job, self._owner = ledger, job, owner
        self._stop = stop
        self._told: Mapping[str, Any] = {}
        self._news = threading.Event()
        self._over = threading.Event()
        self.lost = False
        self._thread = threading.Thread(target=self._run, name=f"heart of {job}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._news.set()
        self._thread.join()

    def tell(self, progress: Mapping[str, Any]) -> None:
        """Take note of how far the work is; raises Stopped where it must not go on."""
        if self.lost:
            raise Stopped
        self._told = dict(progress)
        self._news.set()

    def _run(self) -> None:
        while not self._over.is_set():
            self._beat()
            if self.lost:
                return
            self._over.wait(TOLD_SECONDS)
            self._news.wait(BEAT_SECONDS - TOLD_SECONDS)
            self._news.clear()

    def _beat(self) -> None:
        try:
            self.lost = not self._ledger.beat(self._job, self._owner, self._told)
        except Exception as error:  # the next beat may get through; else another takes the job
            log.warning("job %s: no beat: %s", self._job, error)
            return
        if self.lost and self._stop is not None and not self._over.is_set():
            self._stop()


def perform(
    ledger: Ledger,
    job: JobRow,
    owner: str,
    options: WorkOptions | None = None,
    *,
    stop: Callable[[], None] | None = None,
) -> bool:
    """Do a claimed job, and record what it gave or why it failed; return whether it is done.

    Args:
        ledger: the storage root's ledger.
        job: the job as it was claimed.
        owner: the runner that claimed it.
        options: the resources that it may use.
        stop: called in another thread where the job was cancelled or is another's by now.

    Raises:
        Stopped: the job must not be gone on with.
    """
    from rayal.service.worker.kinds import KINDS

    try:
        with Heart(ledger, job.job, owner, stop) as heart:
            result = KINDS[job.kind](ledger, job, options or WorkOptions(), heart.tell)
        return ledger.finish_job(job.job, owner, result)
    except Exception as error:
        log.exception("job %s (%s of project %s) failed", job.job, job.kind, job.project)
        ledger.fail_job(job.job, owner, told(error))
        return False


def told(error: BaseException) -> str:
    """Return an error as clients see it: its text, without where in the code it came from."""
    text = str(error) if isinstance(error, RayalError) else f"{type(error).__name__}: {error}"
    return text if len(text) <= _TEXT else f"{text[:_TEXT]} …"


def main(argv: Sequence[str]) -> int:
    """Do one job; return 0 when it is done or recorded as failed, 3 when told to stop."""
    signal.signal(signal.SIGTERM, _raise_stopped)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level="INFO")
    root, name, owner, *more = argv
    options = WorkOptions.from_json(more[0]) if more else WorkOptions()
    if options.parent is not None:
        _die_with(options.parent)
    try:
        with Ledger(Path(root), create=False) as ledger:
            job = ledger.job(name)
            if (job.state, job.owner) != ("running", owner):
                raise Stopped
            perform(ledger, job, owner, options, stop=_end)
    except Stopped:
        log.info("job %s: stopped", name)
        return STOPPED
    return 0


def _raise_stopped(number: int, frame: FrameType | None) -> None:
    raise Stopped


def _end() -> None:
    """End this process: its work by an exception, itself where that does not get through."""
    last = threading.Timer(GRACE_SECONDS, os._exit, (STOPPED,))
    last.daemon = True
    last.start()
    os.kill(os.getpid(), signal.SIGTERM)


def _die_with(parent: int) -> None:
    """Let the system kill this process when the one that started it ends, however it ends."""
    import ctypes

    with suppress(OSError, AttributeError):  # not Linux: the beat finds out
        ctypes.CDLL(None, use_errno=True).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before that was set
        os._exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
