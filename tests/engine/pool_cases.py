"""A labeled table in several parts, and a project on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from loop_cases import finish

from rayal.engine.arrays import array_source
from rayal.engine.driver import Project
from rayal.engine.executor import LOCAL, Executor
from rayal.engine.pool import Pool
from rayal.engine.scan_options import ScanOptions
from rayal.engine.spec import Initial, ProjectSpec
from rayal.engine.train import NetworkSpec
from rayal.learners import Supervised
from rayal.project import Ledger
from rayal.strategies import Strategy

ROWS = 300  # of each of the pool's parts
TEST = 40


def pool_of(root: Path, parts: int = 3) -> Pool:
    """Ingest a labeled table in several additions, so that it has several parts."""
    for number in range(parts + 1):
        count = ROWS if number < parts else TEST
        rng = np.random.default_rng(number)
        y = rng.integers(0, 3, size=count)
        x = rng.normal(size=(count, 5)) + y[:, None]
        ids = [f"row-{number}-{i:05d}" for i in range(count)]
        role: Any = "pool" if number < parts else "test"
        pool = Pool.ingest(root, "rows", [array_source(x, y, ids=ids, role=role)])
    return pool


def spec(strategy: Strategy, **changes: Any) -> ProjectSpec:
    """Return a small project's settings."""
    base = ProjectSpec(
        network=NetworkSpec("mlp", {"widths": (24, 12), "dropout": 0.3}),
        learner=Supervised(steps=20, batch=16, epoch_steps=10),
        strategy=strategy,
        initial=Initial(count=20),
        batch=10,
        rounds=1,
        scan=ScanOptions(batch=64),
        keep="all",
    )
    return dataclasses.replace(base, **changes)


def finished(root: Path, what: ProjectSpec, *, executor: Executor = LOCAL) -> Project:
    """Run a project to its end."""
    return finish(Project.create(Ledger(root), "p", pool_of(root), what, executor=executor))
