"""Parts over Ray Data: one row a part, mapped by stateless tasks that keep the job at hand.

Tasks instead of actors, since a task's process stays warm: a repeated small pass costs a fraction
of a second, an actor pool many seconds each time. Where a GPU does the forward passes, decoding
runs apart on cores and the GPU's actors get decoded rows.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import ray
import ray.data

from rayal.engine.executor import RayOptions
from rayal.errors import WorkerError
from rayal.pool.reader import Part
from rayal.ray_executor.crew import cause_of
from rayal.ray_executor.data import check_room, dataset_of, job_of, raised, sent, tables_of, tried
from rayal.ray_executor.staged import map_staged
from rayal.selection.threads import torch_threads


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
