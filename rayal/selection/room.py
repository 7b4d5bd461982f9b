"""Work buffers that are made once per thread and used again for every tile.

A block of megabytes that is allocated and freed for every tile lets the heap grow in the gaps
between the small arrays that stay.
"""

from __future__ import annotations

import threading
from math import prod

import torch
from torch import Tensor

_CPU = torch.device("cpu")


class Room(threading.local):
    """The calling thread's buffers, by name."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, device: torch.device | None = None) -> Tensor:
        """Return a float32 tensor of that shape, its numbers undefined, over the named buffer.

        It is valid until the same thread takes the name again.
        """
        size = prod(shape)
        held = self._held.get(name)
        if held is None or len(held) < size or held.device != (device or _CPU):
            held = torch.empty(size, dtype=torch.float32, device=device)
            self._held[name] = held
        return held[:size].view(shape)
