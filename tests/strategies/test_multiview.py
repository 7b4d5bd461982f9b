"""AL-MV: the combination by hand, its heads against scikit-learn, and rounds on real digits."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from digit_cases import PLAIN, committee_of, items, picks, pool_rows, rounds_of
from sklearn.linear_model import LogisticRegression

import rayal
from rayal.engine.spec import NetworkSpec
from rayal.errors import NeedsError
from rayal.registry import strategies
from rayal.strategies.multiview import (
    HiddenViews,
    MultiView,
    fit_head,
    held_out_accuracy,
)
from rayal.testing import STRATEGY_CHECKS
from rayal.types import Columns

SURE, UNSURE = [0.9, 0.1], [0.5, 0.5]


def entropy(p: list[float]) -> float:
    return -sum(q * math.log(q) for q in p)


def scores(views: Any, accuracy: Any, **params: Any) -> list[float]:
    logs = torch.tensor(views, dtype=torch.float64).log()
    share = torch.tensor(accuracy, dtype=torch.float64).expand(len(logs), -1)
    columns = Columns({"hidden_log_probs": logs, "view_accuracy": share}, ["i"] * len(logs))
    made: list[float] = MultiView(**params).score(columns).tolist()
    return made


def test_the_score_by_hand() -> None:
    views = [[SURE, UNSURE], [UNSURE, SURE]]
    h = entropy(SURE) / math.log(2)
    uniform = scores(views, [0.9, 0.5], weights="uniform")
    assert uniform == pytest.approx([(h + 1) / 2] * 2)
    a = 1 / (1 + math.exp(-4.0))  # softmax of (9, 5), the accuracies over 0.1
    weighed = scores(views, [0.9, 0.5])
    assert weighed == pytest.approx([a * h + (1 - a), a + (1 - a) * h])
    one = scores(views, [0.9, 0.5], temperature=1e-4)  # the best view has all the weight
    assert one == pytest.approx([h, 1.0])


def test_identical_heads_rank_as_one_of_them_does() -> None:
    rows = np.random.default_rng(2).dirichlet(np.ones(4), size=60)
    three = np.array(scores(np.repeat(rows[:, None], 3, axis=1), [0.2, 0.9, 0.5]))
    one = np.array([entropy(row) for row in rows.tolist()])
    np.testing.assert_allclose(three, one / math.log(4), rtol=1e-12)
    assert (np.argsort(three) == np.argsort(one)).all()


def test_a_head_that_guesses_loses_its_weight_as_the_temperature_falls() -> None:
    views = [[SURE, UNSURE]]
    h = entropy(SURE) / math.log(2)
    shares = [(scores(views, [0.8, 0.5], temperature=t)[0] - h) / (1 - h) for t in (1.0, 0.1, 0.01)]
    assert shares == pytest.approx([1 / (1 + math.exp(0.3 / t)) for t in (1.0, 0.1, 0.01)])
    assert shares[0] > 0.4 and shares[2] < 1e-12


def test_scores_lie_between_0_and_1_and_a_less_sure_view_never_lowers_one() -> None:
    rng = np.random.default_rng(0)
    views = rng.dirichlet(np.ones(4), size=(300, 3))
    before = np.array(scores(views, [0.2, 0.6, 0.8]))
    assert (before >= 0).all() and (before <= 1).all()
    views[:, 1] = 0.5 * views[:, 1] + 0.125  # entropy is Schur-concave
    assert (np.array(scores(views, [0.2, 0.6, 0.8])) >= before).all()


def test_views_that_agree_have_no_divergence_and_others_have_that_of_bald() -> None:
    same = [[SURE, SURE], [UNSURE, UNSURE]]
    assert scores(same, [0.5, 0.5], disagreement=3.0) == scores(same, [0.5, 0.5])
    apart = [[[1.0, 0.0], [0.0, 1.0]]]
    assert scores(apart, [0.5, 0.5], disagreement=0.5) == pytest.approx([0.5])


def test_a_head_is_the_ridge_logistic_regression_of_standardised_features() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 4)) * [1.0, 5.0, 0.1, 1.0] + 3.0
    noisy = x[:, 0] + x[:, 1] / 5 + rng.normal(size=60)
    y = np.digitize(noisy, np.quantile(noisy, [1 / 3, 2 / 3]))
    weight, bias = fit_head(torch.tensor(x), torch.tensor(y), 3, 0.01)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    other = LogisticRegression(C=1 / (0.01 * 60), tol=1e-10, max_iter=5000).fit(z, y)
    made = torch.softmax(torch.tensor(x) @ weight.T + bias, dim=1)
    np.testing.assert_allclose(made, other.predict_proba(z), atol=1e-4)


def test_a_constant_feature_and_an_absent_class_are_no_special_case() -> None:
    x = torch.cat([torch.ones(8, 1), torch.randn(8, 2)], dim=1)
    weight, bias = fit_head(x, torch.tensor([0, 1] * 4), 3, 0.1)
    assert torch.isfinite(weight).all() and torch.isfinite(bias).all() and weight.shape == (3, 3)


def test_accuracy_is_of_rows_that_the_head_has_not_seen() -> None:
    x = torch.eye(12)  # each row has a feature of its own: seen rows are all right
    y = torch.tensor([0, 1, 2] * 4)
    folds = [torch.arange(12)[i::4] for i in range(4)]
    weight, bias = fit_head(x, y, 3, 0.01)
    assert ((x.double() @ weight.T + bias).argmax(dim=1) == y).all()
    assert held_out_accuracy(x, y, folds, ridge=0.01) <= 1 / 3
    features = torch.nn.functional.one_hot(y).float()
    assert held_out_accuracy(features, y, folds, ridge=0.01) == 1.0
    assert held_out_accuracy(features[:1], y[:1], [torch.arange(1)], ridge=0.01) == 0.0


@pytest.mark.parametrize("params", [{"weights": "uniform"}, {"disagreement": 0.5}], ids=str)
def test_contract_of_its_forms(params: dict[str, Any], subtests: pytest.Subtests) -> None:
    for check, run_check in STRATEGY_CHECKS.items():
        with subtests.test(check):
            run_check(MultiView(**params))


def test_on_digits_without_hidden_views_it_is_entropy_and_with_them_it_is_not(
    tmp_path: Path,
) -> None:
    on = rounds_of(tmp_path / "on", MultiView())
    learner = on.spec.learner
    assert isinstance(learner, HiddenViews) and learner.steps == PLAIN.steps
    off = rounds_of(tmp_path / "off", MultiView(), learner=dataclasses.replace(learner, taps=()))
    base = rounds_of(tmp_path / "base", strategies["entropy"]())
    assert items(off) == items(base)
    expected = [s / math.log(10) for _, s in picks(base) if s is not None]
    assert [s for _, s in picks(off)] == expected  # bit for bit
    assert set(items(on)) != set(items(base))

    committee, plain = committee_of(on), committee_of(base)
    for ours, theirs in zip(committee.net(0).parameters(), plain.net(0).parameters(), strict=True):
        assert torch.equal(ours, theirs)  # heads do not change training
    raw, y = pool_rows(on)
    with torch.inference_mode():
        x = committee.task.transform(raw, committee.statistics)
        extras = learner.extras(committee.nets[0], x)
    assert extras["hidden_log_probs"].shape == (len(raw), 3, 10)
    right = (extras["hidden_log_probs"].argmax(dim=2) == y[:, None]).double().mean(dim=0)
    stated = extras["view_accuracy"][0].double()
    assert (right > 0.3).all()  # each head has learned, of 10 classes
    # on the pool the hidden heads are as right as they say; the embedding has seen the labels
    assert (stated - right)[:2].abs().max() < 0.2
    assert stated[2] > right[2]


def test_a_network_without_a_hidden_layer_to_look_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match="no hidden layers that can be tapped"):
        rounds_of(tmp_path, MultiView(), network=NetworkSpec("mlp", {"widths": (16,)}))


def test_by_hand_through_select() -> None:
    columns = {
        "hidden_log_probs": np.log([[SURE, SURE], [UNSURE, SURE], [UNSURE, UNSURE]]),
        "view_accuracy": np.full((3, 2), 0.5),
    }
    assert rayal.select("multiview", columns, 3).positions.tolist() == [2, 1, 0]


def test_one_class_has_no_entropy_to_compare_with_and_is_refused() -> None:
    columns = {"hidden_log_probs": np.zeros((3, 2, 1)), "view_accuracy": np.ones((3, 2))}
    with pytest.raises(NeedsError, match="C = 1 classes; give at least 2"):
        rayal.select("multiview", columns, 1)
