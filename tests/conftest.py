"""The one Ray cluster that the tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rayal.engine.executor import Executor, RayOptions, open_executor

CPUS = 2


@pytest.fixture(scope="session")
def on_ray() -> Iterator[Executor]:
    """Start a cluster on loopback, and end it with the tests."""
    with open_executor("ray", RayOptions(cpus=CPUS), members=CPUS) as executor:
        yield executor
