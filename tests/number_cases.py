"""Rounds on a small made-up table whose labels are numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from loop_cases import finish

from rayal.engine.arrays import array_source
from rayal.engine.driver import Project
from rayal.engine.pool import Pool
from rayal.engine.scan_options import ScanOptions
from rayal.engine.spec import Initial, ProjectSpec
from rayal.engine.train import NetworkSpec
from rayal.evaluation.oracle import Oracle
from rayal.learners import Supervised
from rayal.project import Ledger
from rayal.strategies import Strategy

POOL, TEST = 120, 60
PLAIN = Supervised(steps=200, batch=32, epoch_steps=100, schedule="constant", lr=1e-2)


def houses(seed: int = 0) -> tuple[Any, Any]:
    """Return rows ``[N, 3]`` of very different scales, and a number near 1,000 of each ``[N]``."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(POOL + TEST, 3)) * [1.0, 100.0, 0.01] + [0.0, 500.0, 3.0]
    y = 1000.0 + 30.0 * x[:, 0] - 0.2 * (x[:, 1] - 500.0) + rng.normal(size=len(x)) * 2.0
    return x, y


def number_pool(root: Path) -> Pool:
    x, y = houses()
    ids = [f"house:{i:03d}" for i in range(POOL + TEST)]
    cut: Any = {"pool": slice(0, POOL), "test": slice(POOL, POOL + TEST)}
    made = [
        array_source(x[at], y[at], ids=ids[at], features=("a", "b", "c"), role=role)
        for role, at in cut.items()
    ]
    return Pool.ingest(root, "houses", made)


def number_spec(strategy: Strategy, **changes: Any) -> ProjectSpec:
    base = ProjectSpec(
        network=NetworkSpec("mlp", {"widths": (16,)}),
        learner=strategy.trained_by(PLAIN),
        strategy=strategy,
        initial=Initial(count=30),
        batch=10,
        rounds=1,
        scan=ScanOptions(batch=64),
    )
    return dataclasses.replace(base, **changes)


def number_project(root: Path, strategy: Strategy, **changes: Any) -> Project:
    """Run a project to its end."""
    spec = number_spec(strategy, **changes)
    project = Project.create(Ledger(root), "p", number_pool(root), spec)
    return finish(project, Oracle(project.pool, labels=project.task.labels))
