"""AL-DL: the three measures with layer-wise pre-training, and faults of public code."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digit_cases import committee_of, items, picks, pool_rows, rounds_of

import rayal
from rayal.engine.project import Project
from rayal.engine.spec import Initial, NetworkSpec
from rayal.learners import LayerwisePretrained
from rayal.registry import strategies
from rayal.types import Columns

NAMES = ("least_confidence", "margin", "entropy")
SPLIT = np.log([[0.44, 0.42, 0.14], [0.46, 0.27, 0.27], [0.495, 0.495, 0.01]])
SIGMOID = NetworkSpec("mlp", {"widths": (48, 24), "activation": "sigmoid"})


def learner(**changes: Any) -> LayerwisePretrained:
    given = {
        "steps": 120, "batch": 32, "epoch_steps": 40, "schedule": "constant", "lr": 1e-2,
        "pretrain_steps": 60, **changes,
    }  # fmt: skip
    return LayerwisePretrained(**given)


@pytest.mark.parametrize("kind", ["autoencoder", "rbm"])
@pytest.mark.parametrize("name", NAMES)
def test_rounds_on_digits(name: str, kind: Any, tmp_path: Path) -> None:
    strategy = strategies[name]()
    project = rounds_of(tmp_path, strategy, network=SIGMOID, learner=learner(kind=kind))
    assert len(set(items(project))) == 20
    summary = project.rounds()[-1]
    assert summary.outputs["pretrain"]["rows"] == 500
    assert summary.metrics["accuracy"] > 0.5  # of ten classes, after 120 steps
    raw, _ = pool_rows(project)
    committee = committee_of(project)
    logits = committee.net(0)(committee.task.transform(raw, committee.statistics))
    scores = strategy.score(Columns({"log_probs": logits.log_softmax(dim=1)}, [""] * len(raw)))
    assert scores is not None and torch.isfinite(scores).all() and scores.std() > 0
    best = picks(project)[0]
    assert best[1] == pytest.approx(max(s for _, s in picks(project) if s is not None))


def test_the_measures_part_and_each_picks_its_own_row() -> None:
    for name, row, value in zip(NAMES, (0, 2, 1), (0.56, 0.0, 1.06424), strict=True):
        made = rayal.select(name, {"log_probs": SPLIT}, 1)
        assert made.positions.tolist() == [row]
        assert made.scores[0] == pytest.approx(value, abs=1e-4)


def test_mixing_with_the_uniform_distribution_never_lowers_the_entropy() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(6) * 0.3, size=200)
    before = -math.inf
    for share in (0.0, 0.2, 0.5, 1.0):
        mixed = torch.from_numpy(np.log((1 - share) * p + share / 6))
        score = strategies["entropy"]().score(Columns({"log_probs": mixed}, [""] * 200))
        assert score is not None and (score.numpy() >= before - 1e-12).all()
        before = score.numpy()
    np.testing.assert_allclose(before, math.log(6))


@pytest.mark.parametrize("name", NAMES)
def test_impossible_classes_give_no_nan(name: str) -> None:
    """Public code takes the logarithm of a probability that is 0, and ranks NaN."""
    log_probs = np.array([[0.0, -np.inf, -np.inf], [np.log(0.5), np.log(0.5), -np.inf]])
    made = rayal.select(name, {"log_probs": log_probs}, 2)
    assert made.positions.tolist() == [1, 0] and np.isfinite(made.scores).all()
    assert made.scores[1] == {"least_confidence": 0.0, "margin": -1.0, "entropy": 0.0}[name]


def test_dropout_passes_are_averaged_as_probabilities_not_as_logits() -> None:
    """Public code sums the logits of its dropout passes where it means probabilities."""
    logits = torch.tensor([[[6.0, 0.0], [-2.0, 0.0], [-2.0, 0.0]]])  # [N, M, C]
    (score,) = rayal.select("mc_entropy", {"member_log_probs": logits.log_softmax(2)}, 1).scores
    mean = logits.softmax(dim=2).mean(dim=1)
    assert score == pytest.approx(-(mean * mean.log()).sum().item(), rel=1e-6)
    wrong = logits.mean(dim=1).log_softmax(dim=1)
    assert abs(score + (wrong.exp() * wrong).sum().item()) > 0.02


def test_the_classes_are_the_tasks_not_those_that_were_labeled(tmp_path: Path) -> None:
    """Public code sizes the output by the labels that it has seen."""
    project: Project = rounds_of(
        tmp_path, strategies["margin"](), network=SIGMOID, learner=learner(pretrain_steps=10),
        initial=Initial(count=5),  # at most five of the ten classes
    )  # fmt: skip
    head = committee_of(project).net(0).head
    assert isinstance(head, torch.nn.Linear) and head.out_features == 10
