"""Real rounds on handwritten digits, small enough for every test run."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loop_cases import finish, picks_of
from pools import pool_at_once, split
from sklearn.datasets import load_digits
from torch import Tensor

from rayal.engine.project import Project
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec, ScanOptions
from rayal.learners import Supervised
from rayal.ledger import Ledger
from rayal.models.committee import Committee
from rayal.pool.reader import Pool
from rayal.strategies import Strategy

POOL, TEST = 500, 300
PLAIN = Supervised(steps=60, batch=32, epoch_steps=20, schedule="constant", lr=3e-3)
CNN = NetworkSpec("small_cnn", {"widths": (8, 8, 24), "dropout": 0.2})


@lru_cache(maxsize=1)
def digits() -> Any:
    """Return uint8 images ``[N, 8, 8]`` and classes ``[N]`` in a fixed random order."""
    x, y = load_digits(return_X_y=True)
    at = np.random.default_rng(0).permutation(len(x))
    return (x[at] * 15).astype(np.uint8).reshape(-1, 8, 8), y[at]


def digit_pool(root: Path) -> Pool:
    ids = [f"digit-{i:04d}" for i in range(POOL + TEST)]
    x, y = (values[: POOL + TEST] for values in digits())
    return pool_at_once(root, "digits", *split(x, y, ids, POOL))


def digit_spec(strategy: Strategy, **changes: Any) -> ProjectSpec:
    base = ProjectSpec(
        network=CNN,
        learner=strategy.trained_by(PLAIN),
        strategy=strategy,
        initial=Initial(count=60),
        batch=20,
        rounds=1,
        scan=ScanOptions(batch=64),
    )
    return dataclasses.replace(base, **changes)


def rounds_of(root: Path, strategy: Strategy, **changes: Any) -> Project:
    """Run a project on the digits to its end."""
    pool = digit_pool(root)
    project = Project.create(Ledger(root), "p", pool, digit_spec(strategy, **changes))
    return finish(project)


def picks(project: Project) -> list[tuple[str, float | None]]:
    """Return the picks of all rounds after the initial one, with their scores."""
    return picks_of(project, *range(project.spec.rounds or 0))


def items(project: Project) -> list[str]:
    return [item for item, _ in picks(project)]


def committee_of(project: Project, round: int = 0) -> Committee:
    """Return the committee of a finished round, from its checkpoints."""
    return project.committee(round)


def pool_rows(project: Project) -> tuple[Tensor, Tensor]:
    """Return all pool rows, decoded ``[N, …]``, with their hidden classes ``[N]``."""
    x, y = digits()
    raw = torch.from_numpy(x[:POOL]).float().div(255.0)[:, None]
    return raw, torch.from_numpy(y[:POOL])
