"""Peak memory of one kernel in a process of its own: ``python -m rayal.bench.child``.

The child loads arrays that this process wrote, says that it is ready, waits for a word, runs the
kernel, and ends. What it holds above the moment before is read from /proc: anonymous memory and
shared memory of the process and its children; pages of mapped files, which the system may drop,
do not count.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayal.bench import peers
from rayal.selection import joint_entropy, k_center, kmeans_plus_plus

_EVERY = 0.002  # seconds between two looks
_NO_PROC = "memory not measured: there is no /proc on this system"


@dataclass(frozen=True)
class Peak:
    """The most memory that a kernel held.

    Attributes:
        gigabytes: 10^9 bytes above its input; None where it cannot be measured.
        note: the way in which it was measured.
    """

    gigabytes: float | None
    note: str


def peak(kernel: str, arrays: Mapping[str, Any], **numbers: int) -> Peak:
    """Return the peak memory of a kernel beyond its input.

    Args:
        kernel: k_center, kmeans_plus_plus, joint_entropy or redux.
        arrays: its arrays, in order.
        numbers: k, and draws of the last two.

    Raises:
        RuntimeError: the child failed; the message ends with its error.
    """
    if not Path("/proc/self/status").exists():
        return Peak(None, _NO_PROC)
    with tempfile.TemporaryDirectory(prefix="rayal-bench-") as folder:
        for name, array in arrays.items():
            np.save(Path(folder) / f"{name}.npy", array)
        what = json.dumps({"kernel": kernel, "arrays": list(arrays), "numbers": numbers})
        process = subprocess.Popen(
            [sys.executable, "-m", "rayal.bench.child", folder, what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return _watched(process)


def _watched(process: subprocess.Popen[str]) -> Peak:
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdout.readline()
        before = most = held(process.pid)
        with suppress(BrokenPipeError):  # it failed: the code below says how
            process.stdin.write("go\n")
            process.stdin.flush()
        while process.poll() is None:
            most = max(most, held(process.pid))
            time.sleep(_EVERY)
        assert process.stderr is not None
        said = process.stderr.read()
    if process.returncode:
        raise RuntimeError(f"the memory of a kernel could not be measured: {said[-500:]}")
    return Peak((most - before) / 1e9, "memory: anonymous and shared, above the input, in a child")


def held(pid: int) -> int:
    """Return the bytes of anonymous and shared memory of a process and its children."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name in ("RssAnon", "RssShmem"):
                total += int(rest.split()[0]) * 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, ProcessLookupError):
        return total
    return total + sum(held(int(child)) for child in children)


_KERNELS: dict[str, Callable[..., Any]] = {
    "k_center": k_center,
    "kmeans_plus_plus": kmeans_plus_plus,
    "joint_entropy": joint_entropy,
    "redux": lambda log_probs, k, draws: peers.redux(log_probs, k, draws)(),
}


def main() -> None:
    """Run one kernel between two words on standard input and output."""
    folder, what = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(1)
    if what["kernel"] == "redux":
        peers.missing("batchbald_redux")  # imports it
    arrays = [torch.from_numpy(np.load(Path(folder) / f"{n}.npy")) for n in what["arrays"]]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    _KERNELS[what["kernel"]](*arrays, **what["numbers"])


if __name__ == "__main__":
    main()
