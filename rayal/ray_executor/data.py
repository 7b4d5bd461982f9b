"""Code that both forms of the scan share: datasets of Ray Data, and their tasks."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import Dataset

from rayal.engine.executor import RayOptions
from rayal.errors import ClusterError, RayalError, WorkerError
from rayal.pool.reader import Part

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
