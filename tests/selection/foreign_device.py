"""A device that is not the CPU, played on the CPU: what a GPU would refuse is refused here.

Tensors moved to AWAY report that device and hold their numbers inside. An operation on them and on
tensors of the CPU raises, as does ``.numpy()``; ``.cpu()`` and ``.item()`` bring numbers back. Only
one thread sees the device: the mode belongs to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

AWAY = torch.device("meta")  # any device whose numbers numpy cannot see
HERE = torch.device("cpu")
_COPIES = {"aten._to_copy.default"}


class Foreign(Tensor):
    """A tensor whose numbers lie elsewhere."""

    held: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Foreign:
        made: Foreign = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=AWAY
        )
        made.held = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Foreign({self.held!r})"

    def tolist(self) -> Any:
        """Return the numbers, as a GPU tensor does."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, dict(kwargs or {}))


class ForeignDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, tensors can be made on AWAY and copied there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0  # run on AWAY

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = _run(func, args, dict(kwargs or {}))
        self.operations += any(isinstance(x, Foreign) for x in tree_flatten(made)[0])
        return made


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    away = [x for x in given if isinstance(x, Foreign)]
    wanted = kwargs.get("device")
    if str(func) not in _COPIES and away:
        mixed = [x for x in given if not isinstance(x, Foreign) and x.ndim > 0]
        if mixed:
            raise RuntimeError(f"{func} mixes tensors of the CPU and of another device")
    there = bool(away) if wanted is None else torch.device(wanted) == AWAY
    if wanted is not None:
        kwargs["device"] = HERE
    inner = {id(x.held): x for x in away}
    made = func(*tree_map(_opened, args), **tree_map(_opened, kwargs))
    if not there:
        return made

    def closed(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return inner[id(x)] if id(x) in inner else Foreign(x)  # in place: the same tensor

    return tree_map(closed, made)


def _opened(x: Any) -> Any:
    return x.held if isinstance(x, Foreign) else x
