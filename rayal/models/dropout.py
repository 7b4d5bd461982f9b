"""Run a network without changing it: in eval mode, and with keyed dropout masks.

A mask is a function of (seed, round, member, pass, module path) alone, the same for every item, at
every batch position and on every worker; so a score does not depend on who computed it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from rayal.errors import NeedsError

_ELEMENTWISE = (nn.Dropout,)
_CHANNELS = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


_EVALUATED: ContextVar[frozenset[int]] = ContextVar("evaluated", default=frozenset())


@contextmanager
def evaluating(*nets: nn.Module) -> Iterator[None]:
    """Put every module of networks in eval mode for a while, and restore each one's own mode."""
    known = _EVALUATED.get()
    fresh = [net for net in nets if id(net) not in known]  # others are being evaluated already
    modules = [module for net in fresh for module in net.modules()]
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    token = _EVALUATED.set(known.union(map(id, modules))) if fresh else None
    try:
        yield
    finally:
        if token is not None:
            _EVALUATED.reset(token)
        for module in training:
            module.training = True


def stochastic_modules(net: nn.Module) -> dict[str, nn.Module]:
    """Return the dropout modules with p > 0 by their path; functional dropout cannot be seen."""
    return {n: m for n, m in net.named_modules() if isinstance(m, _DropoutNd) and m.p > 0}


@contextmanager
def dropout_masks(
    net: nn.Module, *, seed: int, round: int, member: int, pass_: int, passes: int = 1
) -> Iterator[None]:
    """Make every dropout module multiply by one fixed mask, while the network stays in eval mode.

    A mask lies over the feature dimensions ``x.shape[1:]`` (over channels for Dropout1d, 2d and
    3d) and is scaled by 1 / (1 - p). The first dimension of what a dropout module sees must be the
    batch: with several passes, the rows once per pass. Nothing of the network is changed;
    BatchNorm uses its running statistics.

    Args:
        net: any module with dropout modules.
        seed: the model seed.
        round: the round.
        member: the member's index.
        pass_: the index of the pass, the first one of several.
        passes: number of copies of the rows in the batch, each under the mask of its own pass.

    Raises:
        NeedsError: no dropout module with p > 0, or one of a kind that has no fixed mask.
    """
    modules = maskable_modules(net)
    hooks = []
    try:
        for path, module in modules.items():
            several = range(pass_, pass_ + passes)
            keys = tuple(_seed(seed, round, member, p, path) for p in several)
            hooks.append(module.register_forward_hook(_hook(module, keys)))
        with evaluating(net):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def maskable_modules(net: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that ``dropout_masks`` would mask, or raise its NeedsError."""
    modules = stochastic_modules(net)
    if not modules:
        raise NeedsError(
            f"{type(net).__name__} has no dropout module with p > 0 (functional dropout cannot be "
            "masked); use a network with dropout > 0 (head: mlp on a frozen backbone), or an "
            "ensemble: members: 5 with passes: 0"
        )
    for path, module in modules.items():
        if not isinstance(module, _ELEMENTWISE + _CHANNELS):
            raise NeedsError(
                f"dropout module {path!r} is a {type(module).__name__}, which cannot be masked; "
                "use nn.Dropout, Dropout1d, Dropout2d or Dropout3d, or an ensemble: members: 5 "
                "with passes: 0"
            )
    return modules


def _hook(module: nn.Module, keys: tuple[int, ...]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    p = float(module.p)  # type: ignore[arg-type]
    channels = isinstance(module, _CHANNELS)

    def masked(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        shape = tuple(output.shape[1:])
        if channels:
            shape = (shape[0], *(1 for _ in shape[1:]))
        masks = _masks(shape, p, keys).to(output.device, output.dtype)
        if len(keys) == 1:
            return output * masks
        return (output.view(len(keys), -1, *output.shape[1:]) * masks[:, None]).flatten(0, 1)

    return masked


@lru_cache(maxsize=64)  # the same for every batch of a scan
def _masks(shape: tuple[int, ...], p: float, keys: tuple[int, ...]) -> Tensor:
    """Return masks ``[passes, *shape]``, 0 with probability p, else 1 / (1 - p).

    Drawn on the CPU for every device.
    """
    draws = [torch.rand(shape, generator=torch.Generator().manual_seed(key)) for key in keys]
    kept = (torch.stack(draws) >= p).float()
    return kept / (1.0 - p) if p < 1 else torch.zeros_like(kept)


@lru_cache(maxsize=4096)
def _seed(seed: int, round: int, member: int, pass_: int, path: str) -> int:
    text = f"dropout/{seed}/{round}/{member}/{pass_}/{path}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
