"""What the processes of the race tests do."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from rayal.cli.app import main
from rayal.engine.project import Project
from rayal.engine.spec import Initial, NetworkSpec, ProjectSpec, ScanOptions
from rayal.evaluation.oracle import Oracle
from rayal.learners import Supervised
from rayal.ledger import Ledger
from rayal.pool.reader import Pool
from rayal.registry import strategies

torch.set_num_threads(1)
EPOCHS = 4
LEARNER = Supervised(steps=5 * EPOCHS, batch=16, epoch_steps=5)


def command(*argv: str) -> None:
    """Run ``rayal`` with these arguments, to its exit."""
    sys.argv = ["rayal", *argv]
    main()


def spec(strategy: str) -> ProjectSpec:
    """Return a cell; all of them share the model and the columns of round 0."""
    return ProjectSpec(
        network=NetworkSpec("mlp", {"widths": (16,)}),
        learner=LEARNER,
        strategy=strategies[strategy](),
        initial=Initial(count=30),
        batch=10,
        rounds=2,
        scan=ScanOptions(batch=256),
    )


def cell(root: Path, strategy: str) -> None:
    """Run one cell of a storage root, from its initial items to the end."""
    with Ledger(root) as ledger:
        project = Project.create(ledger, strategy, Pool.open(root, "rows"), spec(strategy))
        oracle = Oracle(project.pool)
        project.prepare()
        while not project.finished:
            oracle.work(project)
            project.train(oracle.truth)
