"""The noise of a number that a network predicts: what makes moments of its last layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConstantNoise(nn.Module):
    """Makes moments ``[N, 3]`` of means ``[N, 1]``: mean, no variance, the same noise for all rows.

    Attributes:
        variance: of the noise, in units of the standardised number; a learner sets it.
    """

    variance: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(()))

    def forward(self, mean: Tensor) -> Tensor:
        """Return mean, model variance 0 and noise variance, ``[N, 3]``."""
        noise = self.variance.to(mean).expand_as(mean)
        return torch.cat([mean, torch.zeros_like(mean), noise], dim=1)
