"""The one Ray cluster and the one PostgreSQL server that the tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from postgres_server import PostgresServer, programs

from rayal.engine.executor import Executor, RayOptions, open_executor

CPUS = 2


@pytest.fixture(scope="session")
def on_ray() -> Iterator[Executor]:
    """Start a cluster on loopback, and end it with the tests."""
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
