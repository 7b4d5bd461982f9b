"""Networks whose weights are independent normals, through which moments go in closed form.

Source: Hernández-Lobato & Adams, ICML 2015, "Probabilistic backpropagation for scalable learning of
Bayesian neural networks", section 3: every layer's input is a mean and a variance for each unit;
a linear layer and a ReLU turn them into those of the next layer. Weights and moments are float64;
the rows that come in are float32, as everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn

from rayal.errors import NeedsError, SettingsError
from rayal.models.base import TaskNet, no_embedding
from rayal.models.moments import rectified
from rayal.registry import networks

SHAPE = RATE = 6.0  # of the Gamma priors of noise precision and weight precision


class ProbabilisticNet(TaskNet):
    """A ReLU network with one normal per weight, which gives moments ``[N, 3]`` of one number.

    Args:
        sizes: inputs, units of every hidden layer, and 1.

    Attributes:
        means: means of the weights of each layer, ``[O, K]``, K its inputs and the bias.
        variances: variances of the weights, likewise.
        noise: shape and rate of the Gamma distribution of the noise's precision, ``[2]``.
        prior: shape and rate of that of the weights' precision under the prior, ``[2]``.
    """

    has_moments: ClassVar[bool] = True
    noise: Tensor
    prior: Tensor

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__({"flatten": nn.Flatten(1)})
        shapes = [(o, i + 1) for i, o in pairwise(sizes)]
        means = [torch.randn(s, dtype=torch.float64) / math.sqrt(s[1]) for s in shapes]
        spread = RATE / (SHAPE - 1.0)  # the mean of an inverse Gamma
        variances = [torch.full(s, spread, dtype=torch.float64) for s in shapes]
        self.means = nn.ParameterList([nn.Parameter(m, requires_grad=False) for m in means])
        self.variances = nn.ParameterList([nn.Parameter(v, requires_grad=False) for v in variances])
        for name in ("noise", "prior"):
            self.register_buffer(name, torch.tensor([SHAPE, RATE], dtype=torch.float64))

    @property
    def n_outputs(self) -> int:
        """One number."""
        return 1

    @property
    def has_embedding(self) -> bool:
        """It has none: there is no plain last layer."""
        return False

    @property
    def embeds_input(self) -> bool:
        """It does not."""
        return False

    @property
    def head(self) -> nn.Linear:
        """Raise NeedsError: there is no plain last layer."""
        raise no_embedding(self)

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return moments ``[N, 3]``; the network is one stage."""
        if stop is not None and stop < 0:
            raise NeedsError(f"{type(self).__name__} has no stages to stop between")
        if not range(*slice(start, stop).indices(1)):
            return x
        mean, variance = self.propagate(self.stages[0](x))
        shape, rate = self.noise.unbind()
        return torch.stack([mean, variance, (rate / (shape - 1.0)).expand_as(mean)], dim=1)

    def answer(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor | None]:
        """Return moments ``[N, 3]``, and no embedding."""
        return self.run(x, start), None

    def propagate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean ``[N]`` and variance ``[N]`` of the output for inputs ``[N, D]``."""
        mean, variance = x.double(), torch.zeros_like(x, dtype=torch.float64)
        last = len(self.means) - 1
        for layer, (weight, spread) in enumerate(zip(self.means, self.variances, strict=True)):
            one = torch.ones_like(mean[:, :1])  # the bias is a weight of a constant input
            z, v = torch.cat([mean, one], dim=1), torch.cat([variance, 0.0 * one], dim=1)  # [N, K]
            inputs = z.shape[1]
            mean = z @ weight.T / math.sqrt(inputs)  # [N, O]
            variance = (v @ weight.square().T + (z.square() + v) @ spread.T) / inputs
            if layer < last:
                mean, variance = rectified(mean, variance)
        return mean[:, 0], variance[:, 0]

    def _check_stages(self) -> None:
        """Its layers are parameters, not stages."""


@networks.register("pbp")
def pbp(
    input_shape: tuple[int, ...],
    n_outputs: int,
    *,
    hidden: tuple[Annotated[int, Gt(0)], ...] = (50,),
) -> TaskNet:
    """Return a network with normal weights for one number, which the learner pbp trains.

    Args:
        input_shape: shape of a row; it is flattened.
        n_outputs: 1.
        hidden: units of the hidden layers; none gives a linear model.

    Raises:
        SettingsError: the task predicts classes.
    """
    if n_outputs != 1:
        raise SettingsError(
            f"network 'pbp' predicts one number, and the task has {n_outputs} classes; set "
            "task.target to number, or choose another network"
        )
    return ProbabilisticNet((prod(input_shape), *hidden, 1))
