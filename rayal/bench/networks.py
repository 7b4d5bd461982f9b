"""The two networks whose scans are timed, trained a little so that their scores mean something."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from rayal.bench import data
from rayal.labels import ClassLabel
from rayal.models import build_network
from rayal.models.base import TaskNet
from rayal.models.committee import Committee
from rayal.tasks.image import ImageTask
from rayal.types import Keys

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
    x, classes = data.images(max(rows, 512), channels, side, seed)
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
