"""The scan in two stages: tasks decode on cores, long-lived actors run the network, on GPUs."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy

from rayal.engine.executor import RayOptions
from rayal.errors import ClusterError, RayalError
from rayal.pool.reader import Part
from rayal.ray_executor.data import (
    bounded,
    check_room,
    dataset_of,
    job_of,
    raised,
    tables_of,
    tried,
)

_DECODED_BYTES = 32 << 20  # decoded rows that travel at once
_FAILED = -1  # first row in place of a result that is an error
_ANY = 1 << 30  # Ray Data restarts actors as often as they die
_Arrays = dict[str, npt.NDArray[Any]]


def map_staged(
    options: RayOptions, refs: list[Any], job: Any, parts: Sequence[Part], threads: int
) -> Iterator[tuple[str, Any]]:
    """Yield (part, result) as parts are done; ``ray_scan.map_parts`` describes the arguments."""
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
