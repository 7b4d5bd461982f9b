"""The one Ray cluster and the one PostgreSQL server that the tests share, and who runs what.

The whole suite is run by as many processes as there are cores. A file is run by one of them, and so
are all files that start Ray, all that ask for PostgreSQL, and all that measure time or memory: what
takes longest first, so that they end together. A few files are run by this process alone, since
every further one imports torch again.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer, programs
from xdist.scheduler import LoadScopeScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: cores are shared here
sys.dont_write_bytecode = False  # to rewrite all assertions takes half of the collection
CPUS = 2
TESTS = Path(__file__).parent
GROUPS = {"ray": "mark.ray", "measured": "mark.measured", "postgres": "postgres: PostgresServer"}
FIRST = (  # groups, and the files that take longest
    "ray", "measured", "test_docs.py", "service/test_runner.py", "selection/test_functions.py",
    "engine/test_texts.py", "engine/test_driver.py", "service/test_label_over_http.py",
    "evaluation/test_oracle.py", "engine/test_memory.py", "faults/test_resume.py", "postgres",
)  # fmt: skip


@functools.cache
def group_of(file: str) -> str:
    """Return the group of a file below this folder by a mark that it names, else the file."""
    text = (TESTS / file).read_text()
    return next((group for group, mark in GROUPS.items() if mark in text), file)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each worker whole groups, in the order in which the tests were collected."""

    def _split_scope(self, nodeid: str) -> str:
        file = self.config.rootpath / nodeid.split("::")[0]
        return group_of(file.relative_to(TESTS).as_posix())


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return 0 where only files, or the newcomer's minute, are asked for."""
    asked = [Path(argument.split("::")[0]) for argument in config.args]
    few = all(path.suffix == ".py" or path.name == "smoke" for path in asked)
    return 0 if few else len(os.sched_getaffinity(0))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Return how workers share the tests."""
    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest, where workers share the tests."""
    if hasattr(config, "workerinput"):
        items.sort(key=_place)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keep what the imports made out of later collections of garbage, some of which are timed."""
    gc.collect()
    gc.freeze()


def _place(item: pytest.Item) -> int:
    group = group_of(item.path.relative_to(TESTS).as_posix())
    return FIRST.index(group) if group in FIRST else len(FIRST)


@pytest.fixture(scope="session")
def on_ray() -> Iterator[Any]:
    """Start a cluster on loopback, and end it with the tests."""
    from rayal.engine.executor import RayOptions
    from rayal.ray_executor.open import open_executor

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
