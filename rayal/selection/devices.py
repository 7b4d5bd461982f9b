"""Places and widths of tensors: the way to a device, and the one way back.

Columns lie on the device, in float32 or bf16, and products are made there in float32. What a
product gives per row comes back to the CPU, where decisions are made.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy.typing as npt
import torch
from torch import Tensor

from rayal.errors import SettingsError, nearest

Precision = Literal["fp32", "bf16"]
Device = Literal["cpu", "cuda"]


def checked_device(name: str) -> torch.device:
    """Return a device that is there.

    Args:
        name: cpu, cuda, or cuda:N.

    Raises:
        SettingsError: another device, or one that this machine does not have.
    """
    kind, _, number = name.partition(":")
    if kind not in get_args(Device) or (number and not number.isdigit()):
        raise SettingsError(f"device {name!r} does not exist; {nearest(kind, get_args(Device))}")
    if kind == "cuda":
        devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= devices:
            raise SettingsError(
                f"device {name!r} is asked for, and this process finds {devices} CUDA devices; use "
                "device cpu, or a machine with a GPU and a torch built for CUDA"
            )
    return torch.device(name)


def checked_precision(name: str) -> None:
    """Raise SettingsError unless columns can be stored so."""
    if name not in get_args(Precision):
        allowed = get_args(Precision)
        raise SettingsError(f"precision {name!r} does not exist; {nearest(name, allowed)}")


def to_host(tensor: Tensor) -> npt.NDArray[Any]:
    """Return a tensor's numbers on the CPU, over its own memory where it lies there.

    bf16, which numpy does not have, becomes float32.
    """
    return widened(tensor.detach().cpu()).numpy()


def to_device(array: npt.NDArray[Any], device: torch.device | None) -> Tensor:
    """Return a tensor on a device; on the CPU (or None) over the array's memory."""
    tensor = torch.from_numpy(array)
    return tensor if device is None else tensor.to(device)


def widened(tensor: Tensor) -> Tensor:
    """Return bf16 as float32, which is exact; anything else as it is."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def narrowed(tensor: Tensor) -> Tensor:
    """Return floats ``[N, …]`` rounded to bf16: 8 bits, a relative error up to 2^-9."""
    return tensor.to(torch.bfloat16)
