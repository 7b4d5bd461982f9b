"""A scan on Ray beside the plain loop over the same parts: whole job and busy time per worker.

python tests/acceptance/scan_overhead.py ROOT [PASSES]     ROOT has a pool fashion-mnist
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from rayal.engine.executor import RayOptions
from rayal.engine.scan import Scan
from rayal.engine.spec import ScanOptions
from rayal.engine.tasks import task_of
from rayal.learners import Supervised
from rayal.models import build_network
from rayal.models.committee import Committee
from rayal.pool.reader import Pool
from rayal.ray_executor.cluster import connect
from rayal.registry import strategies


def scan_of(root: Path, members: int) -> Scan:
    """Return a scan of an untrained ensemble: its cost is that of a trained one."""
    pool = Pool.open(root, "fashion-mnist")
    task = task_of(pool, {"kind": "image"})
    shape, n = task.input_shape, task.n_outputs
    nets = tuple(
        torch.nn.ModuleDict(
            {"task": build_network("small_cnn", {}, input_shape=shape, n_outputs=n, seed=m)}
        ).eval()
        for m in range(members)
    )
    statistics = {"mean": torch.zeros(1), "std": torch.ones(1)}
    committee = Committee(nets, task, statistics, f"bench{members}", 0, 0)
    strategy = strategies["ensemble_bald"](members=members)
    return Scan(pool, committee, strategy, Supervised(), ScanOptions())


def plain(root: Path, members: int, share: int, of: int) -> float:
    """Scan every ``of``-th part with one thread and return the seconds."""
    torch.set_num_threads(1)
    scan = scan_of(root, members)
    parts = sorted(scan.pool.parts_of("pool"), key=lambda part: (-part.rows, part.part))
    started = time.perf_counter()
    for part in parts[share::of]:
        scan.part(part)
    return time.perf_counter() - started


def beside(root: str, members: int, of: int) -> float:
    """Return the seconds until ``of`` plain processes have scanned all parts between them."""
    argv = [sys.executable, __file__, root, str(members)]
    processes = [
        subprocess.Popen([*argv, str(n), str(of)], stdout=subprocess.PIPE, text=True)
        for n in range(of)
    ]
    return max(float(process.communicate()[0]) for process in processes)


def main() -> None:
    root, members = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10
    if len(sys.argv) > 3:
        seconds = plain(Path(root), members, int(sys.argv[3]), int(sys.argv[4]))
        sys.stdout.write(f"{seconds}\n")
        return
    cores = os.cpu_count() or 1
    figures: dict[str, float] = {"members": members, "cores": cores}
    figures["plain_one_process_s"] = beside(root, members, 1)
    figures["plain_all_cores_s"] = beside(root, members, cores)
    scan = scan_of(Path(root), members)
    started = time.perf_counter()
    with connect(RayOptions()) as executor:
        figures["ray_start_s"] = time.perf_counter() - started
        for name in ("ray_first_s", "ray_second_s"):
            began = time.perf_counter()
            parts = scan.pool.parts_of("pool")
            list(executor.map_parts(scan, parts, threads=1, report=lambda rows: None))
            figures[name] = time.perf_counter() - began
    figures["ratio_first"] = figures["ray_first_s"] / figures["plain_all_cores_s"]
    figures["ratio_second"] = figures["ray_second_s"] / figures["plain_all_cores_s"]
    sys.stdout.write(json.dumps({k: round(v, 3) for k, v in figures.items()}) + "\n")


if __name__ == "__main__":
    main()
