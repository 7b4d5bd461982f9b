"""The Ray executor: on a cluster of its own on this machine, or on one that runs already.

A cluster that rayal starts listens on loopback with token authentication, tells nobody of its
use, and ends with the run. It never joins another one unless an address says so. All state is in
the ledger and the storage root: a cluster may die at any moment and nothing is lost.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayal import __version__
from rayal.engine.executor import Executor, RayOptions
from rayal.errors import ClusterError

if TYPE_CHECKING:
    from rayal.ray_executor.crew import Crew

_STARTED = {  # the environment of clusters that rayal starts
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
_SECONDS_TO_CONNECT = 10


@contextmanager
def connect(
    options: RayOptions | None = None,
    *,
    threads: int = 1,
    members: int = 1,
    shared: Path | None = None,
) -> Iterator[Executor]:
    """Yield an executor on Ray; on leaving, its workers end, and the cluster if it started here.

    Args:
        options: address and resources.
        threads: torch threads of a model, by which cores are counted.
        members: size of a committee: as many workers start at once, others when needed; 0
            where nothing is to be trained.
        shared: the storage root, which every node of a running cluster must see.

    Raises:
        ClusterError: no cluster is at the address, or it has not what the work asks for.
    """
    options = options or RayOptions()
    with session(options):
        from rayal.ray_executor import scan as ray_scan
        from rayal.ray_executor import shards as ray_shards
        from rayal.ray_executor.crew import Crew, train_members

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it logs every pass
        if options.address != "local":
            _check_nodes(shared)
        crew = Crew(options, threads)
        try:
            crew.start(min(len(crew), members))
            _in_background(partial(_warm_up, crew, partial(ray_scan.warm_up, options)))
            yield Executor(
                "ray",
                partial(ray_scan.map_parts, options),
                partial(train_members, crew),
                partial(ray_shards.start_shards, crew),
                workers=len(crew),
            )
        finally:
            crew.close()


@contextmanager
def session(options: RayOptions, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Hold a connection to Ray: one that is there is used and left as it was.

    Args:
        options: address, and the cores of a cluster that is started.
        environment: further variables of a cluster that is started.
    """
    import ray

    mine = not ray.is_initialized()
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if options.address != "local":
        _attach(ray, options.address, quiet)
    elif mine:
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        with _environment({**_STARTED, **(environment or {}), "PYTHONPATH": path}), _switches(ray):
            ray.init(address="local", num_cpus=options.cpus, include_dashboard=False, **quiet)
    else:
        raise ClusterError(
            "this process is connected to Ray already, so no cluster of its own can be started; "
            "give address 'auto' to use that one, or call ray.shutdown() first"
        )
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


def _attach(ray: Any, address: str, quiet: Mapping[str, Any]) -> None:
    """Connect to the cluster at an address, unless this process is connected to it."""
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=_SECONDS_TO_CONNECT).close()
        if not ray.is_initialized():
            ray.init(address=address, **quiet)
            return
    except (OSError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"no Ray cluster at address {address!r} ({str(error).splitlines()[0]}); start one "
            "(`ray start --head`), give HOST:PORT of its head, or address local"
        ) from error
    there = ray.get_runtime_context().gcs_address
    if address not in ("auto", there):
        raise ClusterError(
            f"this process is connected to the Ray cluster at {there}, not to {address}; give that "
            "address, or call ray.shutdown() first"
        )


@contextmanager
def _switches(ray: Any) -> Iterator[None]:
    """Set what Ray reads from the environment when it is imported, which may be long ago.

    Without clusters, as on some systems, it takes 127.0.0.1 for this host's address; and its
    workers use this environment instead of building one for ``uv run``.
    """
    constants = ray._private.ray_constants
    names = ("ENABLE_RAY_CLUSTER", "RAY_ENABLE_UV_RUN_RUNTIME_ENV")
    before = {name: getattr(constants, name) for name in names}
    for name in names:
        setattr(constants, name, False)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(constants, name, value)


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set variables while Ray is loaded and started; its processes keep them, this one not."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_nodes(shared: Path | None) -> None:
    """Raise ClusterError unless every node runs this rayal and sees the storage root."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

    look = ray.remote(num_cpus=0, max_retries=1)(_look)
    root = None if shared is None else str(shared.absolute())
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    asked = {
        node["NodeID"]: look.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote(
            root
        )
        for node in nodes
    }
    for node, answer in asked.items():
        try:
            version, seen = ray.get(answer, timeout=120)
        except ray.exceptions.RayError as error:
            raise ClusterError(
                f"node {node[:8]} cannot run rayal ({str(error).strip().splitlines()[-1]}); "
                "install it there, or submit the run as a job with --working-dir"
            ) from None
        if version != __version__:
            raise ClusterError(
                f"node {node[:8]} has rayal {version}, this process {__version__}; install the "
                "same version on all nodes"
            )
        if not seen:
            raise ClusterError(
                f"node {node[:8]} does not see the storage root {root}; set storage to a folder "
                "that all nodes share"
            )


def _look(root: str | None) -> tuple[str, bool]:
    """Return a node's version of rayal, and whether it sees the storage root."""
    return __version__, root is None or Path(root).is_dir()


def _warm_up(crew: Crew, scan: Callable[[], None]) -> None:
    """Start scanning processes once the first worker is there: they contend for the cores."""
    crew.wait()
    scan()


def _in_background(work: Callable[[], None]) -> None:
    """Do what only saves time later; if it fails, the work itself will say so."""

    def run() -> None:
        with suppress(Exception):
            work()

    threading.Thread(target=run, daemon=True).start()
