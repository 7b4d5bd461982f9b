"""Squared distances from the rows of a tile to a few centres, by matrix products.

The product form |x|² + |c|² - 2 x·c loses all digits where x is close to c. Such pairs are found
by their size and computed again from differences, so that equal rows are at distance exactly 0.
Centres are padded to a fixed number of rows: every product has the same shape, hence the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CLOSE = 1e-3  # relative size under which float32 products have fewer than three digits left


def euclidean(x: Tensor, centres: Tensor, width: int, origin: Tensor) -> Tensor:
    """Return |x_i - c_j|² as float64 ``[T, b]``.

    Args:
        x: float32 ``[T, D]``.
        centres: float32 ``[b, D]``.
        width: the fixed width to which the centres are padded, at least b.
        origin: ``[1, D]``, subtracted before products; near the rows, products keep their digits.
    """
    near, to = x - origin, centres - origin
    scale = squared_norm(near)[:, None] + squared_norm(to)[None, :]  # [T, b]
    squared = scale - 2.0 * (near @ _padded(to, width).T).double()[:, : len(centres)]
    close = squared <= CLOSE * scale
    for j in torch.nonzero(close.any(dim=0)).flatten().tolist():
        rows = torch.nonzero(close[:, j]).flatten()
        squared[rows, j] = squared_norm(x[rows].double() - centres[j].double())
    return squared.clamp_min_(0.0)


def factored(a: Tensor, h: Tensor, ac: Tensor, hc: Tensor, width: int) -> Tensor:
    """Return |a_i⊗h_i - ac_j⊗hc_j|² as float64 ``[T, b]`` without forming a product.

    Args:
        a: float32 ``[T, C]``.
        h: float32 ``[T, D]``.
        ac: float32 ``[b, C]``.
        hc: float32 ``[b, D]``.
        width: the fixed width to which the centres are padded, at least b.
    """
    b = len(ac)
    dots = (a @ _padded(ac, width).T).double() * (h @ _padded(hc, width).T).double()  # [T, width]
    norms = squared_norm(a) * squared_norm(h)
    scale = norms[:, None] + (squared_norm(ac) * squared_norm(hc))[None, :]  # [T, b]
    squared = scale - 2.0 * dots[:, :b]
    close = squared <= CLOSE * scale
    for j in torch.nonzero(close.any(dim=0)).flatten().tolist():
        rows = torch.nonzero(close[:, j]).flatten()
        squared[rows, j] = factored_pairs(a[rows], h[rows], ac[j], hc[j])
    return squared.clamp_min_(0.0)


def factored_pairs(a: Tensor, h: Tensor, ac: Tensor, hc: Tensor) -> Tensor:
    """Return |a_i⊗h_i - ac⊗hc|² as float64 ``[n]`` from differences: no cancellation."""
    a, h, ac, hc = a.double(), h.double(), ac.double(), hc.double()
    da, dh = a - ac, h - hc
    return (
        squared_norm(a) * squared_norm(dh)
        + squared_norm(da) * squared_norm(hc)
        + 2.0 * (a * da).sum(dim=-1) * (dh * hc).sum(dim=-1)
    ).clamp_min(0.0)


def squared_norm(x: Tensor) -> Tensor:
    """Return the squared length over the last dimension, float64."""
    x = x.double()
    return (x * x).sum(dim=-1)


def _padded(centres: Tensor, width: int) -> Tensor:
    missing = width - len(centres)
    return torch.cat([centres, centres.new_zeros((missing, centres.shape[1]))])


def to_tensor(array: npt.NDArray[Any]) -> Tensor:
    """Return a float32 tensor over the array's memory where possible."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
