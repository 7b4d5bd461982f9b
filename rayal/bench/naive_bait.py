"""BAIT as its algorithm reads: the inverse at every step, every candidate from its definition.

References:
    Ash, Goel, Krishnamurthy & Kakade, NeurIPS 2021, algorithm 1 (forward greedy, backward prune).
"""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Positions = npt.NDArray[np.int64]
_BLOCK = 256  # candidates whose products are held at once


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
    for start in range(0, len(v), _BLOCK):
        block = v[start : start + _BLOCK].permute(1, 0, 2).reshape(v.shape[1], -1)
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
    for start in range(0, len(v), _BLOCK):
        block = v[start : start + _BLOCK]  # [T, D·C, C]
        inner = torch.eye(classes) + sign * (block.mT @ (inverse @ block))
        outer = block.mT @ (weighted @ block)
        parts.append(torch.linalg.solve(inner, outer).diagonal(dim1=1, dim2=2).sum(dim=1))
    return torch.cat(parts)
