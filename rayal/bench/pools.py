"""A whole pool through the scanner, in this process and on Ray, beside a plain loop."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rayal.bench import data
from rayal.bench.data import Subject, subject
from rayal.bench.rows import Context, Measured
from rayal.engine.executor import RayOptions
from rayal.engine.scan import Scan
from rayal.engine.spec import ScanOptions
from rayal.learners import Supervised
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.ray_executor.open import open_executor
from rayal.registry import strategies
from rayal.selection.threads import torch_threads

_SLACK, _START = 1.1, 10.0  # the whole job: 1.1 x the plain loop + 10 s
_MEMBERS = 10  # of the ensemble: work enough that starting does not weigh most


@dataclass(frozen=True)
class Job:
    """A pool on disk, an ensemble, and the same images in memory."""

    scan: Scan
    net: Subject
    x: Tensor


def pools(context: Context) -> Iterator[tuple[str, Measured]]:
    """Measure the scan of a pool by each executor; seconds of the clock, once each."""
    rows = context.sizes.scan_rows
    names = ("pool-local", "pool-ray")
    if not rows:
        yield from ((name, Measured(missing="left out of --quick")) for name in names)
        return
    with tempfile.TemporaryDirectory(prefix="rayal-bench-") as folder:
        job = pool_job(Path(folder), rows, context)
        cores = os.cpu_count() or 1
        for name, threads in (("pool-local", 1), ("pool-ray", cores)):
            if context.wants(name):
                yield name, _compared(job, name.removeprefix("pool-"), threads)


def _compared(job: Job, executor: str, threads: int) -> Measured:
    plain = _seconds(partial(plain_pool, job), threads)
    mine = _seconds(partial(scanned, job, executor), 1)
    return Measured(
        seconds=[mine],
        peer_seconds=[_SLACK * plain + _START],
        note=f"plain loop {plain:.1f} s at {threads} thread(s), {_MEMBERS} members; one run, "
        "seconds of the clock, with start and end of the executor",
        figures={"plain_seconds": plain, "rows_per_second": len(job.x) / mine},
    )


def pool_job(folder: Path, rows: int, context: Context) -> Job:
    """Return a pool of images under a folder, and what scans it."""
    x, classes = data.images(rows, 1, 28, context.seed)
    raw = (x * 255).round().to(torch.uint8)
    pool = Pool.ingest(folder, "bench", [array_source(raw[:, 0].numpy(), classes.numpy())])
    net = subject("cnn", 64, context.sizes.train_steps, context.seed)
    one = net.committee
    committee = replace(one, nets=one.nets * _MEMBERS, hash="bench-pool", members=())
    strategy = strategies["ensemble_bald"](members=_MEMBERS)
    return Job(Scan(pool, committee, strategy, Supervised(), ScanOptions()), net, raw)


def plain_pool(job: Job) -> Tensor:
    """Return the mean probabilities ``[N, C]`` of the ensemble, by a loop over images in memory."""
    committee = job.scan.committee
    parts = []
    with torch.inference_mode():
        for start in range(0, len(job.x), 64):
            raw = job.x[start : start + 64].float().div_(255)
            x = committee.task.transform(raw, committee.statistics)
            x = x.contiguous(memory_format=torch.channels_last)
            each = [job.net.fast(x).softmax(dim=1) for _ in range(committee.size)]
            parts.append(torch.stack(each).mean(dim=0))
    return torch.cat(parts)


def scanned(job: Job, executor: str) -> int:
    """Return the rows that an executor scanned, from opening it to closing it."""
    root = Path(job.scan.pool.root)
    with open_executor(executor, RayOptions(), members=0, shared=root) as opened:
        parts = job.scan.pool.parts_of("pool")
        shards = opened.map_parts(job.scan, parts, threads=1, report=lambda rows: None)
        return sum(part.rows for part in shards)


def _seconds(run: Callable[[], Any], threads: int) -> float:
    with torch_threads(threads):
        began = time.perf_counter()
        run()
        return time.perf_counter() - began
