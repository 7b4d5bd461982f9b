"""Arrays and networks that are measured, functions of sizes and a seed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from rayal.labels import ClassLabel
from rayal.models import build_network
from rayal.models.base import TaskNet
from rayal.models.committee import Committee
from rayal.tasks.image import ImageTask
from rayal.types import Keys

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


_NAMES = {"cnn": ("small_cnn", 1, 28), "resnet": ("torchvision:resnet18", 3, 64)}
_BATCH = 64


@dataclass(frozen=True)
class Subject:
    """A committee of one and the images it scans.

    Attributes:
        committee: the trained network, with dropout 0.5 before its last layer.
        x: raw images ``[N, Ch, H, W]``, channels-last.
        normalised: the same under the eval transform.
        plain: a copy of the network as torch makes it, for peers.
        fast: a copy of the network with its weights in channels-last memory, for loops by hand.
        ids: N ids.
        keys: uint64 ``[N]``.
    """

    committee: Committee
    x: Tensor
    normalised: Tensor
    plain: TaskNet
    fast: TaskNet
    ids: list[str]
    keys: Keys

    @property
    def net(self) -> TaskNet:
        """The network."""
        return self.committee.net(0)


@lru_cache(maxsize=2)  # scans and dropout passes are measured on the same two
def subject(kind: str, rows: int, steps: int, seed: int) -> Subject:
    """Return a network of a kind (cnn or resnet), trained for some steps, with images to scan."""
    name, channels, side = _NAMES[kind]
    task = ImageTask(
        ClassLabel(tuple(f"class {i}" for i in range(10))), "raw", channels, (side, side)
    )
    net = build_network(
        name, {"dropout": 0.5}, input_shape=task.input_shape, n_outputs=10, seed=seed
    )
    x, classes = images(max(rows, 512), channels, side, seed)
    statistics = task.fit(x[:512])
    normalised = task.transform(x, statistics).contiguous(memory_format=torch.channels_last)
    _train(net, normalised, classes, steps)
    committee = Committee(
        (nn.ModuleDict({"task": net}),), task, statistics, f"bench-{kind}", seed, 0
    )
    fast = copy.deepcopy(net).to(memory_format=torch.channels_last)
    plain = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    ids, keys = [str(i) for i in range(rows)], np.arange(rows, dtype=np.uint64)
    return Subject(committee, x[:rows], normalised[:rows], plain, fast, ids, keys)


def _train(net: TaskNet, x: Tensor, classes: Tensor, steps: int) -> None:
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
    net.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in range(steps):
            rows = torch.arange(step * _BATCH, (step + 1) * _BATCH) % len(x)
            loss = nn.functional.cross_entropy(net(x[rows]), classes[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
            optimiser.step()
    net.eval()
