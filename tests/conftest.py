"""The one Ray cluster and the one PostgreSQL server that the tests share, and who runs what.

The whole suite is run by as many processes as there are cores. A file is run by one of them, and so
is all that starts Ray, all that asks for PostgreSQL, and all that measures time or memory: what
takes longest first, so that they end together. A few files are run by this process alone, since
every further one imports torch again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer, programs
from xdist.scheduler import LoadGroupScheduling

CPUS = 2
FIRST = (  # groups, and the files that take longest
    "ray", "measured", "engine/test_frozen.py", "test_docs.py", "service/test_runner.py",
    "faults/test_resume.py", "selection/test_functions.py", "engine/test_texts.py",
    "engine/test_driver.py", "service/test_label_over_http.py", "evaluation/test_oracle.py",
    "engine/test_memory.py", "engine/test_approximate_rounds.py", "postgres",
)  # fmt: skip


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return 0 where only files, or the newcomer's minute, are asked for."""
    asked = [Path(argument.split("::")[0]) for argument in config.args]
    few = all(path.suffix == ".py" or path.name == "smoke" for path in asked)
    return 0 if few else len(os.sched_getaffinity(0))


class Scheduling(LoadGroupScheduling):
    """Gives whole files to workers, where a test belongs to no group."""

    def _split_scope(self, nodeid: str) -> str:
        scope = super()._split_scope(nodeid)
        return nodeid.split("::")[0] if scope == nodeid else scope


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Return how workers share the tests."""
    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group what cannot be shared, and begin with what takes longest where workers share it."""
    for item in items:
        if item.get_closest_marker("ray"):
            item.add_marker(pytest.mark.xdist_group("ray"))
        elif item.get_closest_marker("measured"):
            item.add_marker(pytest.mark.xdist_group("measured"))
        elif "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("postgres"))
    if hasattr(config, "workerinput"):
        items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    """Return when a test is run: the number of its group or file, the end where it has none."""
    group = item.get_closest_marker("xdist_group")
    folder = Path(__file__).parent
    name = group.args[0] if group else item.path.relative_to(folder).as_posix()
    return FIRST.index(name) if name in FIRST else len(FIRST)


@pytest.fixture(scope="session")
def on_ray() -> Iterator[Any]:
    """Start a cluster on loopback, and end it with the tests."""
    from rayal.engine.executor import RayOptions, open_executor

    with open_executor("ray", RayOptions(cpus=CPUS), members=CPUS) as executor:
        yield executor


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Start a PostgreSQL server on loopback, and end it with the tests."""
    folder = programs()
    if folder is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    server = PostgresServer(folder)
    yield server
    server.end()
