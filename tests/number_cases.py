"""Rounds on a small made-up table whose labels are numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from loop_cases import finish
from pools import houses, pool_at_once, split

from rayal.engine.project import Project
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec, ScanOptions
from rayal.evaluation.oracle import Oracle
from rayal.learners import Supervised
from rayal.ledger import Ledger
from rayal.pool.reader import Pool
from rayal.strategies import Strategy

POOL, TEST = 120, 60
PLAIN = Supervised(steps=200, batch=32, epoch_steps=100, schedule="constant", lr=1e-2)


def number_pool(root: Path) -> Pool:
    sources = split(*houses(POOL + TEST), POOL, features=("a", "b", "c"))
    return pool_at_once(root, "houses", *sources)


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
