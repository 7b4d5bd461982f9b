"""Draws that belong to a row: a function of its id key and a salt, in any batch and order."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from rayal.types import Keys

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def keyed_uniforms(keys: Keys, count: int, *salt: int | str) -> npt.NDArray[np.float64]:
    """Return uniforms in (0, 1), float64 ``[N, count]``: row n depends on key n and the salt only.

    Each row is a stream of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), whose state begins at
    the mixed key.

    Args:
        keys: uint64 ``[N]``.
        count: draws per row.
        salt: mark that separates this use from others, such as ("crop", seed, view).
    """
    text = "/".join(map(str, salt)).encode()
    salted = np.frombuffer(hashlib.blake2b(text, digest_size=8).digest(), "<u8").astype(np.uint64)
    state = _mix(np.asarray(keys, np.uint64) ^ salted)[:, None]  # [N, 1]
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN  # [count]
    bits = _mix(state + steps) >> np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


def keyed_normals(keys: Keys, count: int, *salt: int | str) -> npt.NDArray[np.float64]:
    """Return standard normal draws, float64 ``[N, count]``, from ``keyed_uniforms``.

    SciPy's inverse is computed element by element, so its bits do not depend on the position.
    """
    normals: npt.NDArray[np.float64] = ndtri(keyed_uniforms(keys, count, *salt))
    return normals


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
