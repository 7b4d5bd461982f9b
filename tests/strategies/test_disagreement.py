"""Deep Bayesian active learning and ensembles: every formula, default, and fault of public code."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

import rayal
from rayal.engine.spec import NetworkSpec
from rayal.engine.train import context
from rayal.errors import NeedsError
from rayal.labels import ClassLabel
from rayal.learners import Supervised
from rayal.models import Committee
from rayal.registry import strategies
from rayal.signals import Signal
from rayal.tasks import TableTask

Floats = npt.NDArray[np.float64]
BAYESIAN = ("bald", "mc_entropy", "variation_ratio", "mean_std")
ENSEMBLES = ("ensemble_bald", "ensemble_entropy", "ensemble_variation_ratio")


def predictions(n: int = 60, members: int = 5, classes: int = 4, seed: int = 0) -> Floats:
    """Return probabilities ``[N, M, C]``."""
    rng = np.random.default_rng(seed)
    p: Floats = rng.dirichlet(np.full(classes, 0.6), size=(n, members))
    return p


def scores(name: str, p: Floats, **params: Any) -> Floats:
    """Return the score of every row, in row order."""
    with np.errstate(divide="ignore"):
        members = np.log(p)
    made = rayal.select(name, {"member_log_probs": members}, len(p), params=params)
    out = np.empty(len(p))
    out[made.positions] = made.scores
    return out


def expected(p: Floats) -> dict[str, Floats]:
    """Return the published formulas, from their definitions."""
    _, members, classes = p.shape
    mean = p.mean(axis=1)
    modal = [np.bincount(row.argmax(axis=1), minlength=classes).max() for row in p]
    entropy = stats.entropy(mean, axis=1)
    mutual = entropy - stats.entropy(p, axis=2).mean(axis=1)
    vote = 1.0 - np.array(modal) / members
    return {
        "bald": mutual,
        "mc_entropy": entropy,
        "variation_ratio": 1.0 - mean.max(axis=1),
        "mean_std": p.std(axis=1).mean(axis=1),
        "ensemble_bald": mutual,
        "ensemble_entropy": entropy,
        "ensemble_variation_ratio": vote,
    }


@pytest.mark.parametrize("name", BAYESIAN + ENSEMBLES)
def test_the_scores_are_the_published_formulas(name: str) -> None:
    p = predictions()
    np.testing.assert_allclose(scores(name, p), expected(p)[name], atol=1e-12)


def test_both_forms_of_the_variation_ratio_are_parameters() -> None:
    p = predictions()
    wanted = expected(p)
    vote = scores("variation_ratio", p, form="vote")
    np.testing.assert_allclose(vote, wanted["ensemble_variation_ratio"], atol=1e-12)
    mean = scores("ensemble_variation_ratio", p, form="mean")
    np.testing.assert_allclose(mean, wanted["variation_ratio"], atol=1e-12)
    pair = np.array([[[0.51, 0.49]] * 3, [[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]]])
    columns = {"member_log_probs": np.log(pair)}
    first = [
        rayal.select("variation_ratio", columns, 1, params={"form": form}).positions[0]
        for form in ("mean", "vote")
    ]
    assert first == [0, 1]


def test_defaults_are_those_of_the_papers() -> None:
    for name in BAYESIAN:
        strategy = strategies[name]()
        assert (strategy.passes, strategy.members) == (100, 1)
    for name in ENSEMBLES:
        strategy = strategies[name]()
        assert (strategy.passes, strategy.members) == (0, 5)
    assert strategies["variation_ratio"]().form == "mean"
    assert strategies["ensemble_variation_ratio"]().form == "vote"


@pytest.mark.parametrize("name", BAYESIAN + ENSEMBLES)
def test_members_may_be_permuted_and_copied(name: str) -> None:
    p = predictions()
    order = np.random.default_rng(1).permutation(p.shape[1])
    np.testing.assert_allclose(scores(name, p[:, order]), scores(name, p), atol=1e-12)
    # a member three times in five counts three fifths
    weighted = p[:, [0, 0, 0, 1, 2]]
    np.testing.assert_allclose(scores(name, weighted), expected(weighted)[name], atol=1e-12)
    twice = np.repeat(p, 2, axis=1)
    np.testing.assert_allclose(scores(name, twice), scores(name, p), atol=1e-12)


@pytest.mark.parametrize("name", BAYESIAN + ENSEMBLES)
def test_classes_may_be_relabelled(name: str) -> None:
    p = predictions()
    np.testing.assert_allclose(scores(name, p[:, :, [2, 0, 3, 1]]), scores(name, p), atol=1e-12)


def test_equal_members_disagree_nowhere_however_unsure_they_are() -> None:
    p = np.repeat(np.array([[[0.5, 0.5]], [[0.9, 0.1]]]), 5, axis=1)
    for name in ("bald", "mean_std", "ensemble_bald", "ensemble_variation_ratio"):
        np.testing.assert_allclose(scores(name, p), 0.0, atol=1e-15)
    assert scores("mc_entropy", p)[0] == pytest.approx(math.log(2))  # aleatoric


def test_opposite_members_by_hand() -> None:
    p = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.9, 0.1], [0.1, 0.9]]])
    assert scores("bald", p).tolist() == pytest.approx([math.log(2), 0.368064], abs=1e-6)
    assert scores("mean_std", p).tolist() == pytest.approx([0.5, 0.4])
    assert scores("mc_entropy", p).tolist() == pytest.approx([math.log(2)] * 2)


def test_votes_of_three_one_one() -> None:
    p = np.eye(3)[[[0, 0, 0, 1, 2]]] * 0.97 + 0.01
    assert scores("ensemble_variation_ratio", p)[0] == pytest.approx(0.4)


@pytest.mark.parametrize("name", BAYESIAN + ENSEMBLES)
def test_impossible_classes_give_no_nan(name: str) -> None:
    """The released code takes logarithms of probabilities that may be 0, to the base of 2."""
    p = np.eye(3)[np.array([[0, 1, 2], [0, 0, 0], [2, 2, 1]])]
    made = scores(name, p)
    assert np.isfinite(made).all()
    np.testing.assert_allclose(made, expected(p)[name], atol=1e-12)


def test_the_deviation_is_over_the_passes() -> None:
    """The released script takes the deviation of a list with one value: 0 for every item."""
    p = predictions(members=20)
    made = scores("mean_std", p)
    assert made.min() > 0.0 and made.std() > 0.0
    last = np.argsort(np.zeros(len(p)))[-10:]
    assert set(np.argsort(made)[-10:]) != set(last)


def test_the_variation_ratio_is_not_that_of_one_pass() -> None:
    """Public code calls the least confidence of one deterministic pass a variation ratio."""
    p = predictions()
    one = 1.0 - p[:, 0].max(axis=1)
    for form in ("mean", "vote"):
        assert np.abs(scores("variation_ratio", p, form=form) - one).max() > 0.1


@pytest.mark.parametrize("name", ENSEMBLES)
def test_every_member_counts_in_query_and_prediction(name: str) -> None:
    """Public code queries with all members but the last, and predicts with that one alone."""
    p = predictions()
    other = p.copy()
    other[:, -1] = predictions(seed=9)[:, -1]
    assert np.abs(scores(name, p) - scores(name, other)).max() > 0.05
    columns = {"member_log_probs": np.log(p)}
    predicted = rayal.select("least_confidence", columns, len(p))
    np.testing.assert_allclose(
        predicted.scores, 1.0 - p.mean(axis=1).max(axis=1)[predicted.positions], atol=1e-12
    )


def test_the_entropy_of_one_member_is_the_models_own() -> None:
    p = predictions(members=1)
    columns = {"member_log_probs": np.log(p)}
    plain = rayal.select("entropy", {"log_probs": np.log(p[:, 0])}, len(p))
    for name in ("mc_entropy", "ensemble_entropy"):
        made = rayal.select(name, columns, len(p))
        assert made.ids == plain.ids
        np.testing.assert_allclose(made.scores, plain.scores, rtol=1e-7)  # of float32 columns
    for name in ("bald", "ensemble_bald"):
        assert np.abs(scores(name, p)).max() == 0.0


TASK = TableTask(ClassLabel(tuple("abc")), ("w", "x", "y", "z"))


def check(signals: tuple[Signal, ...], asked: Committee) -> None:
    for signal in signals:
        signal.check(asked)


def committee(members: int, dropout: float) -> Committee:
    network = NetworkSpec("mlp", {"widths": [6], "dropout": dropout})
    made = context(Supervised(), network, TASK)
    nets = tuple(torch.nn.ModuleDict({"task": made.build(seed)}).eval() for seed in range(members))
    return Committee(nets, TASK, TASK.fit(torch.zeros(1, 4)), "", 0, 0)


@pytest.mark.parametrize("name", BAYESIAN)
def test_dropout_switched_off_is_an_error_and_no_score_of_zero(name: str) -> None:
    """Public code scores networks without dropout by the noise of BatchNorm, or by nothing."""
    strategy = strategies[name](passes=3)
    check(strategy.signals(), committee(1, 0.3))
    with pytest.raises(NeedsError, match="dropout"):
        check(strategy.signals(), committee(1, 0.0))
    alone = strategies[name](passes=0)
    with pytest.raises(NeedsError, match="disagreement needs two"):
        check(alone.signals(), committee(1, 0.3))
    check(alone.signals(), committee(2, 0.0))  # an ensemble needs none


@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_ensemble_of_one_is_refused(name: str) -> None:
    strategy = strategies[name](members=1)
    with pytest.raises(NeedsError, match="disagreement needs two"):
        check(strategy.signals(), committee(1, 0.0))
