"""Keyed uniforms: chance as a pure function of (seed, step, item), for any sharding and order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _mix(x: int) -> int:
    """Return the finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _salt(parts: tuple[int, ...]) -> np.uint64:
    state = 0
    for part in parts:
        state = _mix((state + _GOLDEN + part) & _MASK)
    return np.uint64(state)


def keyed_uniform(keys: npt.NDArray[np.uint64], *salt: int) -> npt.NDArray[np.float64]:
    """Return one uniform in [0, 1) per key, a function of the key and the salt alone.

    Args:
        keys: uint64, any shape.
        salt: integers such as (seed, step, stream).
    """
    x = np.asarray(keys, dtype=np.uint64) ^ _salt(salt)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform(*salt: int) -> float:
    """Return one uniform in [0, 1), a function of the salt alone."""
    return (_mix((int(_salt(salt)) + _GOLDEN) & _MASK) >> 11) * 2.0**-53
