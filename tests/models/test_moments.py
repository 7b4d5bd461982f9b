"""Moment propagation: closed forms against numerical integrals, samples, and plain layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from rayal.errors import NeedsError
from rayal.models import build_network
from rayal.models.moments import (
    MomentNet,
    NormalConv2d,
    NormalLinear,
    log_probit,
    normal_layers,
    propagate,
    rectified,
    with_normal_weights,
)
from rayal.strategies.adaptive import PolicyNet, discounted

CNN = {"input_shape": (1, 8, 8), "n_outputs": 3, "seed": 4}


@pytest.mark.parametrize("mean", [-3.0, -0.5, 0.0, 0.7, 4.0])
@pytest.mark.parametrize("variance", [0.01, 1.0, 9.0])
def test_a_rectified_normal_equals_the_integral(mean: float, variance: float) -> None:
    made = rectified(torch.tensor([mean]).double(), torch.tensor([variance]).double())
    density = stats.norm(mean, math.sqrt(variance)).pdf
    high = mean + 12 * math.sqrt(variance)
    moments = [
        integrate.quad(lambda x, p=p: x**p * density(x), 0, max(high, 1e-9), points=[max(mean, 0)])[
            0
        ]
        for p in (1, 2)
    ]
    assert made[0].item() == pytest.approx(moments[0], rel=1e-7, abs=1e-12)
    assert made[1].item() == pytest.approx(moments[1] - moments[0] ** 2, rel=1e-6, abs=1e-10)


def test_a_rectified_normal_keeps_its_digits_at_the_ends() -> None:
    mean = torch.tensor([5.0, -5.0, 3.0, -3.0, 1000.0])
    variance = torch.tensor([0.0, 0.0, 1e-8, 1e-8, 2.0])
    made = rectified(mean, variance)
    assert made[0].tolist() == pytest.approx([5.0, 0.0, 3.0, 0.0, 1000.0])
    assert made[1].tolist() == pytest.approx([0.0, 0.0, 1e-8, 0.0, 2.0])
    leaf = torch.tensor([0.0, 1.0, 100.0], requires_grad=True)
    sum(part.sum() for part in rectified(leaf, torch.tensor([0.0, 1.0, 1e-6]))).backward()  # type: ignore[union-attr]
    assert leaf.grad is not None and bool(torch.isfinite(leaf.grad).all())


def test_derivatives_of_a_rectified_normal() -> None:
    mean = torch.linspace(-3.0, 3.0, 7).double().requires_grad_()
    variance = torch.linspace(0.2, 4.0, 7).double().requires_grad_()
    assert torch.autograd.gradcheck(rectified, (mean, variance))


def test_a_layers_moments_are_exact() -> None:
    layer = NormalLinear(nn.Linear(3, 2))
    with torch.no_grad():
        layer.log_variance.copy_(torch.randn(2, 3))
    mean, variance = torch.randn(4, 3), torch.rand(4, 3)
    made = layer.moments(mean, variance)
    for n in range(4):
        for out in range(2):
            m, s = layer.weight[out], layer.log_variance[out].exp()
            terms = m**2 * variance[n] + s * (variance[n] + mean[n] ** 2)
            assert made[1][n, out].item() == pytest.approx(terms.sum().item(), rel=1e-5)
    torch.testing.assert_close(made[0], nn.functional.linear(mean, layer.weight, layer.bias))
    none = layer.moments(mean, None)[1]
    torch.testing.assert_close(none, layer.moments(mean, torch.zeros_like(mean))[1])


def test_convolutions_are_linear_layers_over_windows() -> None:
    plain = nn.Conv2d(2, 3, 3, padding=1, stride=2)
    layer = NormalConv2d(plain)
    with torch.no_grad():
        layer.log_variance.copy_(torch.randn_like(layer.weight))
    mean, variance = torch.randn(2, 2, 6, 6), torch.rand(2, 2, 6, 6)
    made = layer.moments(mean, variance)
    flat = NormalLinear(nn.Linear(18, 3))
    with torch.no_grad():
        flat.weight.copy_(plain.weight.flatten(1))
        assert flat.bias is not None and plain.bias is not None
        flat.bias.copy_(plain.bias)
        flat.log_variance.copy_(layer.log_variance.flatten(1))
    windows = [
        nn.functional.unfold(x, 3, padding=1, stride=2).transpose(1, 2).reshape(-1, 18)
        for x in (mean, variance)
    ]
    for ours, theirs in zip(made, flat.moments(*windows), strict=True):
        torch.testing.assert_close(ours, theirs.view(2, 3, 3, 3).permute(0, 3, 1, 2))


def test_moments_of_a_network_are_those_of_sampled_weights() -> None:
    net = MomentNet(build_network("mlp", {"widths": (40,)}, input_shape=(6,), n_outputs=3, seed=1))
    with torch.no_grad():
        for layer in normal_layers(net):
            layer.log_variance.fill_(math.log(0.02))
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    first, last = normal_layers(net)
    made = []
    for _ in range(20_000):
        h = x
        for layer in (first, last):
            noise = torch.randn(layer.weight.shape, generator=draw)
            weight = layer.weight + layer.variance.sqrt() * noise
            h = nn.functional.linear(h, weight, layer.bias)
            h = h if layer is last else h.relu()
        made.append(h.detach())
    samples = torch.stack(made)
    mean, variance = (m.detach() for m in net.moments(x))
    torch.testing.assert_close(mean, samples.mean(dim=0), rtol=0, atol=0.02)
    torch.testing.assert_close(variance, samples.var(dim=0), rtol=0.04, atol=0)


def test_without_variance_it_is_the_plain_network() -> None:
    plain = build_network("small_cnn", {"widths": (4, 4, 8), "dropout": 0.3}, **CNN).eval()  # type: ignore[arg-type]
    net = MomentNet(plain)
    with torch.no_grad():
        for layer in normal_layers(net):
            layer.log_variance.fill_(-200.0)
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, variance = net.moments(x)
    torch.testing.assert_close(mean, plain(x), rtol=1e-3, atol=2e-3)  # exp(-11) is what is left
    assert variance.max() < 1e-2
    torch.testing.assert_close(net(x), log_probit(mean, variance))
    logits, embedding = net.answer(x)
    assert embedding is not None and torch.equal(logits, net(x))
    torch.testing.assert_close(embedding, net.embed(x))
    torch.testing.assert_close(embedding, plain.embed(x), rtol=1e-3, atol=2e-3)


def test_tapped_layers_are_the_means_on_the_way_to_the_logits() -> None:
    net = MomentNet(build_network("small_cnn", {}, **CNN)).eval()  # type: ignore[arg-type]
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for layer in normal_layers(net):
            layer.log_variance.fill_(-3.0)  # so that variances change the means behind a ReLU
        logits, tapped = net.taps(x, net.stage_names)
        assert torch.equal(logits, net(x)) and tuple(tapped) == net.stage_names
        for index, name in enumerate(net.stage_names[:-1]):
            assert torch.equal(tapped[name], net.run(x, 0, index + 1))
        assert torch.equal(tapped[net.stage_names[-1]], net.moments(x)[0])
        assert torch.equal(tapped[net.stage_names[-2]], net.embed(x))
    assert set(net.taps(x, net.tap_names[:1])[1]) == {net.tap_names[0]}
    with pytest.raises(NeedsError, match="no stage 'x' to tap"):
        net.taps(x, ("x",))


def test_initial_means_are_those_of_the_plain_network() -> None:
    # a fan-in by a running product, (k - 1)! for a k x k window, would scale convolutions wrongly
    plain = build_network("small_cnn", {"widths": (32, 64, 8)}, **CNN)  # type: ignore[arg-type]
    layers = list(normal_layers(MomentNet(plain)))
    own = [m for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [type(layer) for layer in layers] == [NormalConv2d] * 2 + [NormalLinear] * 2
    for ours, theirs in zip(layers, own, strict=True):
        assert torch.equal(ours.weight, theirs.weight)
        assert bool((ours.log_variance == -9.0).all())
    second = layers[1].weight
    assert second.std().item() == pytest.approx(1 / math.sqrt(3 * 32 * 9), rel=0.05)


def test_probits_by_hand() -> None:
    mean = torch.tensor([0.0, 1.0, -2.0, 3.0])
    zero = torch.zeros(4)
    np.testing.assert_allclose(log_probit(mean, zero).exp(), stats.norm.cdf(mean), rtol=1e-5)
    assert log_probit(mean, torch.full((4,), 1e12)).exp().tolist() == pytest.approx(
        [0.5] * 4, abs=1e-5
    )
    one = log_probit(torch.tensor([2.0]), torch.tensor([3.0])).exp()
    assert one.item() == pytest.approx(stats.norm.cdf(1.0))


def test_the_divergence_is_that_of_normals() -> None:
    layer = NormalLinear(nn.Linear(2, 3))
    prior = torch.distributions.Normal(0.0, 1 / math.sqrt(10.0))
    own = torch.distributions.Normal(layer.weight, layer.variance.sqrt())
    expected = torch.distributions.kl_divergence(own, prior).sum()
    torch.testing.assert_close(layer.divergence(10.0), expected)
    with torch.no_grad():
        layer.weight.zero_()
        layer.log_variance.fill_(-math.log(10.0))
    assert layer.divergence(10.0).item() == pytest.approx(0.0, abs=1e-6)
    plain = 0.5 * (10.0 * layer.variance - layer.log_variance).sum()  # without its constants
    assert torch.autograd.grad(plain, layer.log_variance)[0].abs().max() < 1e-6


def test_of_a_window_the_largest_mean_stays_with_its_variance() -> None:
    mean = torch.tensor([[[[1.0, 3.0], [2.0, 0.0]]]])
    variance = torch.tensor([[[[9.0, 0.5], [8.0, 7.0]]]])
    made = propagate(nn.MaxPool2d(2), mean, variance)
    assert made[1] is not None and (made[0].item(), made[1].item()) == (3.0, 0.5)


def test_moments_keep_their_digits_under_autocast() -> None:
    net = MomentNet(build_network("small_cnn", {"widths": (4, 4, 8)}, **CNN))  # type: ignore[arg-type]
    x = torch.rand(5, 1, 8, 8)
    plain = (*net.moments(x), *net.answer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = (*net.moments(x), *net.answer(x))
    for ours, theirs in zip(cast, plain, strict=True):
        assert ours is not None and theirs is not None and torch.equal(ours, theirs)


@pytest.mark.parametrize("network", ["resnet18_small"])
def test_other_layers_are_refused_with_a_remedy(network: str) -> None:
    net = build_network(network, {}, input_shape=(1, 16, 16), n_outputs=3, seed=0)
    with pytest.raises(NeedsError, match="moments: members"):
        MomentNet(net)
    with pytest.raises(NeedsError, match="GELU"):
        with_normal_weights(nn.Sequential(nn.Linear(2, 2), nn.GELU()))


# ---- policy --------------------------------------------------------------------------------------


def test_a_policy_without_means_is_uniform() -> None:
    net = PolicyNet(7, 3, hidden=11, seed=0)
    with torch.no_grad():
        for layer in normal_layers(net):
            layer.weight.zero_()
            assert layer.bias is not None
            layer.bias.zero_()
    chances = net(torch.randn(2, 7, 3), torch.rand(2, 7, 3), torch.tensor([7, 4])).exp()
    assert chances[0].tolist() == pytest.approx([1 / 7] * 7)
    assert chances[1].tolist() == pytest.approx([0.25] * 4 + [0.0] * 3)


def test_returns_by_hand() -> None:
    assert discounted(torch.tensor([0.0, 1.0]), 0.5).tolist() == [0.5, 1.0]
    rewards = torch.tensor([3.0, -1.0, 2.0])
    assert discounted(rewards, 0.0).tolist() == rewards.tolist()
    assert discounted(rewards, 1.0).tolist() == [4.0, 1.0, 2.0]
