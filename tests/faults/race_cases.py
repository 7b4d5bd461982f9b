"""Real processes that are started at once, and wait for each other where a test says so.

They come from one parent that has loaded rayal and torch already, so that one more costs little.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
LOADED = ("torch._dynamo", "rayal.cli.app", "rayal.evaluation.protocol", "rayal.strategies")
CONTEXT.set_forkserver_preload([*LOADED])  # packages alone: the parent has the path of no test
PATIENCE = 120.0  # seconds until a process that does not end is given up


@dataclass(frozen=True)
class Running:
    """A process that was started, and where it tells what it ended with."""

    process: ForkServerProcess
    log: Path

    def end(self) -> tuple[int | None, str]:
        """Wait for its end, and return the exit code with what it wrote."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        return self.process.exitcode, self.log.read_text() if self.log.exists() else ""


def start(work: Callable[..., None], *given: Any, log: Path, **environment: str) -> Running:
    """Start ``work(*given)`` in a process of its own, with more variables in its environment."""
    process = CONTEXT.Process(target=_main, args=(work, given, log, environment))
    process.start()
    return Running(process, log)


def wait_for(file: Path, running: Running) -> None:
    """Wait until a process has made a file; an early end of it is an error."""
    deadline = time.monotonic() + PATIENCE
    while not file.exists():
        assert running.process.is_alive(), running.end()
        assert time.monotonic() < deadline, f"{file} was not made"
        time.sleep(0.005)


def _main(
    work: Callable[..., None], given: tuple[Any, ...], log: Path, environment: dict[str, str]
) -> None:
    os.environ.update(environment)
    with log.open("w") as out:
        sys.stdout = sys.stderr = out
        try:
            work(*given)
        except SystemExit:
            raise
        except BaseException:
            traceback.print_exc(file=out)
            raise SystemExit(1) from None
