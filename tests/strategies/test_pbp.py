"""Probabilistic backpropagation: its rounds, its ablation, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from number_cases import number_pool, number_project, number_spec

from rayal.engine.checks import check_spec
from rayal.engine.spec import NetworkSpec, ScanOptions
from rayal.errors import NeedsError, SettingsError
from rayal.learners import Supervised
from rayal.models import build_network
from rayal.registry import learners, strategies
from rayal.strategies.pbp import PBP, ProbabilisticBackpropagation

NET = NetworkSpec("pbp", {"hidden": (8,)})
LEARNER = ProbabilisticBackpropagation(steps=15)


def project(folder: Path, strategy: Any, **changes: Any) -> Any:
    rest: dict[str, Any] = {"network": NET, "learner": LEARNER, "rounds": 2, "batch": 3, **changes}
    return number_project(folder, strategy, **rest)


def picks(project: Any) -> list[tuple[str, float | None]]:
    chosen = [project.ledger.selection("p", r) for r in range(project.spec.rounds)]
    return [(pick.item, pick.score) for s in chosen for pick in s.picks]


def test_rounds_label_the_largest_variance(tmp_path: Path) -> None:
    pbp = project(tmp_path, PBP())
    committee = pbp.committee(0)
    chosen = pbp.ledger.selection("p", 0)
    ids = list(pbp.pool.ids("pool"))
    x = committee.task.decode(pbp.pool.take(ids))
    z = committee.task.transform(x, committee.statistics)
    variance = committee.net(0)(z)[:, 1] * committee.statistics["target_std"] ** 2
    labeled = {p.item for p in pbp.ledger.selection("p", -1).picks}
    rest = {i: v for i, v in zip(ids, variance.tolist(), strict=True) if i not in labeled}
    best = sorted(rest, key=lambda i: -rest[i])[:3]
    assert [p.item for p in chosen.picks] == best
    assert [p.score for p in chosen.picks] == pytest.approx([rest[i] for i in best])
    far = z.norm(dim=1) > 2.5
    assert variance[far].mean() > 1.5 * variance[~far].mean()  # grows away from the rows
    metrics = [r.metrics for r in pbp.rounds()]
    assert all(m["rmse"] > 0 and np.isfinite(m["nll"]) for m in metrics)


def test_without_the_variance_it_is_random_with_the_same_learner(tmp_path: Path) -> None:
    plain = project(tmp_path / "random", strategies["random"]())
    off = project(tmp_path / "off", PBP(query="random"))
    on = project(tmp_path / "on", PBP())
    assert picks(off) == picks(plain) and picks(on) != picks(plain)
    assert [r.metrics for r in off.rounds()] == [r.metrics for r in plain.rounds()]
    assert on.rounds()[0].metrics == plain.rounds()[0].metrics  # paired up to the first choice


def test_columns_are_equal_for_every_batch_of_the_scan(tmp_path: Path) -> None:
    made = [
        picks(project(tmp_path / str(batch), PBP(), scan=ScanOptions(batch=batch), rounds=1))
        for batch in (64, 256, 1000)
    ]
    assert made[0] == made[1] == made[2]


def test_what_does_not_fit_is_refused_before_anything_starts(tmp_path: Path) -> None:
    pool = number_pool(tmp_path)
    with pytest.raises(NeedsError, match=r"the learner pbp trains normal weights.*network: pbp"):
        check_spec(pool, number_spec(PBP()))
    with pytest.raises(NeedsError, match=r"ProbabilisticNet has no weights that descend"):
        check_spec(pool, number_spec(strategies["random"](), network=NET))
    with pytest.raises(NeedsError, match=r"does not end in an nn\.Linear"):
        check_spec(pool, number_spec(strategies["coreset"](), network=NET, learner=LEARNER))
    classes = {"classes": ["a", "b"]}
    with pytest.raises(NeedsError, match=r"'pbp' asks for moments.*predicts a class.*entropy"):
        check_spec(pool, number_spec(PBP(), network=NET, task=classes))
    with pytest.raises(NeedsError, match=r"learner 'pbp' does not learn .* a class.*supervised"):
        spec = number_spec(strategies["random"](), network=NET, learner=LEARNER, task=classes)
        check_spec(pool, spec)
    with pytest.raises(NeedsError, match="PBP is defined with the learner"):
        check_spec(pool, dataclasses.replace(number_spec(PBP()), learner=Supervised()))
    with pytest.raises(SettingsError, match="predicts one number, and the task has 3 classes"):
        build_network("pbp", {}, input_shape=(4,), n_outputs=3, seed=0)
    with pytest.raises(NeedsError, match="module of one"):
        check_spec(pool, number_spec(PBP(), network=NET, scan=ScanOptions(compile=True)))
    assert learners["pbp"] is ProbabilisticBackpropagation
