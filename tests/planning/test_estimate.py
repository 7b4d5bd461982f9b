"""Which executor ``auto`` takes, and what it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rayal.engine.executor import RayOptions
from rayal.engine.spec import NetworkSpec, ProjectSpec
from rayal.evaluation.observer import Observer
from rayal.evaluation.protocol import run
from rayal.learners import LayerwisePretrained, Supervised
from rayal.planning.seconds import RAY_START, Estimate, estimate
from rayal.pool.reader import Pool
from rayal.pool.readers.arrays import array_source
from rayal.registry import strategies
from rayal.settings.run import load


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    x = np.random.default_rng(0).normal(size=(200, 5))
    return Pool.ingest(tmp_path, "rows", [array_source(x, np.arange(200) % 3)])


def spec(steps: int, members: int) -> ProjectSpec:
    return ProjectSpec(
        network=NetworkSpec("mlp", {"widths": (8,)}),
        learner=Supervised(steps=steps),
        strategy=strategies["ensemble_bald"](members=members),
        rounds=2,
    )


def test_little_work_stays_here_and_much_goes_to_ray(pool: Pool) -> None:
    little = estimate([(spec(20, 2), pool)], RayOptions(cpus=8))
    assert little.executor == "local" and little.ray > RAY_START
    much = estimate([(spec(10_000_000, 8), pool)], RayOptions(cpus=8))
    assert much.executor == "ray"
    assert much.local / (much.ray - RAY_START) == pytest.approx(8, rel=0.1)
    one = estimate([(spec(10_000_000, 8), pool)], RayOptions(cpus=1))
    assert one.executor == "local", "one core gains nothing"


def test_threads_of_a_model_leave_fewer_models_at_once(pool: Pool) -> None:
    wide = dataclasses.replace(spec(10_000_000, 8), threads_per_model=4)
    made = estimate([(wide, pool)], RayOptions(cpus=8))
    assert made.local / (made.ray - RAY_START) == pytest.approx(2, rel=0.1)


def test_a_pretraining_counts_once_a_seed(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(work: Callable[[], object]) -> float:
        work()
        return 1e-4  # as a busy machine is not asked how fast it is

    monkeypatch.setattr("rayal.planning.seconds._seconds", timed)
    learner = LayerwisePretrained(steps=1, pretrain_steps=100_000)
    one = dataclasses.replace(spec(1, 1), learner=learner)
    other = dataclasses.replace(one, strategy=strategies["margin"]())
    seeded = dataclasses.replace(one, seeds=dataclasses.replace(one.seeds, model=5))
    alone, shared, twice = (
        estimate([(s, pool) for s in cells], RayOptions(cpus=1)).local
        for cells in ([one], [one, other], [one, seeded])
    )
    assert alone == pytest.approx(10.0, rel=0.01)
    assert shared == pytest.approx(10.0, rel=0.01) and twice == pytest.approx(20.0, rel=0.01)


def test_it_says_which_and_why() -> None:
    assert str(Estimate(230.4, 140.2, 2)) == (
        "executor ray: the run is estimated at 230 s in one process and 140 s on Ray with 2 cores"
    )


def test_a_run_tells_what_auto_chose(tmp_path: Path) -> None:
    notes: list[str] = []

    class Listener(Observer):
        def note(self, text: str) -> None:
            notes.append(text)

    settings = load(
        {
            "pool": {"source": "digits", "subset": 100},
            "model": {"network": "mlp", "params": {"widths": [8]}},
            "learner": {"name": "supervised", "steps": 5},
            "initial": {"count": 10},
            "rounds": 0,
            "executor": "auto",
            "storage": str(tmp_path / "run"),
        }
    )
    run(settings, observer=Listener())
    (note,) = notes
    assert note.startswith("executor local: the run is estimated at")
