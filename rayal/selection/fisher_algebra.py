"""Fisher information of a last linear layer: factors of rows, exact sums, low-rank updates.

The Fisher information of one row is I(x) = (diag p - p pᵀ) ⊗ h hᵀ = V Vᵀ with V = B ⊗ h, where
B Bᵀ is the class part. diag p - p pᵀ has the ones vector as its null direction, so classes are
rotated by an orthonormal basis of the rest: Q = C - 1 coordinates, no trace changes.

Matrices are block-diagonal, of P blocks [Q·D, Q·D] that are kept alone, each with its own B. All
classes together are one block, P = 1; without the information between classes there are C of them
with the numbers √(p_c (1 - p_c)) for B, Q = w = 1. Traces are sums over blocks.

References:
    Ash, Goel, Krishnamurthy & Kakade, NeurIPS 2021, section 3 (trace objective, low-rank updates);
    Tanabe & Sagae, JRSS B 54, 1992 (Cholesky factor of a multinomial covariance, closed form);
    Woodbury, Princeton Statistical Research Group memorandum 42, 1950.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from math import isqrt

import numpy as np
import torch
from torch import Tensor

from rayal.errors import ScoreError

ROWS = 512  # rows whose D·Q-wide products are held at once
FLOOR = 1e-10  # smallest eigenvalue of I - G when a pick is removed
DRIFT = 1e-6  # error of the tracked trace that is accepted, relative to what it started from
FALL = 1e-4  # a trace that fell to this share, or rose as much, leaves updates too few digits


def class_basis(classes: int) -> Tensor:
    """Return an orthonormal basis of the complement of ones, float64 ``[C, max(C - 1, 1)]``."""
    basis = torch.zeros((classes, max(classes - 1, 1)), dtype=torch.float64)
    basis[0, 0] = 1.0  # of one class alone there is no complement; its information is 0
    for j in range(classes - 1):
        basis[: j + 1, j] = 1.0
        basis[j + 1, j] = -(j + 1.0)
        basis[:, j] /= np.sqrt((j + 1.0) * (j + 2.0))
    return basis


def class_factors(log_probs: Tensor, rank: int = 0, block_diagonal: bool = False) -> Tensor:
    """Return B with B Bᵀ = rotated diag p - p pᵀ, float64 ``[T, P, Q, w]``.

    Args:
        log_probs: ``[T, C]``, normalised again in float64; -inf is probability 0.
        rank: keep the columns √p_y (p - e_y) of this many most probable labels; 0, and C or more,
            keep all, in the closed Cholesky form of width C - 1.
        block_diagonal: the diagonal p (1 - p) alone, not rotated: P = C, Q = w = 1.

    Raises:
        ScoreError: a row has no class of positive probability.
    """
    probs = torch.softmax(log_probs.double(), dim=1)
    if torch.isnan(probs).any():
        row = int(torch.nonzero(torch.isnan(probs).any(dim=1))[0])
        raise ScoreError(
            f"row {row} of log-probabilities is -inf for every class; at least one class needs a "
            "positive probability: mend the model or remove the row"
        )
    if block_diagonal:
        rest = 1.0 - torch.eye(probs.shape[1], dtype=torch.float64, device=probs.device)
        spread = probs * (probs @ rest)  # 1 - p without cancellation
        return spread.sqrt()[:, :, None, None]
    basis = class_basis(probs.shape[1]).to(probs.device)
    exact = rank == 0 or rank >= probs.shape[1]
    factor = _cholesky_factor(probs) if exact else _label_columns(probs, rank)
    rows = factor.transpose(1, 2) @ basis  # [T, w, Q], the layout that Bᵀ times columns reads
    return rows.transpose(1, 2)[:, None]


def _cholesky_factor(probs: Tensor) -> Tensor:
    """Return the Cholesky factor of diag p - p pᵀ, ``[T, C, max(C - 1, 1)]``."""
    width = max(probs.shape[1] - 1, 1)
    after = probs.flip(1).cumsum(1).flip(1)  # [T, C], p_j + … + p_C
    rest = torch.cat([after[:, 1:], torch.zeros_like(after[:, :1])], dim=1)[:, :width]
    whole, p = after[:, :width], probs[:, :width]
    diagonal = torch.where(whole > 0, p * rest / whole, 0.0).sqrt()
    below = torch.where(whole * rest > 0, (p / (whole * rest)).sqrt(), 0.0)
    factor = torch.tril(-probs[:, :, None] * below[:, None, :], diagonal=-1)
    index = torch.arange(width, device=probs.device)
    factor[:, index, index] = diagonal
    return factor


def _label_columns(probs: Tensor, rank: int) -> Tensor:
    """Return √p_y (p - e_y) of the most probable labels, ``[T, C, r]``."""
    labels = torch.argsort(probs, dim=1, descending=True, stable=True)[:, :rank]  # [T, r]
    ones = torch.nn.functional.one_hot(labels, probs.shape[1]).double()  # [T, r, C]
    columns = (probs[:, None, :] - ones) * probs.gather(1, labels).sqrt()[:, :, None]
    return columns.transpose(1, 2)


def pairs(size: int) -> list[tuple[int, int]]:
    """Return the class pairs a ≤ b whose D x D blocks hold a symmetric matrix."""
    return [(a, b) for a in range(size) for b in range(a, size)]


def fisher_blocks(factor: Tensor, h: Tensor) -> Tensor:
    """Return sum_i (B Bᵀ)[a, b] h hᵀ for pairs a ≤ b, float64 ``[P, Q (Q + 1) / 2, D, D]``."""
    outer = factor @ factor.mT  # [T, P, Q, Q]
    parts, size = factor.shape[1:3]
    every, d = pairs(size), h.shape[1]
    blocks = h.new_empty((parts, len(every), d, d))
    for part in range(parts):
        for block, (a, b) in zip(blocks[part], every, strict=True):
            torch.mm((h * outer[:, part, a, b, None]).T, h, out=block)
    return blocks


def from_blocks(blocks: Tensor) -> Tensor:
    """Return symmetric matrices ``[P, Q·D, Q·D]`` of blocks ``[P, Q (Q + 1) / 2, D, D]``."""
    parts, count, d = blocks.shape[:3]
    size = (isqrt(8 * count + 1) - 1) // 2
    full = blocks.new_zeros((parts, size, d, size, d))
    for (a, b), block in zip(pairs(size), blocks.unbind(dim=1), strict=True):
        full[:, a, :, b] = full[:, b, :, a] = (block + block.mT) / 2
    return full.reshape(parts, size * d, size * d)


def forms(factor: Tensor, h: Tensor, matrix: Tensor) -> Tensor:
    """Return Vᵀ A V of every row, ``[T, P, w, w]``, for symmetric A ``[P, Q·D, Q·D]``."""
    (parts, size), d = factor.shape[1:3], h.shape[1]
    blocks = matrix.reshape(parts, size, d, size * d)
    results = []
    for start in range(0, len(h), ROWS):
        x, b = h[start : start + ROWS], factor[start : start + ROWS]
        inner = x.new_empty((len(x), parts, size, size))
        for part, a in product(range(parts), range(size)):
            left = (x @ blocks[part, a][:, a * d :]).view(len(x), size - a, d)
            inner[:, part, a, a:] = torch.bmm(left, x[:, :, None])[:, :, 0]
            inner[:, part, a:, a] = inner[:, part, a, a:]
        results.append(b.mT @ inner @ b)
    return torch.cat(results)


def projected(factor: Tensor, h: Tensor, directions: Tensor) -> Tensor:
    """Return Vᵀ A of every row, ``[T, P, w, m]``, for A ``[P, Q·D, m]``; h is contracted first."""
    (parts, size), d, m = factor.shape[1:3], h.shape[1], directions.shape[2]
    wide = directions.reshape(parts, size, d, m).permute(2, 0, 1, 3).reshape(d, -1)
    return factor.mT @ (h @ wide).view(len(h), parts, size, m)


def updated(g: Tensor, half: Tensor, projection: Tensor, sign: float) -> None:
    """Update forms in place: G ∓ U Uᵀ and H ∓ 2 U Wᵀ.

    H is symmetric but for the order of U and W; only its products with symmetric matrices are
    asked for, and their traces are those of the symmetric part.

    Args:
        g: Vᵀ M⁻¹ V, ``[T, P, w, w]``.
        half: Vᵀ M⁻¹ F M⁻¹ V, ``[T, P, w, w]``.
        projection: U and W side by side, ``[T, P, w, 2 m]``.
        sign: +1 when a row was added, -1 when one was removed.
    """
    each = projection.flatten(0, 1)  # [T·P, w, 2 m]
    u, w = each.chunk(2, dim=2)
    g.view(-1, *g.shape[2:]).baddbmm_(u, u.mT, alpha=-sign)
    half.view(-1, *g.shape[2:]).baddbmm_(u, w.mT, alpha=-2.0 * sign)


def trace_decrease(g: Tensor, half: Tensor) -> Tensor:
    """Return tr(H (I + G)⁻¹), ``[T]``: by how much adding a row lowers the trace."""
    if g.shape[-1] == 1:
        return (half / (1.0 + g)).sum(dim=(1, 2, 3)).clamp_min(0.0)
    eye = torch.eye(g.shape[-1], dtype=torch.float64, device=g.device)
    lower = torch.linalg.cholesky(eye + g)
    inverse = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    trace: Tensor = (inverse @ half * inverse).sum(dim=(1, 2, 3))
    return trace.clamp_min(0.0)  # rounding of a gain of 0


def trace_increase(g: Tensor, half: Tensor) -> Tensor:
    """Return tr(H (I - G)⁻¹), ``[T]``: by how much removing a row raises the trace."""
    if g.shape[-1] == 1:
        return (half / (1.0 - g).clamp_min(FLOOR)).sum(dim=(1, 2, 3))
    values, vectors = torch.linalg.eigh(torch.eye(g.shape[-1]).to(g) - g)
    rotated = (vectors.mT @ half @ vectors).diagonal(dim1=2, dim2=3)
    trace: Tensor = (rotated / values.clamp_min(FLOOR)).sum(dim=(1, 2))
    return trace


@dataclass
class Information:
    """The driver's matrices: M, its inverse, F, and tr(M⁻¹ F); float64 ``[P, Q·D, Q·D]``.

    Args:
        matrix: M = ridge I + labeled + picked information, as of the last factorisation.
        fisher: F, the mean information over all rows.
        changes: (sign, V) of rows added and removed since then.
    """

    matrix: Tensor
    fisher: Tensor
    changes: list[tuple[float, Tensor]] = field(default_factory=list)
    inverse: Tensor = field(init=False)
    trace: float = field(init=False, default=float("nan"))
    since: float = field(init=False, default=0.0)  # the trace as of the last factorisation

    def __post_init__(self) -> None:
        self.refactor()

    def refactor(self) -> float:
        """Recompute M⁻¹ by Cholesky and return the error of the tracked trace.

        The tracked trace is a sum of changes, whose rounding is in proportion to the largest of
        them: the error is relative to the trace now or at the last factorisation, the larger one.
        """
        for sign, v in self.changes:
            self.matrix.baddbmm_(v, v.mT, alpha=sign)
        self.changes.clear()
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.matrix))
        self.inverse = (self.inverse + self.inverse.mT) / 2
        trace = float((self.inverse * self.fisher).sum())
        drift = abs(self.trace - trace) / max(abs(trace), abs(self.since), 1e-300)
        self.trace = self.since = trace
        return drift

    def refreshed(self) -> None:
        """Recompute M⁻¹ and refuse a trace that drifted.

        Raises:
            ScoreError: low-rank updates lost too many digits.
        """
        drift = self.refactor()
        if not drift <= DRIFT:  # NaN included
            raise ScoreError(
                f"the Fisher trace drifted by {drift:.1e} of its value, {DRIFT:.0e} is allowed; "
                "give a larger ridge, or embeddings of smaller scale"
            )

    def stale(self, changes: int) -> bool:
        """Return whether a factorisation is due: after so many changes, or a far fall or rise.

        Forms of rows and the inverse are sums of changes too: behind a fall by 1 / FALL they have
        lost as many digits.
        """
        far = self.trace < FALL * self.since or FALL * self.trace > self.since
        return far or len(self.changes) >= changes

    def middle(self) -> Tensor:
        """Return M⁻¹ F M⁻¹."""
        product = self.inverse @ self.fisher @ self.inverse
        return (product + product.mT) / 2

    def step(self, factor: Tensor, h: Tensor, sign: float) -> Tensor:
        """Add (+1) or remove (-1) one row and return the directions ``[P, Q·D, 2 w]``: Z and W.

        With Z = M⁻¹ V (I ± G)^(-1/2): M⁻¹ becomes M⁻¹ ∓ Z Zᵀ, and W = M⁻¹ F Z ∓ Z K / 2 with
        K = Zᵀ F Z carries H, so that rows need one product with Z and W and no more.

        Args:
            factor: the row's B, ``[P, Q, w]``.
            h: the row's embedding, ``[D]``.
            sign: +1 adds, -1 removes.
        """
        v = (factor[:, :, None, :] * h[:, None]).flatten(1, 2)  # [P, Q·D, w]
        wide = self.inverse @ v
        g = v.mT @ wide
        eye = torch.eye(g.shape[-1], dtype=torch.float64)
        values, vectors = torch.linalg.eigh(eye + sign * (g + g.mT) / 2)
        z = wide @ (vectors / values.clamp_min(FLOOR).sqrt()[:, None])
        fz = self.fisher @ z
        k = z.mT @ fz
        w = self.inverse @ fz - sign * (z @ k) / 2
        self.inverse.baddbmm_(z, z.mT, alpha=-sign)
        self.changes.append((sign, v))
        self.trace -= sign * float(k.diagonal(dim1=1, dim2=2).sum())
        return torch.cat([z, w], dim=2)
