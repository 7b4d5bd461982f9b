"""Plain forms of the kernels, one pass for each pick, and measures of what was chosen.

References:
    Gonzalez, Theoretical Computer Science 1985 (farthest-first traversal);
    Arthur & Vassilvitskii, SODA 2007 (D² sampling);
    Kirsch, van Amersfoort & Gal, NeurIPS 2019 (joint mutual information);
    Ash, Goel, Krishnamurthy & Kakade, NeurIPS 2021, algorithm 1 (forward greedy, backward prune).
"""

from __future__ import annotations

import math
import time
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


_CANDIDATES = 256  # candidates whose products are held at once


def factors(log_probs: Tensor, embeddings: Tensor) -> Tensor:
    """Return V ``[N, D·C, C]`` with V V^T the Fisher information of a row, class by class.

    Column y of a row is sqrt(p_y) (p - e_y) ⊗ h.
    """
    probs = log_probs.exp()  # [N, C]
    n, classes = probs.shape
    shift = probs[:, :, None] - torch.eye(classes, dtype=probs.dtype)  # [N, C, C]: [n, c, y]
    scaled = shift * probs.sqrt()[:, None, :]
    v = scaled[:, :, None, :] * embeddings[:, None, :, None]  # [N, C, D, C]
    return v.reshape(n, -1, classes)


def exhaustive_bait(
    log_probs: Tensor, embeddings: Tensor, k: int, *, oversample: int = 2, ridge: float = 1.0
) -> Positions:
    """Return BAIT's k positions with one explicit inverse for each candidate: small inputs only.

    Without labeled rows; float64.
    """
    v = factors(log_probs.double(), embeddings.double()).numpy()
    information = np.einsum("nic,njc->nij", v, v)
    fisher = information.mean(axis=0)
    m = ridge * np.eye(len(fisher))
    chosen: list[int] = []
    for _ in range(min(oversample * k, len(v))):
        left = [i for i in range(len(v)) if i not in chosen]
        traces = [np.trace(np.linalg.inv(m + information[i]) @ fisher) for i in left]
        chosen.append(left[int(np.argmin(traces))])
        m = m + information[chosen[-1]]
    while len(chosen) > k:
        traces = [np.trace(np.linalg.inv(m - information[i]) @ fisher) for i in chosen]
        m = m - information[chosen.pop(int(np.argmin(traces)))]
    return np.array(chosen, dtype=np.int64)


def naive_bait(
    log_probs: Tensor, embeddings: Tensor, k: int, *, ridge: float = 1.0, steps: int | None = None
) -> tuple[Positions, float]:
    """Return BAIT's k positions, oversampled twice, and the CPU seconds of its forward steps.

    Every row's factor is held, float32; every step inverts the matrix and evaluates every row by
    the matrix inversion lemma, as the published algorithm does.

    Args:
        log_probs: ``[N, C]``.
        embeddings: ``[N, D]``.
        k: picks.
        ridge: the multiple of the identity.
        steps: forward steps, after which nothing is returned but the seconds; None for all.
    """
    v = factors(log_probs.float(), embeddings.float())
    fisher = torch.zeros((v.shape[1], v.shape[1]))
    for start in range(0, len(v), _CANDIDATES):
        block = v[start : start + _CANDIDATES].permute(1, 0, 2).reshape(v.shape[1], -1)
        fisher += block @ block.T / len(v)
    m = ridge * torch.eye(len(fisher))
    chosen: list[int] = []
    began = time.process_time()
    for _ in range(min(2 * k, len(v)) if steps is None else steps):
        inverse = torch.linalg.inv(m)
        gains = _gains(v, inverse, inverse @ fisher @ inverse, 1.0)
        gains[chosen] = -torch.inf
        chosen.append(int(gains.argmax()))
        m += v[chosen[-1]] @ v[chosen[-1]].T
    seconds = time.process_time() - began
    if steps is not None:
        return np.zeros(0, np.int64), seconds
    while len(chosen) > k:
        inverse = torch.linalg.inv(m)
        losses = _gains(v[chosen], inverse, inverse @ fisher @ inverse, -1.0)
        last = chosen.pop(int(losses.argmin()))
        m -= v[last] @ v[last].T
    return np.array(chosen, dtype=np.int64), seconds


def _gains(v: Tensor, inverse: Tensor, weighted: Tensor, sign: float) -> Tensor:
    """Return by how much the trace falls (sign 1) or rises (-1) with each row, ``[N]``."""
    classes = v.shape[2]
    parts = []
    for start in range(0, len(v), _CANDIDATES):
        block = v[start : start + _CANDIDATES]  # [T, D·C, C]
        inner = torch.eye(classes) + sign * (block.mT @ (inverse @ block))
        outer = block.mT @ (weighted @ block)
        parts.append(torch.linalg.solve(inner, outer).diagonal(dim1=1, dim2=2).sum(dim=1))
    return torch.cat(parts)
