"""Networks with normal weights, through which means and variances go in closed form.

By the central limit theorem a layer's output is nearly normal, so that its first two moments are
all that the next layer needs; nothing is sampled.

References:
    Haussmann, Hamprecht & Kandemir, IJCAI 2019, "Deep active learning with adaptive acquisition"
    (the networks); Frey & Hinton, Neural Computation 11, 1999 (moments of a rectified normal);
    Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, equation 3.82 (probit).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rayal.errors import NeedsError
from rayal.models.base import HookedNet, TaskNet


class ConstantNoise(nn.Module):
    """A layer from means ``[N, 1]`` to moments ``[N, 3]``: mean, no variance, constant noise.

    Attributes:
        variance: variance of the noise, in units of the standardised number; a learner sets it.
    """

    variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(()))

    def forward(self, mean: Tensor) -> Tensor:
        """Return mean, model variance 0 and noise variance, ``[N, 3]``."""
        noise = self.variance.to(mean).expand_as(mean)
        return torch.cat([mean, torch.zeros_like(mean), noise], dim=1)


LOG_VARIANCE = -9.0  # of every weight before training
LIMIT = 11.0  # of |log variance|
_WIDE = 30.0  # deviations beyond which a normal is on one side of 0
_NORMALISER = 1.0 / math.sqrt(2.0 * math.pi)
_HALF_ROOT = math.sqrt(0.5)
_CONVOLUTION = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
    "padding_mode",
)  # fmt: skip
Moments = tuple[Tensor, Tensor | None]  # mean, variance; None is a variance of 0 everywhere


class NormalWeights(nn.Module):
    """A layer whose weights are independent normals; its bias is a number.

    As a plain layer it computes with the means alone.
    """

    weight: Tensor
    bias: Any
    log_variance: nn.Parameter

    def take(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take copies of these means and of this bias."""
        self.weight = nn.Parameter(weight.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.log_variance = nn.Parameter(torch.full_like(self.weight, LOG_VARIANCE))

    @property
    def variance(self) -> Tensor:
        """The variance of each weight."""
        return self.log_variance.clamp(-LIMIT, LIMIT).exp()

    def apply_weights(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output with other weights."""
        raise NotImplementedError

    def moments(self, mean: Tensor, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the output: of w·x, Σ M² v + S (v + m²)."""
        output = self.apply_weights(mean, self.weight, self.bias)
        if variance is None:
            return output, self.apply_weights(mean.square(), self.variance, None)
        second = self.apply_weights(variance + mean.square(), self.variance, None)
        return output, self.apply_weights(variance, self.weight.square(), None) + second

    def divergence(self, precision: float) -> Tensor:
        """Return KL(N(M, S) || N(0, 1 / precision)), summed over weights: a number >= 0."""
        limited = self.log_variance.clamp(-LIMIT, LIMIT)
        spread = precision * (self.weight.square() + limited.exp())
        return 0.5 * (spread - 1.0 - limited - math.log(precision)).sum()


class NormalLinear(NormalWeights, nn.Linear):
    """A linear layer with normal weights.

    Args:
        layer: layer whose weights are the means.
    """

    def __init__(self, layer: nn.Linear) -> None:
        nn.Linear.__init__(
            self, layer.in_features, layer.out_features, layer.bias is not None, device="meta"
        )
        self.take(layer.weight, layer.bias)

    def apply_weights(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output ``[N, out]`` with other weights."""
        return F.linear(x, weight, bias)


class NormalConv2d(NormalWeights, nn.Conv2d):
    """A convolution with normal weights.

    Args:
        layer: layer whose weights are the means.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        shape: Any = {n: getattr(layer, n) for n in _CONVOLUTION}
        nn.Conv2d.__init__(self, **shape, bias=layer.bias is not None, device="meta")
        self.take(layer.weight, layer.bias)

    def apply_weights(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output ``[N, out, H, W]`` with other weights."""
        output: Tensor = self._conv_forward(x, weight, bias)
        return output


class MomentNet(TaskNet):
    """A task's network with normal weights; its logits are the logarithms of P_c.

    P_c = Φ(mean_c / sqrt(1 + variance_c)) is the probability of class c against the others; softmax
    of the logits, P_c / Σ P, predicts. Dropout is left out: weights vary already.

    Args:
        net: network of linear layers, convolutions, ReLU, max-pooling, flattening; it is copied.

    Raises:
        NeedsError: it has another layer.
    """

    def __init__(self, net: TaskNet) -> None:
        if isinstance(net, HookedNet):
            raise _unknown(net.module)
        stages = zip(net.stage_names, net.stages, strict=True)
        super().__init__({name: with_normal_weights(stage) for name, stage in stages})
        #: labeled rows that it is trained on; a learner sets it
        self.rows = 1

    @property
    def ends_linear(self) -> bool:
        """False: logits are a function of the last layer's mean and variance."""
        return False

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of the last layer's output, ``[N, C]`` each."""
        mean, variance = self._through(x, 0, None)
        assert variance is not None
        return mean, variance

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the mean of what ``stages[start:stop]`` make of ``x``; at the end, logits."""
        ends = slice(start, stop).indices(len(self.stages))[1] == len(self.stages)
        moments = self._through(x, start, stop)
        return log_probit(*moments) if ends else moments[0]

    def answer(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor | None]:
        """Return logits ``[N, C]`` and the mean of the last layer's input, ``[N, D]``."""
        mean, variance = self._through(x, start, -1)
        with torch.autocast(x.device.type, enabled=False):
            return log_probit(*propagate(self.stages[-1], mean, variance)), mean

    def taps(self, x: Tensor, names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return logits ``[N, C]`` and the means ``[N, …]`` of the named stages' outputs."""
        self._check_names(names)
        mean, variance, tapped = x, None, {}
        with torch.autocast(x.device.type, enabled=False):
            for name, stage in zip(self.stage_names, self.stages, strict=True):
                mean, variance = propagate(stage, mean, variance)
                if name in names:
                    tapped[name] = mean
            return log_probit(mean, variance), tapped

    def _through(self, x: Tensor, start: int, stop: int | None) -> Moments:
        """Return the moments behind some stages; never under autocast, which takes digits."""
        mean, variance = x, None
        with torch.autocast(x.device.type, enabled=False):
            for stage in list(self.stages)[start:stop]:
                mean, variance = propagate(stage, mean, variance)
        return mean, variance

    def divergence(self, precision: float) -> Tensor:
        """Return the sum of all layers' divergences from N(0, 1 / precision)."""
        return torch.stack([layer.divergence(precision) for layer in normal_layers(self)]).sum()


def normal_layers(net: nn.Module) -> Iterator[NormalWeights]:
    """Yield the layers with normal weights."""
    return (module for module in net.modules() if isinstance(module, NormalWeights))


def with_normal_weights(module: nn.Module) -> nn.Module:
    """Return a copy of a module through which moments can go, or raise NeedsError."""
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*(with_normal_weights(part) for part in module))
    if type(module) is nn.Linear:
        return NormalLinear(module)
    if type(module) is nn.Conv2d:
        return NormalConv2d(module)
    if isinstance(module, nn.Dropout | nn.Dropout2d):
        return nn.Identity()
    if isinstance(module, nn.ReLU | nn.MaxPool2d | nn.Flatten | nn.Identity):
        return copy.deepcopy(module)
    raise _unknown(module)


def propagate(module: nn.Module, mean: Tensor, variance: Tensor | None) -> Moments:
    """Return mean and variance behind a module of ``with_normal_weights``.

    Args:
        module: linear, convolution, ReLU, max-pooling (the entry of the largest mean stays, with
            its variance), flattening, or a sequence of these.
        mean: ``[N, …]``.
        variance: ``[N, …]``; None for inputs that are numbers.
    """
    if isinstance(module, nn.Sequential):
        for part in module:
            mean, variance = propagate(part, mean, variance)
        return mean, variance
    if isinstance(module, NormalWeights):
        return module.moments(mean, variance)
    if variance is None:
        return module(mean.clone() if isinstance(module, nn.ReLU) else mean), None
    if isinstance(module, nn.ReLU):
        return rectified(mean, variance)
    if isinstance(module, nn.MaxPool2d):
        return _largest(module, mean, variance)
    return module(mean), module(variance)


def rectified(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of max(0, x), x normal; without loss where |mean| >> deviation.

    Args:
        mean: any shape.
        variance: the same; 0 gives max(0, mean) and 0.
    """
    moments: tuple[Tensor, Tensor] = _Rectified.apply(mean, variance)
    return moments


class _Rectified(torch.autograd.Function):
    """The moments, and their derivatives in closed form: automatic ones take twice as long."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        deviation = variance.clamp_min(torch.finfo(mean.dtype).tiny).sqrt()
        a = (mean / deviation).clamp_(-_WIDE, _WIDE)
        above = torch.erfc(a * -_HALF_ROOT).mul_(0.5)  # Φ with all digits, as ndtr is not far out
        density = a.square().mul_(-0.5).exp_().mul_(_NORMALISER)
        # E[max(0, z + a)] = a Φ + φ, which is a, or 0, where a was limited
        centre = torch.addcmul(density, a, above).mul_(deviation)
        centre = torch.where(a.abs() < _WIDE, centre, mean).clamp_min_(0.0)
        # Φ + a² Φ (1 - Φ) + a φ (1 - 2 Φ) - φ²
        below = torch.erfc(a * _HALF_ROOT).mul_(0.5)
        slope = torch.addcmul(density * (below - above), a, above * below)
        spread = torch.addcmul(above, a, slope).sub_(density.square()).clamp_(0.0, 1.0)
        ctx.save_for_backward(centre, above, density.div_(deviation))
        return centre, spread.mul_(variance)

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_variance: Tensor) -> tuple[Tensor, Tensor]:
        centre, above, density = ctx.saved_tensors
        # ∂m'/∂m = Φ, ∂m'/∂v = φ / 2σ; ∂v'/∂m = 2 m' (1 - Φ), ∂v'/∂v = Φ - m' φ / σ
        by_mean = of_mean * above + of_variance * (2.0 * centre * (1.0 - above))
        by_variance = of_mean * (0.5 * density) + of_variance * (above - centre * density)
        return by_mean, by_variance


def log_probit(mean: Tensor, variance: Tensor | None) -> Tensor:
    """Return log Φ(mean / sqrt(1 + variance)), at least float32."""
    wide = mean.to(torch.promote_types(mean.dtype, torch.float32))
    if variance is not None:
        wide = wide / (1.0 + variance.to(wide.dtype)).sqrt()
    log_probs: Tensor = torch.special.log_ndtr(wide)
    return log_probs


def one_against_all(mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    """Return the classes' binary cross-entropies summed, float64 ``[B]``, of moments ``[B, C]``.

    Both log P_c and log(1 - P_c) are computed of the moments: P_c of a class that is surely taken
    rounds to 1, of which neither its complement nor a gradient could be had. Targets y are in
    [0, 1], ``[B, C]``.
    """
    mean, variance = mean.double(), variance.double()
    yes, no = log_probit(mean, variance), log_probit(-mean, variance)
    return -(y * yes + (1.0 - y) * no).sum(dim=1)


def _largest(pool: nn.MaxPool2d, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    options: dict[str, Any] = {
        name: getattr(pool, name) for name in ("stride", "padding", "dilation", "ceil_mode")
    }
    most, at = F.max_pool2d(mean, pool.kernel_size, return_indices=True, **options)
    flat = variance.flatten(2).gather(2, at.flatten(2))
    return most, flat.view_as(most)


def _unknown(module: nn.Module) -> NeedsError:
    return NeedsError(
        f"means and variances do not go through {type(module).__name__}; use a network of linear "
        "layers, convolutions, ReLU and max-pooling, such as small_cnn or mlp, or have them "
        "measured over members or dropout masks (adaptive: {moments: members, passes: 20})"
    )
