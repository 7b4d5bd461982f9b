"""The simulated annotator: exact noise, balance, and two of them in two processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rayal.engine.driver import Project
from rayal.engine.pool import Pool
from rayal.engine.spec import Initial, ProjectSpec
from rayal.engine.train import NetworkSpec
from rayal.errors import LabelError, SettingsError
from rayal.evaluation.oracle import Oracle
from rayal.learners import Supervised
from rayal.project import Ledger
from rayal.registry import strategies


def labeled(root: Path, rows: int = 100) -> Pool:
    y = np.array(["a", "b", "c", "d"])[np.arange(rows) % 4]
    return Pool.from_arrays(root, "rows", np.arange(rows * 2.0).reshape(rows, 2), y)


def test_noise_is_exact_deterministic_and_never_the_truth(tmp_path: Path) -> None:
    pool = labeled(tmp_path)
    ids = list(pool.ids())
    for noise in (0.0, 0.13, 1.0):
        oracle = Oracle(pool, noise=noise, seed=5)
        answers = [oracle.answer(i) for i in ids]
        wrong = [a != t for a, t in zip(answers, oracle.truth(ids), strict=True)]
        assert sum(wrong) == round(noise * 100)
        assert answers == [Oracle(pool, noise=noise, seed=5).answer(i) for i in reversed(ids)][::-1]
    assert [Oracle(pool, noise=0.5, seed=1).answer(i) for i in ids] != [
        Oracle(pool, noise=0.5, seed=2).answer(i) for i in ids
    ]
    with pytest.raises(SettingsError, match="must lie in"):
        Oracle(pool, noise=1.5)
    with pytest.raises(LabelError, match="no known label"):
        Oracle(pool).answer("row:900")


def test_balanced_sets_hold_each_class_equally(tmp_path: Path) -> None:
    pool = labeled(tmp_path)
    oracle = Oracle(pool)
    ids = oracle.balanced(pool, 22, seed=1)
    assert len(set(ids)) == 22
    assert sorted(Counter(oracle.truth(ids)).values()) == [5, 5, 6, 6]
    assert ids != oracle.balanced(pool, 22, seed=2)


def work(root: Path, annotator: str) -> None:
    project = Project.open(root, "p")
    Oracle(project.pool, noise=0.2).work(project, annotator=annotator, count=3, ttl=1.0)


def hold_and_die(root: Path) -> None:
    project = Project.open(root, "p")
    assert len(project.lease(7, annotator="dead", ttl=1.0)) == 7
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.processes
def test_two_oracles_one_killed_while_holding_leases_give_the_labels_of_one(
    tmp_path: Path,
) -> None:
    spec = ProjectSpec(
        network=NetworkSpec("mlp", {"widths": (4,)}),
        learner=Supervised(steps=2),
        strategy=strategies["random"](),
        initial=Initial(count=40),
        rounds=None,
    )
    results = []
    for name in ("one", "two"):
        root = tmp_path / name
        pool = labeled(root)
        project = Project.create(Ledger(root), "p", pool, spec)
        project.prepare()
        if name == "one":
            Oracle(pool, noise=0.2).work(project)
        else:
            spawn = multiprocessing.get_context("spawn")
            dead = spawn.Process(target=hold_and_die, args=(root,))
            dead.start()
            dead.join(timeout=60)
            assert dead.exitcode == -signal.SIGKILL
            both = [spawn.Process(target=work, args=(root, f"ann{n}")) for n in range(2)]
            for process in both:
                process.start()
            deadline = time.monotonic() + 60
            for process in both:
                process.join(timeout=max(0.0, deadline - time.monotonic()))
                assert process.exitcode == 0
        results.append(project.ledger.resolved("p"))
        history = [row.item for row in project.ledger.labels("p")]
        assert len(history) == len(set(history)) == 40
    assert results[0] == results[1]
