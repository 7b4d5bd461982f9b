"""The arrays of the bench, functions of sizes and a seed."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 65_536  # rows made at once


def mixture(rows: int, width: int, seed: int) -> Tensor:
    """Return embeddings ``[N, D]`` of 100 Gaussian clusters of different sizes, float32."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn((100, width), generator=g)
    shares = torch.rand(100, generator=g) ** 2 + 0.01
    x = torch.empty((rows, width))
    for start in range(0, rows, _BLOCK):
        block = x[start : start + _BLOCK]
        cluster = torch.multinomial(shares, len(block), replacement=True, generator=g)
        block.normal_(generator=g).mul_(0.6).add_(centres[cluster])
    return x


def log_probabilities(rows: int, classes: int, seed: int) -> Tensor:
    """Return log-probabilities ``[N, C]`` from nearly sure to unsure, float32."""
    g = torch.Generator().manual_seed(seed + 1)
    sharpness = 0.5 + 4.0 * torch.rand((rows, 1), generator=g)
    return (sharpness * torch.randn((rows, classes), generator=g)).log_softmax(dim=1)


def residuals(rows: int, classes: int, seed: int) -> Tensor:
    """Return p - e_argmax ``[N, C]`` of such log-probabilities."""
    probs = log_probabilities(rows, classes, seed).exp()
    probs[torch.arange(rows), probs.argmax(dim=1)] -= 1.0
    return probs


def member_log_probabilities(rows: int, members: int, classes: int, seed: int) -> Tensor:
    """Return ``[N, S, C]`` of S members that agree on many rows and not on others, float32."""
    g = torch.Generator().manual_seed(seed + 2)
    sharpness = 0.5 + 3.0 * torch.rand((rows, 1, 1), generator=g)
    common = sharpness * torch.randn((rows, 1, classes), generator=g)
    apart = 1.5 * torch.rand((rows, 1, 1), generator=g)
    logits = common + apart * torch.randn((rows, members, classes), generator=g)
    return logits.log_softmax(dim=-1)


def images(rows: int, channels: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return images in [0, 1] ``[N, Ch, side, side]`` of ten noisy patterns, and their classes."""
    g = torch.Generator().manual_seed(seed + 3)
    coarse = torch.rand((10, channels, 4, 4), generator=g)
    patterns = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    classes = torch.randint(0, 10, (rows,), generator=g)
    noise = torch.rand((rows, channels, side, side), generator=g)
    strength = 0.3 + 0.65 * torch.rand((rows, 1, 1, 1), generator=g)
    x = (1.0 - strength) * patterns[classes] + strength * noise
    return x.contiguous(memory_format=torch.channels_last), classes
