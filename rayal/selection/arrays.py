"""Anyone's arrays as columns: converted, checked, and given keys."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.errors import ScoreError
from rayal.types import id_keys

Array = npt.ArrayLike | Tensor


def as_tensor(
    name: str, array: Array, *, bf16: bool | None = False, device: torch.device | None = None
) -> Tensor:
    """Return an array as a contiguous tensor: float64 for scores and scalars, else float32.

    Args:
        name: of the column.
        array: ``[N, …]``.
        bf16: round to bf16; None leaves bf16 as it is, and makes float32 of all else.
        device: where the tensor lies; None for the CPU.
    """
    tensor = array if isinstance(array, Tensor) else _over(np.asarray(array))
    tensor = tensor.detach()
    if tensor.ndim == 0:
        raise ValueError(f"column {name!r} must have a leading dimension N, got a single number")
    scalar = tensor.ndim == 1 or name == "score"  # a score may have tie-breakers behind it
    if scalar:
        return tensor.to(device or "cpu", torch.float64)
    narrow = bf16 or (bf16 is None and tensor.dtype == torch.bfloat16)
    return tensor.to(device or "cpu", torch.bfloat16 if narrow else torch.float32).contiguous()


def _over(array: npt.NDArray[Any]) -> Tensor:
    """Return a tensor over an array's memory: kernels do not write to their columns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.ascontiguousarray(array))


def checked_numbers(name: str, tensor: Tensor, names: Sequence[str] | range) -> None:
    """Raise ScoreError, naming item and column, where a row is not made of finite numbers."""
    if not len(tensor) or bool(torch.isfinite(tensor.sum())):  # a sum shows NaN and inf
        return
    flat = tensor.reshape(len(tensor), -1)
    log = "log_probs" in name or name == "score" or tensor.ndim == 1  # -inf is legal there
    bad = torch.isnan(flat) | (torch.isposinf(flat) if log else torch.isinf(flat))
    if bad.any():
        row = int(torch.nonzero(bad.any(dim=1))[0])
        raise ScoreError(
            f"column {name!r} of item {names[row]!r} holds {flat[row][bad[row]][0].item()}; "
            "finite numbers are needed: remove the row or mend the model"
        )


def checked_keys(ids: Sequence[str] | None, n: int) -> tuple[Any, npt.NDArray[np.uint64]]:
    """Return n names and their keys; without ids both are positions."""
    if ids is None:
        return range(n), np.arange(n, dtype=np.uint64)
    names = [str(i) for i in ids]
    keys = id_keys(names)
    if len(names) != n or len(np.unique(keys)) != n:
        raise ValueError(
            f"{n} distinct ids are needed, got {len(names)} ({len(set(names))} distinct)"
        )
    return names, keys
