"""Plain forms of the kernels, one pass for each pick, and measures of what was chosen.

References:
    Gonzalez, Theoretical Computer Science 1985 (farthest-first traversal);
    Arthur & Vassilvitskii, SODA 2007 (D² sampling);
    Kirsch, van Amersfoort & Gal, NeurIPS 2019 (joint mutual information).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Positions = npt.NDArray[np.int64]
_BLOCK = 4096  # rows whose distances are held at once


def one_pass_k_center(x: Tensor, first: int, k: int) -> Positions:
    """Return ``first`` and k - 1 farthest rows ``[k]``, by one matrix-vector product a pick.

    Args:
        x: float32 ``[N, D]``.
        first: the position of the first centre.
        k: centres.
    """
    norms = torch.einsum("nd,nd->n", x, x)
    nearest = torch.full_like(norms, math.inf)
    picks, new = [], first
    for _ in range(k):
        picks.append(new)
        squared = torch.addmv(norms, x, x[new], alpha=-2.0).add_(norms[new])
        torch.minimum(nearest, squared, out=nearest)
        nearest[new] = -math.inf
        new = int(nearest.argmax())
    return np.array(picks, dtype=np.int64)


def one_pass_badge(a: Tensor, h: Tensor, k: int, seed: int) -> Positions:
    """Return k draws in proportion to the squared distance of a ⊗ h, exact in law, a pass each.

    The first is drawn in proportion to the squared norm.

    Args:
        a: float32 ``[N, C]``.
        h: float32 ``[N, D]``.
        k: draws.
        seed: seeds them.
    """
    rng = np.random.default_rng(seed)
    norms = torch.einsum("nc,nc->n", a, a) * torch.einsum("nd,nd->n", h, h)
    nearest, picks = norms.clone(), list[int]()
    while len(picks) < k:
        mass = nearest.double().cumsum(dim=0)
        target = torch.tensor(rng.random() * float(mass[-1]), dtype=torch.float64)
        new = int(torch.searchsorted(mass, target, right=True).clamp_max(len(mass) - 1))
        dots = (a @ a[new]).mul_(h @ h[new])
        squared = norms.add(norms[new]).sub_(dots, alpha=2.0).clamp_min_(0.0)
        squared[new] = 0.0
        nearest = torch.minimum(nearest, squared) if picks else squared
        picks.append(new)
    return np.array(picks, dtype=np.int64)


def squared_distances(factors: Sequence[Tensor], picks: Positions) -> Tensor:
    """Return each row's squared distance to its nearest pick, float64 ``[N]``.

    Args:
        factors: tensors ``[N, …]`` whose outer product is the row.
        picks: int64 ``[k]``.
    """
    index = torch.from_numpy(np.asarray(picks))
    centres = [f[index].double() for f in factors]
    there = _norms(centres)
    parts = []
    for start in range(0, len(factors[0]), _BLOCK):
        rows = [f[start : start + _BLOCK].double() for f in factors]
        dots = rows[0] @ centres[0].T
        for row, centre in zip(rows[1:], centres[1:], strict=True):
            dots *= row @ centre.T
        squared = dots.mul_(-2.0).add_(_norms(rows)[:, None]).add_(there[None, :])
        parts.append(squared.amin(dim=1).clamp_min_(0.0))
    return torch.cat(parts)


def radius(x: Tensor, picks: Positions) -> float:
    """Return the largest distance of a row ``[N, D]`` to its nearest pick."""
    return math.sqrt(float(squared_distances([x], picks).max()))


def potential(a: Tensor, h: Tensor, picks: Positions) -> float:
    """Return the sum over rows of the squared distance of a ⊗ h to the nearest pick."""
    return float(squared_distances([a, h], picks).sum())


def _norms(factors: Sequence[Tensor]) -> Tensor:
    norms = (factors[0] * factors[0]).sum(dim=1)
    for factor in factors[1:]:
        norms = norms * (factor * factor).sum(dim=1)
    return norms


def joint_information(log_probs: Tensor, draws: int, seed: int) -> tuple[float, float]:
    """Return I(y_1 … y_B; w) in nats of a batch, and its standard error, by sampled labels.

    Args:
        log_probs: ``[B, S, C]`` of equally likely members.
        draws: label configurations.
        seed: seeds them.
    """
    each = log_probs.double()
    batch, members, _ = each.shape
    g = torch.Generator().manual_seed(seed)
    repeats = -(-draws // members)
    labels = torch.multinomial(
        each.exp().reshape(batch * members, -1), repeats, replacement=True, generator=g
    ).view(batch, members * repeats)  # of B items, configurations of member s stand together
    likelihood = each.new_zeros((members * repeats, members))  # [J, S]
    for item in range(batch):
        likelihood += each[item].T[labels[item]]
    origin = torch.arange(members).repeat_interleave(repeats)
    own = likelihood.gather(1, origin[:, None]).flatten()
    terms = own - (likelihood.logsumexp(dim=1) - math.log(members))
    means = terms.view(members, repeats)
    error = math.sqrt(float((means.var(dim=1) / repeats).sum())) / members
    return float(terms.mean()), error


def spearman(x: Tensor, y: Tensor) -> float:
    """Return the rank correlation of two score vectors ``[N]``."""
    from scipy.stats import spearmanr

    return float(spearmanr(x.numpy(), y.numpy()).statistic)
