"""Parts over Ray Data: one row a part, mapped by stateless tasks that keep the job at hand.

Tasks instead of actors, since a task's process stays warm: a repeated small pass costs a fraction
of a second, an actor pool many seconds each time. Where a GPU does the forward passes, decoding
runs apart on cores and the GPU's actors get decoded rows.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset

from rayal.engine.executor import RayOptions
from rayal.errors import ClusterError, RayalError, WorkerError
from rayal.pool.reader import Part
from rayal.ray_executor.crew import cause_of
from rayal.selection.threads import torch_threads

_KEPT = 3  # values that a process holds: a committee, and the jobs of its evaluation and scan
_HELD: dict[str, Any] = {}  # objects that this process has fetched, the latest one last
_SENT: dict[tuple[str, str], Any] = {}  # the committee that this driver has put, by its hash


def dataset_of(parts: Sequence[Part]) -> Dataset:
    """Return a dataset of one block a part."""
    rows = [{"part": pickle.dumps(part)} for part in parts]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


def tables_of(data: Dataset, options: RayOptions) -> Iterator[pa.Table]:
    """Yield the blocks of a dataset as they are made, without a word on the terminal."""
    data.context.enable_progress_bars = False
    data.context.print_on_execution_start = False
    data.context.execution_no_progress_timeout_s = options.stall
    yield from data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)


def check_room(options: RayOptions, cpus: float, what: str) -> None:
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


def tried(work: Callable[[], Any], restarts: int) -> Any:
    """Return the result of work, or rayal's own error as a value: Ray Data would hide its cause."""
    try:
        bounded(restarts)
        return work()
    except RayalError as error:
        return error


def raised(result: Any) -> Any:
    """Return a result, or raise it if it is an error."""
    if isinstance(result, RayalError):
        raise result
    return result


def bounded(restarts: int) -> None:
    """Raise WorkerError if the worker of this task was lost too often; Ray Data never gives up."""
    attempt = ray._private.worker.global_worker.core_worker.get_current_task_attempt_number()
    if attempt > restarts:
        raise WorkerError(
            f"the workers of one part were lost {attempt} times, {restarts} are allowed "
            "(ray.restarts); look at the memory of the nodes, and run the same command again: "
            "finished parts are kept"
        )


def sent(job: Any) -> list[Any]:
    """Put a job into the object store; its committee, the large part, is put once and apart.

    So the scan and the evaluation of a round send the weights to a node once between them.
    """
    committee = getattr(job, "committee", None)
    if committee is None:
        return [ray.put(job)]
    key = (ray.get_runtime_context().get_job_id(), committee.hash)
    if key not in _SENT:
        _SENT.clear()
        _SENT[key] = ray.put(committee)
    return [ray.put(replace(job, committee=None)), _SENT[key]]


def job_of(refs: list[Any]) -> Any:
    """Return the job with its committee, each of which this process fetches once."""
    job, *committee = [_fetched(ref) for ref in refs]
    return replace(job, committee=committee[0]) if committee else job


def _fetched(ref: Any) -> Any:
    key = ref.hex()
    value = _HELD.pop(key, None) or ray.get(ref)
    _HELD[key] = value
    while len(_HELD) > _KEPT:
        del _HELD[next(iter(_HELD))]
    return value


_DECODED_BYTES = 32 << 20  # decoded rows that travel at once
_FAILED = -1  # first row in place of a result that is an error
_ANY = 1 << 30  # Ray Data restarts actors as often as they die
_Arrays = dict[str, npt.NDArray[Any]]


def map_staged(
    options: RayOptions, refs: list[Any], job: Any, parts: Sequence[Part], threads: int
) -> Iterator[tuple[str, Any]]:
    """Yield (part, result) as parts are done; ``map_parts`` describes the arguments."""
    cpus = options.scanner_cpus or threads
    decode = min(1.0, cpus)
    actors = _forward_actors(options, cpus, decode)
    results = (
        dataset_of(parts)
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
    for table in tables_of(results, options):
        for row in table.to_pylist():
            if row["start"] == _FAILED:
                raised(pickle.loads(bytes.fromhex(row["part"])))
            of = pieces[row["part"]]
            of[row["start"]] = (row["rows"], row["file"])
            if sum(count for count, _ in of.values()) == by_name[row["part"]].rows:
                files = {start: file for start, (_, file) in of.items()}
                assemble = ray.remote(num_cpus=0)(_assemble)
                joining[assemble.remote(refs, by_name[row["part"]], files)] = row["part"]
        yield from _joined(joining, wait=False)
    yield from _joined(joining, wait=True)
    for of in pieces.values():
        for _, file in of.values():
            (Path(job.pool.root) / file).unlink(missing_ok=True)


def _joined(joining: dict[Any, str], *, wait: bool) -> Iterator[tuple[str, Any]]:
    while joining:
        ready, _ = ray.wait(list(joining), num_returns=1, timeout=None if wait else 0)
        if not ready:
            return
        yield joining.pop(ready[0]), ray.get(ready[0])


def _decode(batch: pa.Table, refs: list[Any], restarts: int) -> Iterator[_Arrays]:
    """Yield the decoded rows of a part; an error of ours travels as one row, in hex."""
    job, part = job_of(refs), pickle.loads(batch["part"][0].as_py())
    shape = job.committee.task.input_shape
    width = job.options.batch
    rows = max(1, _DECODED_BYTES // (4 * math.prod(shape) * width)) * width
    try:
        bounded(restarts)
        for start, raw in job.decode(part, rows):
            yield _raw(part.part, start, raw.numpy())
    except RayalError as error:
        yield _raw(pickle.dumps(error).hex(), _FAILED, np.zeros((1, *shape), np.float32))


def _raw(part: str, start: int, raw: npt.NDArray[Any]) -> _Arrays:
    return {
        "part": np.full(len(raw), part),
        "row": np.arange(start, start + len(raw)),
        "raw": raw,
    }


class _Forward:
    """Runs the network over decoded rows; it holds the job for as long as the pass lasts."""

    def __init__(self, refs: list[Any], threads: int) -> None:
        torch.set_num_threads(threads)
        self._job = job_of(refs)
        self._parts = {part.part: part for part in self._job.pool.parts}

    def __call__(self, batch: _Arrays) -> _Arrays:
        name, start, rows = str(batch["part"][0]), int(batch["row"][0]), len(batch["row"])
        result: Any = name
        if start != _FAILED:
            raw = torch.from_numpy(np.array(batch["raw"], dtype=np.float32))
            result = tried(lambda: self._job.forward(self._parts[name], start, raw), _ANY)
            if isinstance(result, RayalError):
                name, start = pickle.dumps(result).hex(), _FAILED
        return {
            "part": np.array([name]),
            "start": np.array([start]),
            "rows": np.array([rows]),
            "file": np.array([str(result)]),
        }


def _assemble(refs: list[Any], part: Part, files: dict[int, str]) -> Any:
    """Join the pieces of a part."""
    return job_of(refs).assemble(part, files)


def _forward_actors(options: RayOptions, cpus: float, decode: float) -> int:
    """Return the number of actors that run the network; decoding keeps cores, or all would wait."""
    resources = ray.cluster_resources()
    check_room(options, cpus, "a forward worker")
    room = math.floor((resources.get("CPU", 0) - decode) / cpus)
    if options.scanner_gpus:
        room = min(room, math.floor(resources.get("GPU", 0) / options.scanner_gpus))
    if room < 1:
        raise ClusterError(
            f"decoding needs {decode:g} CPUs beside the {cpus:g} of a forward worker, and the "
            f"cluster has {resources.get('CPU', 0):g}; lower ray.scanner_cpus, or add nodes"
        )
    return int(room)


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
        options: settings of Ray.
        job: job to be done for each part; its weights travel once to each node.
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
    run = map_staged if staged and hasattr(job, "forward") else _fused
    try:
        for name, result in run(options, sent(job), job, ordered, threads):
            report(rows[name])
            yield result
    except ray.exceptions.RayError as error:
        raise cause_of(error) from None
    except TimeoutError as error:
        raise WorkerError(f"the scan stopped: {error}; run the same command again") from None


def warm_up(options: RayOptions) -> None:
    """Start Ray Data's own actors and the scanning processes while the first model trains."""
    loaded = ray.data.from_items([{"part": b""}] * 2, override_num_blocks=2).map_batches(
        _loaded, batch_size=1, batch_format="pyarrow", num_cpus=options.scanner_cpus or 1.0
    )
    for _ in tables_of(loaded, options):
        pass


def _loaded(batch: pa.Table) -> pa.Table:
    """Load the modules that scanning needs in this process."""
    return batch


# ---- one stage: a task decodes, runs the network and writes -------------------------------------


def _fused(
    options: RayOptions, refs: list[Any], job: Any, parts: Sequence[Part], threads: int
) -> Iterator[tuple[str, Any]]:
    cpus = options.scanner_cpus or threads
    check_room(options, cpus, "a scanning worker")
    results = dataset_of(parts).map_batches(
        _scan,
        batch_size=1,
        batch_format="pyarrow",
        fn_args=(refs, threads, options.restarts),
        num_cpus=cpus,
        num_gpus=options.scanner_gpus or None,
    )
    for table in tables_of(results, options):
        for name, result in zip(table["part"].to_pylist(), table["made"].to_pylist(), strict=True):
            yield name, raised(pickle.loads(result))


def _scan(batch: pa.Table, refs: list[Any], threads: int, restarts: int) -> pa.Table:
    """Do the job for a part; run by a Ray Data task."""
    parts = [pickle.loads(value) for value in batch["part"].to_pylist()]
    with torch_threads(threads):
        results = [pickle.dumps(tried(partial(_part, refs, part), restarts)) for part in parts]
    return pa.table({"part": [part.part for part in parts], "made": pa.array(results, pa.binary())})


def _part(refs: list[Any], part: Part) -> Any:
    return job_of(refs).part(part)
