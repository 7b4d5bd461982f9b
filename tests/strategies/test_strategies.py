"""Hand-computed choices, and `rayal.select` on anyone's columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rayal
from rayal.errors import BudgetError, NeedsError, SettingsError, UnknownNameError
from rayal.registry import strategies
from rayal.strategies import Ctx
from rayal.types import Columns

ROWS = np.log([[0.44, 0.42, 0.14], [0.46, 0.27, 0.27], [0.495, 0.495, 0.01]])


@pytest.mark.parametrize(
    ("name", "order"),
    [("least_confidence", [0, 1, 2]), ("margin", [2, 0, 1]), ("entropy", [1, 0, 2])],
)
def test_three_rows_part_the_three_measures(name: str, order: list[int]) -> None:
    assert rayal.select(name, {"log_probs": ROWS}, 3).positions.tolist() == order


def test_vote_ties_go_by_bald_then_entropy() -> None:
    # all rows: two of three members agree, vote ratio 1/3
    sure = [[0.99, 0.01], [0.99, 0.01], [0.01, 0.99]]
    unsure = [[0.6, 0.4], [0.6, 0.4], [0.4, 0.6]]
    members = np.log([unsure, sure])
    chosen = rayal.select("ensemble_variation_ratio", {"member_log_probs": members}, 2)
    assert chosen.positions.tolist() == [1, 0]
    assert chosen.scores.tolist() == pytest.approx([1 / 3, 1 / 3])
    mean = rayal.select("variation_ratio", {"member_log_probs": members}, 2)
    assert mean.scores.tolist() == pytest.approx([0.4667, 0.3367], abs=1e-3)


def test_badge_scores_are_squared_gradient_norms() -> None:
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(20, 4)), requires_grad=True)
    h = torch.tensor(rng.normal(size=(20, 6)))
    weight = torch.zeros((4, 6), dtype=torch.float64, requires_grad=True)
    scores = strategies["badge"]().score(
        Columns({"log_probs.0": logits.log_softmax(1).detach(), "embedding": h}, list("a" * 20))
    )
    for row in range(20):
        out = logits[row].detach() + weight @ h[row]
        loss = torch.nn.functional.cross_entropy(out[None], out.argmax()[None])
        (gradient,) = torch.autograd.grad(loss, weight)
        assert scores[row].item() == pytest.approx(gradient.square().sum().item(), rel=1e-9)
        others = [
            torch.autograd.grad(
                torch.nn.functional.cross_entropy(
                    (logits[row].detach() + weight @ h[row])[None], torch.tensor([y])
                ),
                weight,
            )[0]
            .square()
            .sum()
            for y in range(4)
        ]
        assert scores[row].item() <= min(others).item() + 1e-12


def test_coreset_starts_from_what_is_labeled_and_pending() -> None:
    x = np.array([*range(11), 100.0])[:, None]
    picks = rayal.select("coreset", {"embedding": x}, 2, labeled={"embedding": [[0.0]]})
    assert x[picks.positions, 0].tolist() == [100.0, 10.0]


def test_batchbald_avoids_copies_that_bald_takes() -> None:
    bits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    one = np.where(bits[:, :1] == 1, [1e-9, 1.0], [1.0, 1e-9])
    two = np.where(bits[:, 1:] == 1, [0.05, 0.95], [0.95, 0.05])
    members = {"member_log_probs": np.log(np.stack([one, one, two]))}
    assert rayal.select("bald", members, 2).positions.tolist() == [0, 1]
    assert rayal.select("batchbald", members, 2).positions.tolist() == [0, 2]


def test_random_is_uniform_and_seeded() -> None:
    columns = {"score": np.zeros(10)}
    first = [int(rayal.select("random", columns, 1, seed=s).positions[0]) for s in range(500)]
    counts = np.bincount(first, minlength=10)
    assert ((counts > 20) & (counts < 85)).all()
    assert (
        rayal.select("random", columns, 5, seed=1).ids
        == rayal.select("random", columns, 5, seed=1).ids
    )


def test_parameters_and_names_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'margin'"):
        rayal.select("margn", {"log_probs": ROWS}, 1)
    with pytest.raises(SettingsError, match="pases"):
        rayal.select("bald", {"member_log_probs": np.zeros((2, 2, 2))}, 1, params={"pases": 3})
    with pytest.raises(NeedsError, match="needs column 'embedding'"):
        rayal.select("badge", {"log_probs": ROWS}, 1)
    with pytest.raises(BudgetError, match="k = 4 of 3"):
        rayal.select("margin", {"log_probs": ROWS}, 4)


def test_presets_of_ensembles_are_the_same_scores_over_five_members() -> None:
    names = ("ensemble_bald", "ensemble_entropy", "ensemble_variation_ratio")
    assert [strategies[n]().members for n in names] == [5] * 3
    rng = np.random.default_rng(1)
    members = {"member_log_probs": np.log(rng.dirichlet(np.ones(3), size=(40, 5)))}
    for name, ensemble in (("bald", "ensemble_bald"), ("mc_entropy", "ensemble_entropy")):
        assert rayal.select(name, members, 9).ids == rayal.select(ensemble, members, 9).ids


def test_context_asks_for_labels_only_where_stated() -> None:
    for name in strategies:
        objective = strategies[name]().objective(Ctx(round=0, k=1, seed=0, n_candidates=1))
        assert set(objective.context) <= set(strategies[name].context)
