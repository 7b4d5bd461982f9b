"""Run a command and print what it took: wall time, CPU busy share, peak memory of all processes.

python tests/acceptance/measure.py [--json FILE] COMMAND…

Memory is the proportional set size over the whole process tree (shared pages count once), and the
anonymous part of the command's own process, which page cache and shared memory do not swell.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
EVERY = 0.3


def children(root: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += parents.get(pid, [])
    return found


class Tree(threading.Thread):
    """Samples a process tree until it is told to stop."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self.root, self.over = root, threading.Event()
        self.cpu: dict[int, float] = {}
        self.peak = self.own = 0

    def run(self) -> None:
        while not self.over.wait(EVERY):
            total = 0
            for pid in children(self.root):
                try:
                    total += self.sample(pid)
                except (OSError, ProcessLookupError):
                    continue
            self.peak = max(self.peak, total)

    def sample(self, pid: int) -> int:
        proc = Path(f"/proc/{pid}")
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        self.cpu[pid] = (int(fields[11]) + int(fields[12])) / TICKS
        lines = (proc / "smaps_rollup").read_text().splitlines()[1:]
        sizes = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in lines)}
        if pid == self.root:
            self.own = max(self.own, sizes["Anonymous"])
        return sizes["Pss"]


def measure(command: list[str]) -> dict[str, float]:
    started = time.perf_counter()
    process = subprocess.Popen(command)
    tree = Tree(process.pid)
    tree.start()
    code = process.wait()
    wall = time.perf_counter() - started
    tree.over.set()
    tree.join()
    busy = sum(tree.cpu.values())
    return {
        "exit": code,
        "wall_s": round(wall, 1),
        "cpu_s": round(busy, 1),
        "busy_share": round(busy / wall / (os.cpu_count() or 1), 3),
        "peak_mib": round(tree.peak / 1024),
        "own_anonymous_mib": round(tree.own / 1024),
    }


def main() -> None:
    arguments = sys.argv[1:]
    file = None
    if arguments[0] == "--json":
        file, arguments = arguments[1], arguments[2:]
    figures = measure(arguments)
    text = json.dumps(figures)
    sys.stderr.write(text + "\n")
    if file is not None:
        Path(file).write_text(text + "\n")
    sys.exit(int(figures["exit"]))


if __name__ == "__main__":
    main()
