"""Numbers as targets: rounds that predict them, and what is refused before anything starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from number_cases import PLAIN, POOL, TEST, number_pool, number_project, number_spec
from pools import houses

from rayal.engine.checks import check_spec
from rayal.engine.tasks import task_of
from rayal.engine.versions import answers
from rayal.engine.workspace import Inputs
from rayal.errors import LabelError, NeedsError, SettingsError
from rayal.evaluation.oracle import Oracle
from rayal.labels import NumberLabel
from rayal.learners import Supervised
from rayal.registry import learners, strategies
from rayal.settings.run import TaskSettings, load


def test_rounds_on_numbers_learn_and_tell_rmse_in_units_of_the_number(tmp_path: Path) -> None:
    project = number_project(tmp_path, strategies["random"]())
    first, last = (r.metrics for r in project.rounds())
    assert list(last) == ["rmse", "nll"]
    _, y, _ = houses(POOL + TEST)
    spread = float(np.std(y[POOL:]))
    assert last["rmse"] < 0.4 * spread  # 30 x 1,000: the mean alone has the spread as its rmse
    assert first["nll"] > 0.5 * np.log(2 * np.pi)  # units of the number, not of the deviation
    committee = project.committee(1)
    labels = [project.ledger.resolved("p")[i] for i in project.ledger.resolved("p")]
    assert committee.statistics["target_mean"].item() == pytest.approx(np.mean(labels))
    assert committee.statistics["target_std"].item() == pytest.approx(np.std(labels))
    earlier = project.committee(0).statistics["target_mean"]
    assert earlier.item() != committee.statistics["target_mean"].item()  # fitted anew each round


def test_predictions_of_a_version_have_a_mean_and_a_variance(tmp_path: Path) -> None:
    project = number_project(tmp_path, strategies["random"](), members=2)
    committee = project.committee(1)
    rows = project.pool.take(list(project.pool.ids("test")))
    made = answers(committee, rows, project.spec.scan, 1)
    _, y, ids = houses(POOL + TEST)
    truth = dict(zip(ids, y, strict=True))
    errors = [a.label - truth[i] for a, i in zip(made, project.pool.ids("test"), strict=True)]
    rmse = project.rounds()[1].metrics["rmse"]
    assert float(np.sqrt(np.mean(np.square(errors)))) == pytest.approx(rmse)
    assert all(a.variance is not None and a.variance > 0 and a.probs == () for a in made)
    one = [answers(c, rows, project.spec.scan, 1) for c in _single(committee)]
    means = np.array([[a.label for a in single] for single in one])
    noise = np.array([single[0].variance for single in one])
    expected = means.var(axis=0) + noise.mean()
    np.testing.assert_allclose([a.variance or 0.0 for a in made], expected, rtol=1e-6)


def _single(committee: Any) -> list[Any]:
    return [dataclasses.replace(committee, nets=(n,), members=()) for n in committee.nets]


def test_a_joint_choice_on_embeddings_takes_numbers_too(tmp_path: Path) -> None:
    project = number_project(tmp_path, strategies["coreset"]())
    assert len(project.ledger.resolved("p")) == 40


@pytest.mark.parametrize("name", ["entropy", "badge", "bait", "bald", "egl", "dfal", "batchbald"])
def test_strategies_of_classes_are_refused_on_numbers(name: str, tmp_path: Path) -> None:
    strategy = strategies[name]()
    with pytest.raises(NeedsError, match=f"'{name}' asks for .*predicts a number.*coreset.*random"):
        check_spec(number_pool(tmp_path), number_spec(strategy))


def test_strategies_whose_learner_is_of_classes_are_refused_on_numbers(tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match=r"'multiview' has a learner of its own.*a number"):
        check_spec(number_pool(tmp_path), number_spec(strategies["multiview"]()))
    evidential = learners["evidential"]()
    with pytest.raises(NeedsError, match=r"'evidential' does not learn .* a number.*super"):
        check_spec(number_pool(tmp_path), number_spec(strategies["random"](), learner=evidential))


def test_hyperparameters_of_classes_are_refused_on_numbers(tmp_path: Path) -> None:
    pool, random = number_pool(tmp_path), strategies["random"]()
    for learner in (Supervised(label_smoothing=0.1), Supervised(class_weights="balanced")):
        with pytest.raises(NeedsError, match="predicts a number, which has no classes"):
            check_spec(pool, number_spec(random, learner=learner))


def test_the_target_follows_the_labels_or_the_settings(tmp_path: Path) -> None:
    pool = number_pool(tmp_path)
    assert task_of(pool, {}).labels == NumberLabel()
    assert task_of(pool, {"low": 0.0, "high": 2e3}).labels == NumberLabel(0.0, 2e3)
    assert task_of(pool, {"classes": ["a", "b"]}).target == "class"
    with pytest.raises(SettingsError, match=r"task\.low and task\.high bound a number"):
        task_of(pool, {"classes": ["a", "b"], "low": 0.0})
    with pytest.raises(LabelError, match="is out of bounds; give a finite number from 0 to 5"):
        Oracle(pool, labels=NumberLabel(0.0, 5.0))
    with pytest.raises(SettingsError, match="gives some answers another class"):
        Oracle(pool, labels=NumberLabel(), noise=0.1)
    with pytest.raises(SettingsError, match="equally many items of each class"):
        Oracle(pool, labels=NumberLabel()).balanced(pool, 4, 0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"target": "number", "classes": ("a", "b")}, "leave the classes out"),
        ({"target": "class", "low": 0.0}, r"task\.low bounds a number"),
        ({"target": "number", "low": 2.0, "high": 1.0}, "low must be the smaller one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TaskSettings(**given)


def test_held_out_rows_judge_the_noise_where_there_are_some(tmp_path: Path) -> None:
    free = dataclasses.replace(PLAIN, steps=1500, weight_decay=0.0)
    held = dataclasses.replace(free, early_stopping=0.3, patience=100)
    made = [
        number_project(tmp_path / str(n), strategies["random"](), learner=learner, rounds=0)
        for n, learner in enumerate((free, held))
    ]
    links: list[Any] = [p.committee(0).net(0).link for p in made]
    noise = [link.variance.item() for link in links]
    assert noise[0] < noise[1]  # rows that were trained on show too little of it
    assert torch.isfinite(torch.tensor(noise)).all()
    assert isinstance(made[0].inputs, Inputs)


def test_bounds_and_target_are_settings_of_a_run(tmp_path: Path) -> None:
    settings = load({"pool": {"source": "x.csv"}, "task": {"target": "number", "low": 0.0}})
    assert settings.task.low == 0.0 and settings.task.high is None
