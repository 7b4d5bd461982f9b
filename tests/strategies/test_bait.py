"""BAIT as a strategy: scores, labeled rows, parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from digit_cases import items, rounds_of

import rayal
from rayal.errors import NeedsError, SettingsError
from rayal.registry import strategies
from rayal.selection import bait, bait_regression
from rayal.testing import STRATEGY_CHECKS, make_columns
from rayal.types import Columns


def test_the_score_is_the_trace_of_the_information() -> None:
    columns = {
        "log_probs.0": torch.log(torch.tensor([[0.3, 0.7], [1.0, 0.0]])),
        "embedding": torch.tensor([[2.0], [9.0]]),
    }
    score = strategies["bait"]().score(Columns(columns, ["a", "b"]))
    assert score is not None
    np.testing.assert_allclose(score, [1.68, 0.0], atol=1e-6)  # (1 - .09 - .49) 4


def test_it_is_the_function_on_the_same_columns_with_and_without_labeled_rows() -> None:
    made = make_columns(80, np.random.default_rng(0))
    known = make_columns(7, np.random.default_rng(1))
    columns = {n: made[n] for n in ("log_probs", "embedding")}
    alone = rayal.select("bait", columns, 9, params={"labeled_weight": "sum"})
    assert alone.positions.tolist() == bait(made["log_probs"], made["embedding"], 9).tolist()
    labeled = {"log_probs.0": known["log_probs"], "embedding": 5.0 * known["embedding"]}
    for weight in ("sum", "mean", "release"):
        params = {"labeled_weight": weight}
        picks = rayal.select("bait", columns, 9, labeled=labeled, params=params)
        expected = bait(
            made["log_probs"],
            made["embedding"],
            9,
            labeled_log_probs=known["log_probs"],
            labeled_embeddings=5.0 * known["embedding"],
            labeled_weight=weight,
        )
        assert picks.positions.tolist() == expected.tolist()
    assert rayal.select("bait", columns, 9, labeled=labeled, params={"labeled_weight": "sum"}).ids \
        != alone.ids  # fmt: skip


def test_what_is_labeled_or_pending_already_is_not_asked_for_again() -> None:
    log_probs = np.log(np.full((4, 2), 0.5))
    embedding = np.array([[3.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    columns = {"log_probs": log_probs, "embedding": embedding}
    assert rayal.select("bait", columns, 1, params={"oversample": 1}).positions[0] in (0, 1)
    labeled = {"log_probs.0": log_probs[:3], "embedding": np.repeat(embedding[:1], 3, axis=0)}
    params = {"labeled_weight": "sum", "oversample": 1}
    assert rayal.select("bait", columns, 1, labeled=labeled, params=params).positions[0] in (2, 3)


@pytest.mark.parametrize(
    "params",
    [{"rank": 2}, {"block_diagonal": True}, {"oversample": 1, "labeled_weight": "sum"}],
    ids=str,
)
def test_contract_of_its_forms(params: dict[str, object], subtests: pytest.Subtests) -> None:
    for check, run_check in STRATEGY_CHECKS.items():
        with subtests.test(check):
            run_check(strategies["bait"](**params))


def test_the_regression_form_is_the_function_on_the_same_columns() -> None:
    made = make_columns(80, np.random.default_rng(0))
    known = make_columns(7, np.random.default_rng(1))["embedding"]
    columns = {"embedding": made["embedding"]}
    alone = rayal.select("bait_regression", columns, 9, params={"noise": 0.5})
    assert alone.positions.tolist() == bait_regression(made["embedding"], 9, noise=0.5).tolist()
    picks = rayal.select(
        "bait_regression", columns, 9, labeled={"embedding": 5.0 * known}, params={"noise": 0.5}
    )
    expected = bait_regression(
        made["embedding"], 9, labeled_embeddings=5.0 * known, noise=0.5, oversample=2
    )
    assert picks.positions.tolist() == expected.tolist() and picks.ids != alone.ids
    strategy = strategies["bait_regression"](noise=2.0)
    score = strategy.score(Columns({"embedding": torch.tensor([[3.0, 4.0]])}, ["a"]))
    assert score is not None and score.item() == pytest.approx(6.25)  # 25 / 4


def test_the_regression_form_runs_on_digits_and_asks_another_choice(tmp_path: Path) -> None:
    made = {}
    for name in ("bait_regression", "bait"):
        project = rounds_of(tmp_path / name, strategies[name]())
        made[name] = items(project)
        assert len(set(made[name])) == 20
    assert set(made["bait"]) != set(made["bait_regression"])


def test_parameters_have_bounds() -> None:
    made = make_columns(5, np.random.default_rng(0))
    columns = {n: made[n] for n in ("log_probs", "embedding")}
    for params in ({"oversample": 0}, {"ridge": 0.0}, {"rank": -1}, {"labeled_weight": "max"}):
        with pytest.raises(SettingsError, match=next(iter(params))):
            rayal.select("bait", columns, 1, params=params)
    for params in ({"rank": 1, "block_diagonal": True}, {"rank": 2, "block_diagonal": True}):
        with pytest.raises(SettingsError, match="give one of them: rank 0, or block_diagonal"):
            rayal.select("bait", columns, 1, params=params)
    with pytest.raises(NeedsError, match="embedding"):
        rayal.select("bait", {"log_probs": made["log_probs"]}, 1)
