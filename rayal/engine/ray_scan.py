"""Parts over Ray Data: one row a part, mapped by stateless tasks that keep the job at hand.

Tasks instead of actors, since a task's process stays warm: a repeated small pass costs a fraction
of a second, an actor pool many seconds each time. Where a GPU does the forward passes, decoding
runs apart on cores and the GPU's actors get decoded rows.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset

from rayal.engine.executor import RayOptions
from rayal.engine.member import torch_threads
from rayal.engine.pool import Part
from rayal.engine.ray_crew import cause_of
from rayal.errors import ClusterError, WorkerError

_KEPT = 2  # jobs that a process holds: that of the scan, and that of the evaluation
_DECODED_BYTES = 32 << 20  # decoded rows that travel at once
_JOBS: dict[str, Any] = {}  # the jobs of this process, the latest one last
_Arrays = dict[str, npt.NDArray[Any]]


def map_parts(
    options: RayOptions,
    job: Any,
    parts: Sequence[Part],
    *,
    threads: int,
    report: Callable[[int], None],
) -> Iterator[Any]:
    """Yield the job's result for each part, as it is done, in any order.

    Args:
        options: how Ray is used.
        job: what is done with a part; it travels once to each node.
        parts: the parts; the largest are begun first.
        threads: torch threads of a worker.
        report: called with the rows of each finished part.

    Raises:
        ClusterError: the cluster has not the cores or GPUs of one worker.
        WorkerError: a part's worker was lost again and again, or nothing moved.
        RayalError: what the job itself raised.
    """
    if not parts:
        return
    ordered = sorted(parts, key=lambda part: (-part.rows, part.part))
    rows = {part.part: part.rows for part in parts}
    staged = options.staged if options.staged is not None else options.scanner_gpus > 0
    run = _staged if staged and hasattr(job, "forward") else _fused
    try:
        for name, result in run(options, [ray.put(job)], job, ordered, threads):
            report(rows[name])
            yield result
    except ray.exceptions.RayError as error:
        raise cause_of(error) from None
    except TimeoutError as error:
        raise WorkerError(f"the scan stopped: {error}; run the same command again") from None


def warm_up(options: RayOptions) -> None:
    """Start Ray Data's own actors and the scanning processes while the first model trains."""
    made = ray.data.from_items([{"part": b""}] * 2, override_num_blocks=2).map_batches(
        _loaded, batch_size=1, batch_format="pyarrow", num_cpus=options.scanner_cpus or 1.0
    )
    for _ in _rows(made, options):
        pass


def _loaded(batch: pa.Table) -> pa.Table:
    """Have what scanning needs loaded in this process."""
    return batch


# ---- one stage: a task decodes, runs the network and writes -------------------------------------


def _fused(
    options: RayOptions, refs: list[Any], job: Any, parts: Sequence[Part], threads: int
) -> Iterator[tuple[str, Any]]:
    cpus = options.scanner_cpus or threads
    _check(options, cpus, "a scanning worker")
    made = _dataset(parts).map_batches(
        _scan,
        batch_size=1,
        batch_format="pyarrow",
        fn_args=(refs, threads, options.restarts),
        num_cpus=cpus,
        num_gpus=options.scanner_gpus or None,
    )
    for table in _rows(made, options):
        for name, result in zip(table["part"].to_pylist(), table["made"].to_pylist(), strict=True):
            yield name, pickle.loads(result)


def _scan(batch: pa.Table, refs: list[Any], threads: int, restarts: int) -> pa.Table:
    """Do the job for a part; run by a Ray Data task."""
    _bounded(restarts)
    parts = [pickle.loads(value) for value in batch["part"].to_pylist()]
    with torch_threads(threads):
        made = [pickle.dumps(_job(refs).part(part)) for part in parts]
    return pa.table({"part": [part.part for part in parts], "made": pa.array(made, pa.binary())})


def _bounded(restarts: int) -> None:
    """Raise WorkerError if the worker of this task was lost too often; Ray Data never gives up."""
    attempt = ray._private.worker.global_worker.core_worker.get_current_task_attempt_number()
    if attempt > restarts:
        raise WorkerError(
            f"the workers of one part were lost {attempt} times, {restarts} are allowed "
            "(ray.restarts); look at the memory of the nodes, and run the same command again: "
            "finished parts are kept"
        )


def _job(refs: list[Any]) -> Any:
    """Return the job, which this process fetches once."""
    key = refs[0].hex()
    job = _JOBS.pop(key, None) or ray.get(refs[0])
    _JOBS[key] = job
    while len(_JOBS) > _KEPT:
        del _JOBS[next(iter(_JOBS))]
    return job


# ---- two stages: cores decode, actors run the network -------------------------------------------


def _staged(
    options: RayOptions, refs: list[Any], job: Any, parts: Sequence[Part], threads: int
) -> Iterator[tuple[str, Any]]:
    cpus = options.scanner_cpus or threads
    decode = min(1.0, cpus)
    actors = _forward_actors(options, cpus, decode)
    made = (
        _dataset(parts)
        .map_batches(
            _decode,
            batch_size=1,
            batch_format="pyarrow",
            fn_args=(refs, options.restarts),
            num_cpus=decode,
        )
        .map_batches(
            _Forward,
            batch_size=None,
            batch_format="numpy",
            fn_constructor_args=(refs, threads),
            compute=ActorPoolStrategy(size=actors),
            num_cpus=cpus,
            num_gpus=options.scanner_gpus or None,
        )
    )
    by_name = {part.part: part for part in parts}
    pieces: dict[str, dict[int, tuple[int, str]]] = {name: {} for name in by_name}
    joining: dict[Any, str] = {}
    for table in _rows(made, options):
        for row in table.to_pylist():
            of = pieces[row["part"]]
            of[row["start"]] = (row["rows"], row["file"])
            if sum(count for count, _ in of.values()) == by_name[row["part"]].rows:
                files = {start: file for start, (_, file) in of.items()}
                assemble = ray.remote(num_cpus=0)(_assemble)
                joining[assemble.remote(refs, by_name[row["part"]], files)] = row["part"]
        yield from _joined(joining, wait=False)
    yield from _joined(joining, wait=True)


def _joined(joining: dict[Any, str], *, wait: bool) -> Iterator[tuple[str, Any]]:
    while joining:
        ready, _ = ray.wait(list(joining), num_returns=1, timeout=None if wait else 0)
        if not ready:
            return
        yield joining.pop(ready[0]), ray.get(ready[0])


def _decode(batch: pa.Table, refs: list[Any], restarts: int) -> Iterator[_Arrays]:
    """Yield the decoded rows of a part."""
    _bounded(restarts)
    job, part = _job(refs), pickle.loads(batch["part"][0].as_py())
    row_bytes = 4 * math.prod(job.committee.task.input_shape)
    width = job.options.batch
    rows = max(1, _DECODED_BYTES // (row_bytes * width)) * width
    for start, raw in job.decode(part, rows):
        count = len(raw)
        yield {
            "part": np.full(count, part.part),
            "row": np.arange(start, start + count),
            "raw": raw.numpy(),
        }


class _Forward:
    """Runs the network over decoded rows; it holds the job for as long as the pass lasts."""

    def __init__(self, refs: list[Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self._job = _job(refs)
        self._parts = {part.part: part for part in self._job.pool.parts}

    def __call__(self, batch: _Arrays) -> _Arrays:
        start, part = int(batch["row"][0]), self._parts[str(batch["part"][0])]
        raw = torch.from_numpy(np.array(batch["raw"], dtype=np.float32))
        file = self._job.forward(part, start, raw)
        return {
            "part": np.array([part.part]),
            "start": np.array([start]),
            "rows": np.array([len(raw)]),
            "file": np.array([file]),
        }


def _assemble(refs: list[Any], part: Part, files: dict[int, str]) -> Any:
    """Join the pieces of a part."""
    return _job(refs).assemble(part, files)


# ---- Ray Data -----------------------------------------------------------------------------------


def _dataset(parts: Sequence[Part]) -> Dataset:
    """Return a dataset of one block a part."""
    rows = [{"part": pickle.dumps(part)} for part in parts]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def _rows(data: Dataset, options: RayOptions) -> Iterator[pa.Table]:
    """Yield the blocks of a dataset as they are made, without a word on the terminal."""
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    data.context.execution_no_progress_timeout_s = options.stall
    yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def _check(options: RayOptions, cpus: float, what: str) -> None:
    """Raise ClusterError where no node has the cores and GPUs of one worker: it would wait."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = options.scanner_gpus
    if not any(n.get("CPU", 0) >= cpus and n.get("GPU", 0) >= gpus for n in nodes):
        most = max((n.get("CPU", 0) for n in nodes), default=0)
        raise ClusterError(
            f"{what} needs {cpus:g} CPUs and {gpus:g} GPUs, and no node has them (the largest of "
            f"{len(nodes)} has {most:g} CPUs); lower model.threads_per_model, ray.scanner_cpus or "
            "ray.scanner_gpus, or add nodes"
        )


def _forward_actors(options: RayOptions, cpus: float, decode: float) -> int:
    """Return how many actors run the network, leaving cores for decoding, or it would never end."""
    held = ray.cluster_resources()
    _check(options, cpus, "a forward worker")
    room = math.floor((held.get("CPU", 0) - decode) / cpus)
    if options.scanner_gpus:
        room = min(room, math.floor(held.get("GPU", 0) / options.scanner_gpus))
    if room < 1:
        raise ClusterError(
            f"decoding needs {decode:g} CPUs beside the {cpus:g} of a forward worker, and the "
            f"cluster has {held.get('CPU', 0):g}; lower ray.scanner_cpus, or add nodes"
        )
    return int(room)
