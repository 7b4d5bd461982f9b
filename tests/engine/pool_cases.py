"""A project on a labeled table in several parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from loop_cases import finish
from pools import blob_pool

from rayal.engine.executor import LOCAL, Executor
from rayal.engine.project import Project
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec, ScanOptions
from rayal.learners import Supervised
from rayal.ledger import Ledger
from rayal.strategies import Strategy

ROWS = 300  # of each of the pool's parts


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
    return finish(
        Project.create(Ledger(root), "p", blob_pool(root, rows=ROWS), what, executor=executor)
    )
