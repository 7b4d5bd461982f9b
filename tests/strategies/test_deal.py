"""DEAL: the evidential loss against closed forms, its learner, and its rounds on real digits."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from digit_cases import PLAIN, committee_of, items, picks, pool_rows, rounds_of
from scipy.optimize import minimize_scalar
from torch.distributions import Dirichlet, kl_divergence

import rayal
from rayal.acquisition import divergence_from_uniform, vacuity
from rayal.errors import NeedsError, SettingsError
from rayal.registry import learners, strategies
from rayal.strategies.deal import DEAL, Evidential, LogConcentration, evidential_loss
from rayal.testing import STRATEGY_CHECKS


def one_hot(y: int, classes: int) -> torch.Tensor:
    return torch.eye(classes)[y][None]


def test_no_evidence_is_a_uniform_mean_and_the_whole_mass_is_of_no_class() -> None:
    log_alpha = LogConcentration("softsign")(torch.zeros(1, 10))
    assert log_alpha.eq(0).all()
    assert vacuity(log_alpha).item() == pytest.approx(1.0)
    assert log_alpha.softmax(dim=1).eq(0.1).all()
    assert divergence_from_uniform(log_alpha.exp().double()).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("evidence", ["softsign", "relu", "softplus", "exp"])
def test_concentrations_are_one_plus_the_evidence_of_every_activation(evidence: str) -> None:
    z = torch.linspace(-9.0, 9.0, 37)[None].double()
    expected = {
        "softsign": z / (1 + z.abs()),
        "relu": z.clamp_min(0),
        "softplus": (1 + z.exp()).log(),
        "exp": z.exp(),
    }[evidence]
    alpha = LogConcentration(evidence)(z).exp()  # type: ignore[arg-type]
    torch.testing.assert_close(alpha, 1 + expected, rtol=1e-12, atol=0)
    if evidence != "softsign":
        assert vacuity(alpha.log()).item() <= 1.0


def test_softsign_keeps_its_digits_and_gradient_where_alpha_vanishes() -> None:
    z = torch.tensor([[-3e7, 5.0, 0.0]], requires_grad=True)
    log_alpha = LogConcentration("softsign")(z)
    assert log_alpha[0, 0].item() == pytest.approx(-math.log(3e7 + 1), rel=1e-6)
    evidential_loss(log_alpha, one_hot(1, 3), 1.0).sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None and torch.isfinite(z.grad).all()
    zero = torch.zeros(1, 3, requires_grad=True)  # where |z| has no derivative
    (slope,) = torch.autograd.grad(LogConcentration("softsign")(zero).sum(), zero)
    assert slope.tolist() == [[1.0, 1.0, 1.0]]
    bounds = LogConcentration("softsign")(torch.randn(500, 10) * 50)
    assert vacuity(bounds).min() > 0.5  # alpha < 2, so C / S > 1/2: never certain


def test_the_kl_term_equals_torch_and_the_hand_computed_case() -> None:
    hand = divergence_from_uniform(torch.tensor([[2.0, 1.0]], dtype=torch.float64))
    assert hand.item() == pytest.approx(math.log(2) - 0.5, abs=1e-12)
    alpha = torch.rand(50, 7, dtype=torch.float64) * 3 + 1e-3
    other = kl_divergence(Dirichlet(alpha), Dirichlet(torch.ones_like(alpha)))
    torch.testing.assert_close(divergence_from_uniform(alpha), other, rtol=1e-9, atol=1e-9)


def test_the_loss_by_hand_and_what_the_kl_term_leaves_out() -> None:
    alpha = torch.tensor([[1.5, 0.5, 1.0]], requires_grad=True)
    plain = evidential_loss(alpha.log(), one_hot(0, 3), 0.0)
    assert plain.item() == pytest.approx(math.log(3.0 / 1.5), abs=1e-6)
    both = evidential_loss(alpha.log(), one_hot(0, 3), 0.3)
    others = torch.tensor([[1.0, 0.5, 1.0]], dtype=torch.float64)
    term = kl_divergence(Dirichlet(others), Dirichlet(torch.ones(1, 3, dtype=torch.float64)))
    assert (both - plain).item() == pytest.approx(0.3 * term.item(), abs=1e-6)
    (gradient,) = torch.autograd.grad(both - plain, alpha)
    assert gradient[0, 0].item() == pytest.approx(0.0, abs=1e-7)  # the true class's evidence


@pytest.mark.parametrize(
    ("classes", "weight", "mean", "mass"),
    [(10, 1.0, 0.20, 1.00), (10, 0.02, 0.486, 2.43), (2, 1.0, 0.719, 0.719)],
)
def test_a_fitted_row_under_softsign_has_the_published_losses_interior_optimum(
    classes: int, weight: float, mean: float, mass: float
) -> None:
    def row(other: float) -> torch.Tensor:
        alpha = torch.full((1, classes), other, dtype=torch.float64)
        alpha[0, 0] = 2.0
        return alpha

    def loss(other: float) -> float:
        return evidential_loss(row(other).log(), one_hot(0, classes), weight).item()

    best = row(minimize_scalar(loss, bounds=(1e-6, 2.0), method="bounded").x)
    assert (best[0, 0] / best.sum()).item() == pytest.approx(mean, abs=0.01)
    assert vacuity(best.log()).item() == pytest.approx(mass, abs=0.01)


def test_without_the_kl_term_a_row_can_be_fitted_to_no_loss() -> None:
    for classes in (2, 3, 10):
        z = torch.full((1, classes), -1e6, dtype=torch.float64)
        z[0, 0] = 1e6  # evidence near 1 of its class and near -1 of all others
        loss = evidential_loss(LogConcentration("softsign")(z), one_hot(0, classes), 0.0)
        assert loss.item() == pytest.approx(0.0, abs=1e-4)


def test_the_weight_rises_linearly_over_half_of_the_training_and_then_stays() -> None:
    learner = Evidential()
    logits, y = torch.randn(4, 3) * 0.1, torch.tensor([0, 1, 2, 0])
    targets = torch.eye(3)[y]
    for done, weight in ((0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (1.0, 1.0)):
        made = learner.row_losses(logits, y, smoothing=0.0, done=done)
        expected = evidential_loss(logits, targets, weight).float()
        torch.testing.assert_close(made, expected, rtol=1e-6, atol=0)
    assert made.dtype == torch.float32


def test_the_penalty_is_that_of_the_last_two_dense_layers() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    made = Evidential(dense_decay=0.005).penalty(net)
    squares = [float(p.detach().square().sum()) for p in (net[1].weight, net[2].weight)]  # type: ignore[operator]
    expected = sum(squares)
    assert made is not None
    assert made.item() == pytest.approx(0.5 * 0.005 * expected, rel=1e-6)
    assert Evidential(dense_decay=0.0).penalty(net) is None


def test_scores_by_hand() -> None:
    alpha = np.array([[1.9, 0.1, 1.0], [1.2, 1.1, 0.7], [0.2, 0.2, 0.2]])
    log_probs = np.log(alpha / alpha.sum(axis=1, keepdims=True))
    columns = {"log_probs": log_probs, "vacuity": 3 / alpha.sum(axis=1)}
    assert rayal.select("deal", columns, 3).positions.tolist() == [2, 1, 0]
    assert rayal.select("deal", columns, 3).scores.tolist() == pytest.approx([0, -0.1 / 3, -0.3])
    mass = rayal.select("deal", columns, 1, params={"acquisition": "uncertainty"})
    assert mass.positions.tolist() == [2] and mass.scores[0] == pytest.approx(5.0)
    entropy = rayal.select("deal", columns, 3, params={"acquisition": "entropy"})
    other = rayal.select("entropy", columns, 3)
    assert entropy.ids == other.ids and entropy.scores.tobytes() == other.scores.tobytes()


@pytest.mark.parametrize("acquisition", ["uncertainty", "entropy"])
def test_contract_of_its_forms(acquisition: str, subtests: pytest.Subtests) -> None:
    for check, run_check in STRATEGY_CHECKS.items():
        with subtests.test(check):
            run_check(strategies["deal"](acquisition=acquisition))


def test_on_digits_it_is_margin_on_an_evidential_network_and_nothing_else(tmp_path: Path) -> None:
    deal = rounds_of(tmp_path / "deal", DEAL())
    assert isinstance(deal.spec.learner, Evidential) and deal.spec.learner.steps == PLAIN.steps
    margin = strategies["margin"]()
    same = rounds_of(tmp_path / "same", margin, learner=deal.spec.learner)
    assert picks(deal) == picks(same)  # the rule alone is margin, bit for bit
    plain = rounds_of(tmp_path / "plain", margin)
    assert len(set(items(deal)) & set(items(plain))) < 20
    assert deal.rounds()[-1].metrics["accuracy"] > 0.5

    raw, y = pool_rows(deal)
    committee = committee_of(deal)
    x = committee.task.transform(raw, committee.statistics)
    with torch.inference_mode():
        extras = deal.spec.learner.extras(committee.nets[0], x)
        log_probs = committee.net(0)(x).log_softmax(dim=1)
    alpha = extras["alpha"]
    mean = alpha / alpha.sum(dim=1, keepdim=True)
    torch.testing.assert_close(log_probs.exp(), mean, rtol=1e-5, atol=1e-6)
    right = mean.argmax(dim=1) == y  # evidence speaks for what is right
    assert mean.amax(dim=1)[right].mean() > mean.amax(dim=1)[~right].mean()
    assert alpha.min() > 0 and alpha.max() < 2


def test_the_uncertainty_mass_separates_what_is_known_with_evidence_that_is_not_negative(
    tmp_path: Path,
) -> None:
    own = {"evidence": "softplus", "divergence": 0.01}
    learner = Evidential(**{**dataclasses.asdict(PLAIN), **own})
    project = rounds_of(tmp_path, DEAL(acquisition="uncertainty"), learner=learner)
    committee = committee_of(project)
    raw, y = pool_rows(project)
    with torch.inference_mode():
        nets = committee.nets[0]
        seen = committee.task.transform(raw, committee.statistics)
        extras = learner.extras(nets, seen)
    mass, right = extras["vacuity"], extras["alpha"].argmax(dim=1) == y
    assert (mass > 0).all() and (mass <= 1).all()
    assert mass[right].mean() < mass[~right].mean() - 0.02
    scores = [s for _, s in picks(project)]
    assert scores == sorted(scores, reverse=True)  # type: ignore[type-var]


def test_another_learner_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(NeedsError, match="DEAL is defined with the learner Evidential"):
        rounds_of(tmp_path, DEAL(), learner=PLAIN)
    with pytest.raises(SettingsError, match="softsing"):
        Evidential(evidence="softsing")  # type: ignore[arg-type]
    assert learners["evidential"] is Evidential
