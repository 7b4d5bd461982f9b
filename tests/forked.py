"""Python processes forked from one that has imported torch: each starts in milliseconds.

``run`` and ``start`` take what would follow ``python`` on a command line: ``-c CODE``,
``-m MODULE`` or a file, and arguments. The child has its own environment, folder and standard
files, ends as an interpreter ends, and can be killed. All children of one parent hash strings
alike, and unlike this process. Tests of what an import loads start real processes.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

PRELOADED = (
    "torch", "torch._dynamo", "torchvision", "sklearn.datasets", "sqlalchemy.dialects.sqlite",
    "matplotlib.backends.backend_agg", "matplotlib.figure", "pyarrow.parquet",
    "rayal.cli.app", "rayal.cli.local", "rayal.evaluation.protocol", "rayal.evaluation.report",
    "rayal.service.worker.process", "rayal.engine.project", "rayal.selection",
)  # fmt: skip
LONGEST = 200_000  # bytes of a request


class Forked:
    """A running child, used as ``subprocess.Popen`` is.

    Args:
        argv: what would follow ``python``.
        env: its whole environment; that of this process by default.
        cwd: its working folder.
        files: descriptors of its standard input, output and errors.
    """

    def __init__(
        self,
        argv: tuple[str, ...],
        env: Mapping[str, str] | None,
        cwd: Path | None,
        files: tuple[int, int, int],
    ) -> None:
        answers, answer = os.pipe()
        request = {"argv": argv, "env": dict(env or os.environ), "cwd": str(cwd or Path.cwd())}
        socket.send_fds(_server(), [json.dumps(request).encode()], [*files, answer])
        os.close(answer)
        self._answers: TextIO = open(answers, encoding="utf-8")  # noqa: SIM115
        self.args = ("python", *argv)
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None
        self.stdin: TextIO | None = None
        self.stdout: TextIO | None = None

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._status(0.0)

    def wait(self, timeout: float = 300.0) -> int:
        """Wait for its end, close its pipes, and return the exit status; a signal's is negative."""
        status = self._status(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self) -> str:
        """Close its input, and return what it wrote until its end."""
        assert self.stdin is not None
        assert self.stdout is not None
        self.stdin.close()
        text = self.stdout.read()
        self.wait()
        return text

    def _status(self, timeout: float) -> int | None:
        if self.returncode is None and select.select([self._answers], [], [], timeout)[0]:
            self.returncode = int(self._answers.readline())
            for file in (self._answers, self.stdin, self.stdout):
                if file is not None:
                    file.close()
        return self.returncode


def start(
    *argv: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Forked:
    """Start a process whose standard input and output are pipes; it shares this one's errors."""
    given, stdin = os.pipe()
    stdout, written = os.pipe()
    child = Forked(tuple(map(str, argv)), env, cwd, (given, written, 2))
    os.close(given)
    os.close(written)
    child.stdin = open(stdin, "w", encoding="utf-8")  # noqa: SIM115
    child.stdout = open(stdout, encoding="utf-8")  # noqa: SIM115
    return child


def run(
    *argv: str | Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a process to its end, and return its status and texts.

    Args:
        argv: what would follow ``python``.
        env: its whole environment; that of this process by default.
        cwd: its working folder.
        check: whether a status other than 0 fails, with what it wrote to its errors.
    """
    with (
        open(os.devnull) as given,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        files = (given.fileno(), out.fileno(), err.fileno())
        child = Forked(tuple(map(str, argv)), env, cwd, files)
        status = child.wait()
        texts = [file.seek(0) or file.read() for file in (out, err)]
    done = subprocess.CompletedProcess(list(child.args), status, *map(str, texts))
    assert not check or status == 0, f"{done.args} ended with {status}:\n{done.stderr}"
    return done


@functools.cache
def _server() -> socket.socket:
    """Return the line to the parent of all children, started at the first use."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {k: v for k, v in os.environ.items() if k != "RAYAL_FAILPOINT"}
    process = subprocess.Popen(
        [sys.executable, __file__, str(there.fileno())],
        pass_fds=[there.fileno()],
        env={**environment, "OMP_NUM_THREADS": "1"},
    )
    there.close()

    def end() -> None:
        here.close()
        process.wait()

    atexit.register(end)
    return here


def _serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork a child for every request: return the request in it, and None at the end of all."""
    running: dict[int, tuple[int, int]] = {}  # descriptor of a process to its id and answers
    while True:
        for ready in select.select([control.fileno(), *running], [], [])[0]:
            if ready != control.fileno():
                pid, answer = running.pop(ready)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                _tell(answer, status)
                os.close(answer)
                os.close(ready)
                continue
            message, files, _, _ = socket.recv_fds(control, LONGEST, 4)
            if not message:
                return None
            pid = os.fork()
            if pid == 0:
                for number, (_, other) in running.items():
                    os.close(number)
                    os.close(other)
                control.close()
                return _own(json.loads(message), files)
            _tell(files[3], pid)
            running[os.pidfd_open(pid)] = (pid, files[3])
            for number in files[:3]:
                os.close(number)


def _tell(answer: int, number: int) -> None:
    """Send a number; nobody may be left to hear it."""
    try:
        os.write(answer, f"{number}\n".encode())
    except BrokenPipeError:
        return


def _own(request: dict[str, Any], files: list[int]) -> dict[str, Any]:
    """Give the child what is its own."""
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    return request


def _execute(argv: list[str]) -> None:
    """Run what would follow ``python``."""
    kind, *rest = argv
    if kind == "-m":
        sys.argv, sys.path[0] = rest, os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    else:
        sys.argv, sys.path[0] = argv, str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


def _threads() -> set[str]:
    """Return the names of this process's threads; Python's own is the first."""
    tasks = sorted(Path("/proc/self/task").iterdir(), key=lambda task: int(task.name))
    return {(task / "comm").read_text().strip() for task in tasks[1:]}


def main() -> None:
    """Import what takes time, and serve; what is returned to in a child is its work."""
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)
    others = _threads() - {"jemalloc_bg_thd"}  # jemalloc's stops and goes on at a fork
    assert not others, f"the threads {others} run, and a forked child would be without them"
    gc.freeze()  # else each child's collector would copy what the imports made
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    _end(0 if request is None else _status(request["argv"]))


def _status(argv: list[str]) -> int:
    """Return the exit status of what would follow ``python``."""
    try:
        _execute(argv)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)  # noqa: T201
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(status: int) -> None:
    """End as an interpreter does, but for taking its modules apart, which takes a second."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
