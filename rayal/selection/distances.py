"""Squared distances from the rows of a tile to their nearest of a few centres, by one product.

The product form |x|² + |c|² - 2 x·c loses all digits where x is close to c. Such pairs are found
by their size and computed again from differences, so that equal rows are at distance exactly 0.
A tile keeps a norm per row; it is copied, shifted, only where its mean lies far from zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rayal.selection.devices import to_device, to_host
from rayal.selection.threads import Room

Floats = npt.NDArray[np.float64]
Pairs = Callable[[Tensor, Tensor], Tensor]  # rows [n], centres [n] -> float64 [n]
CLOSE = 1e-3  # relative size under which float32 products have fewer than three digits left
TIGHT = 1e-8  # the same for float64 products
ERROR = 1e-5  # relative error that a float32 product stays below
WIDTH = 8  # centres of a product are padded to a multiple of this: never GEMV
ROWS = 256  # rows converted to float64 at once: they stay in the cache
RUN = 64  # float32 squares summed before the sum goes on in float64
SAMPLED = 8  # of which one row tells where the others lie
FAR = 8.0  # squared distance of the rows' mean from zero, in their spread, that costs digits
_ROOM = Room()


def origin_of(x: Tensor, norm: Tensor) -> Tensor | None:
    """Return about the rows' mean ``[1, D]`` where it is so far from zero that digits are lost.

    Args:
        x: float32 ``[T, D]``.
        norm: float64 ``[T]``, the rows' squared lengths.
    """
    mean = x[::SAMPLED].mean(dim=0, keepdim=True)
    far = float(squared_norm(mean))
    return mean if far > FAR * max(float(norm.mean()) - far, 0.0) else None


def euclidean(
    x: Tensor,
    norm: Tensor,
    old: Floats,
    centres: Tensor,
    *,
    origin: Tensor | None = None,
    length: Tensor | None = None,
) -> Floats:
    """Return min(old, min_j |x_i - c_j|²), float64 ``[T]``.

    Args:
        x: float32 ``[T, D]``.
        norm: float64 ``[T]``, |x_i|², or |x_i - origin|².
        old: float64 ``[T]``, squared distances so far.
        centres: float32 ``[b, D]``.
        origin: ``[1, D]``, subtracted before the product, see ``origin_of``.
        length: float64 ``[b]``, the centres' squared lengths from there, where they are known.
    """
    near, to = (x, centres) if origin is None else (x - origin, centres - origin)
    length = squared_norm(to) if length is None else length
    padded, lengths = _padded(to), _padded(length.float())[:, None]

    def products(rows: Tensor | None) -> Tensor:  # |c_j|² - 2 x_i·c_j, float32 [b, n]
        left = near if rows is None else near[rows]
        return torch.addmm(lengths, padded, left.T, alpha=-2.0)

    def pairs(rows: Tensor, which: Tensor) -> Tensor:
        return squared_norm(x[rows].double() - centres[which].double())

    return _nearest(norm, old, length, products, pairs)


def factored(
    a: Tensor, h: Tensor, norm: Tensor, old: Floats, centres: tuple[Tensor, Tensor]
) -> Floats:
    """Return min(old, min_j |a_i⊗h_i - ac_j⊗hc_j|²), float64 ``[T]``, no product formed.

    Args:
        a: float32 ``[T, C]``.
        h: float32 ``[T, D]``.
        norm: float64 ``[T]``, |a_i|² |h_i|².
        old: float64 ``[T]``, squared distances so far.
        centres: ac ``[b, C]`` and hc ``[b, D]``.
    """
    ac, hc = centres
    length = squared_norm(ac) * squared_norm(hc)
    narrow, wide, lengths = _padded(ac), _padded(hc), _padded(length.float())[:, None]

    def products(rows: Tensor | None) -> Tensor:
        left, right = (a, h) if rows is None else (a[rows], h[rows])
        size = (len(wide), len(left))
        product = torch.mm(wide, right.T, out=_ROOM.take("products", *size, device=h.device))
        product.mul_(torch.mm(narrow, left.T, out=_ROOM.take("factors", *size, device=h.device)))
        return product.mul_(-2.0).add_(lengths)

    def pairs(rows: Tensor, which: Tensor) -> Tensor:
        return factored_pairs(a[rows], h[rows], ac[which], hc[which])

    return _nearest(norm, old, length, products, pairs)


def factored_each(a: Tensor, h: Tensor, norm: Tensor, centres: tuple[Tensor, Tensor]) -> Tensor:
    """Return |a_i⊗h_i - ac_j⊗hc_j|² of all pairs, float64 ``[T, b]``; see ``factored``."""
    ac, hc = centres
    length = squared_norm(ac) * squared_norm(hc)
    dots = (a @ _padded(ac).T).double() * (h @ _padded(hc).T).double()
    scale = norm[:, None] + length[None, :]
    squared = scale - 2.0 * dots[:, : len(ac)]
    rows, which = torch.nonzero(squared <= CLOSE * scale, as_tuple=True)
    for start in range(0, len(rows), ROWS):
        i, j = rows[start : start + ROWS], which[start : start + ROWS]
        squared[i, j] = factored_pairs(a[i], h[i], ac[j], hc[j])
    return squared.clamp_min_(0.0)


def _nearest(
    norm: Tensor,
    old: Floats,
    length: Tensor,
    products: Callable[[Tensor | None], Tensor],
    pairs: Pairs,
) -> Floats:
    """Lower distances by a product, and again, from differences, where it has no digits left."""
    b, nearest = len(length), np.array(old)
    own = to_host(norm)
    new = to_host(products(None)[:b].amin(dim=0).double()) + own
    # a centre at distance d is no longer than |x| + d, so |x|² + |c|² is at most this
    scale = 3.0 * own + 2.0 * new.clip(0.0)
    close = new <= CLOSE * scale
    np.minimum(nearest, new, out=nearest, where=~close)
    rows = np.flatnonzero(close & (new - ERROR * scale < nearest) & (nearest > 0.0))
    if len(rows):
        index = to_device(rows, norm.device)
        lowest = to_device(nearest[rows], norm.device)
        error = to_device(2.0 * ERROR * scale[rows], norm.device)
        for start in range(0, len(rows), ROWS):
            here = index[start : start + ROWS]
            squared = products(here)[:b].double() + norm[here]  # [b, n]
            low = lowest[start : start + ROWS]
            may = squared - error[start : start + ROWS] <= torch.minimum(low, squared.amin(0))
            _from_differences(low, here, may, pairs)
        nearest[rows] = to_host(lowest)
    return nearest


def _from_differences(lowest: Tensor, rows: Tensor, may: Tensor, pairs: Pairs) -> None:
    """Lower ``lowest`` ``[n]`` by the distances to the centres that ``may`` ``[b, n]`` marks."""
    which, column = torch.nonzero(may, as_tuple=True)
    for at in range(0, len(which), ROWS):
        part = column[at : at + ROWS]
        squared = pairs(rows[part], which[at : at + ROWS]).clamp_min(0.0)
        lowest.scatter_reduce_(0, part, squared, "amin")


def apart(x: Floats, centres: Floats) -> Floats:
    """Return |x_i - c_i|² of float64 rows ``[n, D]``: the same bits whatever rows stand beside."""
    difference = x - centres
    return np.asarray(np.einsum("id,id->i", difference, difference))


def between_products(a: npt.NDArray[Any], h: npt.NDArray[Any]) -> Floats:
    """Return |a_i⊗h_i - a_j⊗h_j|² of a few rows ``[m, C]``, ``[m, D]``, float64 ``[m, m]``."""
    left, right = torch.from_numpy(a).double(), torch.from_numpy(h).double()
    norm = squared_norm(left) * squared_norm(right)
    scale = norm[:, None] + norm[None, :]
    squared = scale - 2.0 * (left @ left.T) * (right @ right.T)
    i, j = torch.nonzero(squared <= TIGHT * scale, as_tuple=True)
    squared[i, j] = factored_pairs(left[i], right[i], left[j], right[j])
    return squared.numpy()


def factored_pairs(a: Tensor, h: Tensor, ac: Tensor, hc: Tensor) -> Tensor:
    """Return |a_i⊗h_i - ac_i⊗hc_i|² as float64 ``[n]`` from differences: no cancellation."""
    a, h, ac, hc = a.double(), h.double(), ac.double(), hc.double()
    da, dh = a - ac, h - hc
    return (
        squared_norm(a) * squared_norm(dh)
        + squared_norm(da) * squared_norm(hc)
        + 2.0 * (a * da).sum(dim=-1) * (dh * hc).sum(dim=-1)
    ).clamp_min(0.0)


def squared_norm(x: Tensor, origin: Tensor | None = None) -> Tensor:
    """Return the squared length of rows ``[…, D]``, or of their differences to ``origin``."""
    lengths: Tensor
    if x.ndim == 1:
        return (x.double() ** 2).sum()
    if origin is None and x.ndim == 2 and x.dtype == torch.float32 and x.shape[1] % RUN == 0:
        runs = x.reshape(len(x), x.shape[1] // RUN, RUN)
        if x.device.type != "cpu":
            lengths = torch.linalg.vecdot(runs, runs).double().sum(dim=1)
            return lengths
        numbers = runs.numpy()  # einsum is the faster one here
        sums = np.einsum("nrk,nrk->nr", numbers, numbers)
        return torch.from_numpy(sums.sum(axis=1, dtype=np.float64))
    if origin is None and x.shape[1] < RUN:
        wide = x.double()
        lengths = torch.linalg.vecdot(wide, wide)
        return lengths
    lengths = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for start in range(0, len(x), ROWS):
        some = x[start : start + ROWS]
        wide = some.double() if origin is None else (some - origin).double()
        lengths[start : start + ROWS] = torch.linalg.vecdot(wide, wide)
    return lengths


def _padded(centres: Tensor) -> Tensor:
    missing = -len(centres) % WIDTH
    if not missing:
        return centres
    return torch.cat([centres, centres.new_zeros((missing, *centres.shape[1:]))])


def to_tensor(array: npt.NDArray[Any], device: torch.device | None = None) -> Tensor:
    """Return a float32 tensor, over the array's memory where possible."""
    return to_device(np.ascontiguousarray(array, dtype=np.float32), device)
