"""Contrastive divergence by hand, and against exact gradients by enumeration."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from rayal.learners.layerwise import Machine, Units, contrastive_divergence


def machine(units: Units = "bernoulli", *, h: int = 3, v: int = 4, size: float = 1.0) -> Machine:
    draw = torch.Generator().manual_seed(0)
    shapes = ((h, v), (h,), (v,))
    w, b, c = (size * torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    return Machine(w, b, c, units)


def states(n: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


def exact_model(rbm: Machine) -> tuple[Tensor, Tensor, Tensor]:
    """Return E[h vᵀ], E[h] and E[v] under the machine, by enumeration of all states."""
    h = states(len(rbm.hidden))
    if rbm.units == "bernoulli":
        v = states(len(rbm.visible))
        energy = -(h @ rbm.weight @ v.T + (h @ rbm.hidden)[:, None] + (v @ rbm.visible)[None])
        p = torch.softmax(-energy.flatten(), 0).view(len(h), len(v))
        return h.T @ p @ v, p.sum(dim=1) @ h, p.sum(dim=0) @ v
    mean = h @ rbm.weight + rbm.visible  # of v given h, unit variance
    weight = h @ rbm.hidden + (mean.square() - rbm.visible.square()).sum(dim=1) / 2
    p = torch.softmax(weight, 0)
    return (h * p[:, None]).T @ mean, p @ h, p @ mean


def test_two_by_two_by_hand() -> None:
    rbm = Machine(
        torch.tensor([[math.log(3.0), 0.0], [0.0, -math.log(3.0)]]),
        torch.zeros(2),
        torch.tensor([-math.log(3.0), 0.0]),
    )
    seen: list[Tensor] = []

    def draw(mean: Tensor, units: Units) -> Tensor:
        seen.append(mean)
        return (mean > 0.5).float()

    made = contrastive_divergence(rbm, torch.tensor([[1.0, 1.0]]), draw=draw)
    # p(h | v) = sigma(log 3, -log 3) = (3/4, 1/4), drawn (1, 0); E[v | h] = sigma(0, 0) = 1/2
    # each, drawn (0, 0); p(h | v') = sigma(0, 0) = (1/2, 1/2)
    assert seen[0].tolist()[0] == pytest.approx([0.75, 0.25])
    assert seen[1].tolist()[0] == pytest.approx([0.5, 0.5])
    assert made.weight.flatten().tolist() == pytest.approx([0.75, 0.75, 0.25, 0.25])
    assert made.hidden.tolist() == pytest.approx([0.25, -0.25])
    assert made.visible.tolist() == pytest.approx([1.0, 1.0])
    assert made.error.item() == pytest.approx(0.25)


def test_gaussian_units_by_hand() -> None:
    rbm = Machine(torch.tensor([[2.0]]), torch.tensor([0.0]), torch.tensor([1.0]), "gaussian")
    made = contrastive_divergence(
        rbm, torch.tensor([[0.0], [4.0]]), draw=lambda mean, units: mean.clone()
    )
    # p = sigma(0) = 1/2 -> v' = 2 · 1/2 + 1 = 2;  p = sigma(8) = a -> v' = 2 a + 1
    a = 1 / (1 + math.exp(-8))
    second, third = 1 / (1 + math.exp(-4)), 1 / (1 + math.exp(-(4 * a + 2)))
    weight = ((0.5 * 0 + a * 4) - (second * 2 + third * (2 * a + 1))) / 2
    assert made.weight.item() == pytest.approx(weight, rel=1e-5)
    assert made.hidden.item() == pytest.approx((0.5 + a - second - third) / 2, rel=1e-5)
    assert made.visible.item() == pytest.approx((0 + 4 - 2 - (2 * a + 1)) / 2, rel=1e-5)


@pytest.mark.parametrize("units", ["bernoulli", "gaussian"])
def test_long_chains_give_the_exact_gradient(units: Units) -> None:
    rbm = machine(units, size=2.0 if units == "bernoulli" else 0.5)
    data = states(4)[[1, 3, 3, 12]]
    joint, hidden, visible = exact_model(rbm)
    p = rbm.hidden_mean(data)
    expected = (p.T @ data / 4 - joint, p.mean(dim=0) - hidden, data.mean(dim=0) - visible)
    gaps = []
    for steps in (1, 100):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            made = contrastive_divergence(rbm, data.repeat(8_000, 1), steps=steps)
        pairs = zip((made.weight, made.hidden, made.visible), expected, strict=True)
        gaps.append(max(float((a - b).abs().max()) for a, b in pairs))
    assert gaps[1] < 0.02  # 32,000 chains: a standard error of 0.003 to 0.005
    assert gaps[0] > 0.04  # one step is biased towards the data


@pytest.mark.parametrize("units", ["bernoulli", "gaussian"])
def test_the_exact_gradient_is_that_of_the_log_likelihood(units: Units) -> None:
    rbm = machine(units, size=0.7)
    data = states(4)[[2, 5, 9]]
    leaves = [t.clone().requires_grad_() for t in (rbm.weight, rbm.hidden, rbm.visible)]
    w, b, c = leaves
    free = torch.nn.functional.softplus(data @ w.T + b).sum(dim=1)
    h = states(3)
    if units == "bernoulli":
        v = states(4)
        log_z = torch.logsumexp((h @ w @ v.T + (h @ b)[:, None] + (v @ c)[None]).flatten(), 0)
        likelihood = (free + data @ c).mean() - log_z
    else:
        log_z = torch.logsumexp(h @ b + ((h @ w + c).square() - c.square()).sum(dim=1) / 2, 0)
        likelihood = (free - (data - c).square().sum(dim=1) / 2).mean() - log_z
    found = torch.autograd.grad(likelihood, leaves)
    joint, hidden, visible = exact_model(rbm)
    p = rbm.hidden_mean(data)
    torch.testing.assert_close(found[0], p.T @ data / 3 - joint)
    torch.testing.assert_close(found[1], p.mean(dim=0) - hidden)
    torch.testing.assert_close(found[2], data.mean(dim=0) - visible)
