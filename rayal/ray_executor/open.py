"""The executor of a name; Ray is imported when it is asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rayal.engine.executor import LOCAL, Executor, RayOptions


def open_executor(
    name: str,
    options: RayOptions,
    *,
    threads: int = 1,
    members: int = 1,
    shared: Path | None = None,
) -> AbstractContextManager[Executor]:
    """Return a context manager that gives an executor: ``local`` or ``ray``.

    Args:
        name: which one.
        options: settings of Ray.
        threads: torch threads of a model.
        members: size of the largest committee; 0 where nothing is to be trained.
        shared: the storage root, which every node of a cluster must see.
    """
    if name == "local":
        return nullcontext(LOCAL)
    from rayal.ray_executor.cluster import connect

    return connect(options, threads=threads, members=members, shared=shared)
