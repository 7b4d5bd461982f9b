"""Stages compiled by TorchInductor, with the weights frozen into the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from rayal.errors import NeedsError, SettingsError
from rayal.models.base import HookedNet, TaskNet

_GRAPHS = 256  # compiled pieces kept for one function: members x pieces of each


def check_compiles(net: TaskNet) -> None:
    """Raise NeedsError for a network whose stages are unknown."""
    if isinstance(net, HookedNet) or net.has_moments:
        name = type(net.module if isinstance(net, HookedNet) else net).__name__
        raise NeedsError(
            f"scan.compile needs a network of stages, {name} is a module of "
            "one; take scan: {compile: false}, or give its stages as a TaskNet"
        )


def compiled(net: TaskNet, start: int, stop: int | None) -> Callable[[Tensor], Tensor]:
    """Return ``net.run(·, start, stop)`` compiled for one shape and the present weights.

    The first call takes seconds and needs a C++ compiler. Results differ from the eager ones in
    the last digits.

    Raises:
        SettingsError: at the first call, where code cannot be compiled on this machine.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
    frozen: dict[str, Any] = {"freezing": True}
    optimized = torch.compile(lambda x: net.run(x, start, stop), dynamic=False, options=frozen)

    def call(x: Tensor) -> Tensor:
        try:
            result: Tensor = optimized(x)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise SettingsError(
                f"the network cannot be compiled here: {error}; install a C++ compiler, or take "
                "scan: {compile: false}"
            ) from error
        return result

    return call
