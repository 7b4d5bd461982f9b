"""Fisher information of a last linear layer: factors of rows, exact sums, low-rank updates.

The Fisher information of one row is I(x) = (diag p - p pᵀ) ⊗ h hᵀ = V Vᵀ with V = B ⊗ h, where
B Bᵀ is the class part. diag p - p pᵀ has the ones vector as its null direction, so classes are
rotated by an orthonormal basis of the rest: Q = C - 1 coordinates, no trace changes.

References:
    Ash, Goel, Krishnamurthy & Kakade, NeurIPS 2021, section 3 (trace objective, low-rank updates);
    Tanabe & Sagae, JRSS B 54, 1992 (Cholesky factor of a multinomial covariance, closed form);
    Woodbury, Princeton Statistical Research Group memorandum 42, 1950.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rayal.errors import ScoreError

ROWS = 512  # rows whose D·Q-wide products are held at once
FLOOR = 1e-10  # smallest eigenvalue of I - G when a pick is removed
DRIFT = 1e-6  # relative error of the tracked trace that is accepted


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
    """Return B with B Bᵀ = rotated diag p - p pᵀ, float64 ``[T, Q, w]``.

    Args:
        log_probs: ``[T, C]``, normalised again in float64; -inf is probability 0.
        rank: keep the columns √p_y (p - e_y) of this many most probable labels; 0, and C or more,
            keep all, in the closed Cholesky form of width C - 1.
        block_diagonal: the diagonal p (1 - p) alone, not rotated; Q = w = C.

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
        return torch.diag_embed((probs * (probs @ rest)).sqrt())  # 1 - p without cancellation
    basis = class_basis(probs.shape[1]).to(probs.device)
    exact = rank == 0 or rank >= probs.shape[1]
    factor = _cholesky_factor(probs) if exact else _label_columns(probs, rank)
    rows = factor.transpose(1, 2) @ basis  # [T, w, Q], the layout that Bᵀ times columns reads
    return rows.transpose(1, 2)


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
    """Return sum_i (B Bᵀ)[a, b] h hᵀ for pairs a ≤ b, float64 ``[Q (Q + 1) / 2, D, D]``."""
    outer = factor @ factor.transpose(1, 2)  # [T, Q, Q]
    every, d = pairs(factor.shape[1]), h.shape[1]
    blocks = h.new_empty((len(every), d, d))
    for block, (a, b) in zip(blocks, every, strict=True):
        torch.mm((h * outer[:, a, b, None]).T, h, out=block)
    return blocks


def from_blocks(blocks: Tensor, size: int) -> Tensor:
    """Return the symmetric matrix ``[Q·D, Q·D]`` of blocks ``[Q (Q + 1) / 2, D, D]``."""
    d = blocks.shape[-1]
    full = blocks.new_zeros((size, d, size, d))
    for (a, b), block in zip(pairs(size), blocks, strict=True):
        full[a, :, b] = full[b, :, a] = (block + block.T) / 2
    return full.reshape(size * d, size * d)


def forms(factor: Tensor, h: Tensor, matrix: Tensor) -> Tensor:
    """Return Vᵀ A V of every row, ``[T, w, w]``, for a symmetric A ``[Q·D, Q·D]``."""
    size, d = factor.shape[1], h.shape[1]
    blocks = matrix.reshape(size, d, size * d)
    parts = []
    for start in range(0, len(h), ROWS):
        x, b = h[start : start + ROWS], factor[start : start + ROWS]
        inner = x.new_empty((len(x), size, size))
        for a in range(size):
            left = (x @ blocks[a][:, a * d :]).view(len(x), size - a, d)
            inner[:, a, a:] = torch.bmm(left, x[:, :, None])[:, :, 0]
            inner[:, a:, a] = inner[:, a, a:]
        parts.append(b.transpose(1, 2) @ inner @ b)
    return torch.cat(parts)


def projected(factor: Tensor, h: Tensor, directions: Tensor) -> Tensor:
    """Return Vᵀ A of every row, ``[T, w, m]``, for A ``[Q·D, m]``; h is contracted first."""
    size, d, m = factor.shape[1], h.shape[1], directions.shape[1]
    wide = directions.reshape(size, d, m).transpose(0, 1).reshape(d, size * m)
    return torch.bmm(factor.transpose(1, 2), (h @ wide).view(len(h), size, m))


def updated(g: Tensor, half: Tensor, projection: Tensor, sign: float) -> None:
    """Update forms in place: G ∓ U Uᵀ and H ∓ 2 U Wᵀ.

    H is symmetric but for the order of U and W; only its products with symmetric matrices are
    asked for, and their traces are those of the symmetric part.

    Args:
        g: Vᵀ M⁻¹ V, ``[T, w, w]``.
        half: Vᵀ M⁻¹ F M⁻¹ V, ``[T, w, w]``.
        projection: U and W side by side, ``[T, w, 2 m]``.
        sign: +1 when a row was added, -1 when one was removed.
    """
    m = projection.shape[2] // 2
    u, w = projection[:, :, :m], projection[:, :, m:]
    g.baddbmm_(u, u.transpose(1, 2), alpha=-sign)
    half.baddbmm_(u, w.transpose(1, 2), alpha=-2.0 * sign)


def trace_decrease(g: Tensor, half: Tensor) -> Tensor:
    """Return tr(H (I + G)⁻¹), ``[T]``: by how much adding a row lowers the trace."""
    eye = torch.eye(g.shape[1], dtype=torch.float64, device=g.device)
    lower = torch.linalg.cholesky(eye + g)
    inverse = torch.linalg.solve_triangular(lower, eye.expand_as(lower), upper=False)
    trace: Tensor = (torch.bmm(inverse, half) * inverse).sum(dim=(1, 2))
    return trace.clamp_min(0.0)  # rounding of a gain of 0


def trace_increase(g: Tensor, half: Tensor) -> Tensor:
    """Return tr(H (I - G)⁻¹), ``[T]``: by how much removing a row raises the trace."""
    values, vectors = torch.linalg.eigh(torch.eye(g.shape[1]).to(g) - g)
    rotated = vectors.transpose(1, 2) @ half @ vectors
    trace: Tensor = (rotated.diagonal(dim1=1, dim2=2) / values.clamp_min(FLOOR)).sum(dim=1)
    return trace


@dataclass
class Information:
    """The driver's matrices: M, its inverse, F, and tr(M⁻¹ F), all ``[Q·D, Q·D]`` float64.

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

    def __post_init__(self) -> None:
        self.refactor()

    def refactor(self) -> float:
        """Recompute M⁻¹ by Cholesky and return the relative error of the tracked trace."""
        for sign, v in self.changes:
            self.matrix.addmm_(v, v.T, alpha=sign)
        self.changes.clear()
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.matrix))
        self.inverse = (self.inverse + self.inverse.T) / 2
        trace = float((self.inverse * self.fisher).sum())
        drift = abs(self.trace - trace) / max(abs(trace), 1e-300)
        self.trace = trace
        return drift

    def refreshed(self) -> None:
        """Recompute M⁻¹ and refuse a trace that drifted.

        Raises:
            ScoreError: low-rank updates lost too many digits.
        """
        if (drift := self.refactor()) > DRIFT:
            raise ScoreError(
                f"the Fisher trace drifted by {drift:.1e} of its value, {DRIFT:.0e} is allowed; "
                "give a larger ridge, or embeddings of smaller scale"
            )

    def middle(self) -> Tensor:
        """Return M⁻¹ F M⁻¹."""
        product = self.inverse @ self.fisher @ self.inverse
        return (product + product.T) / 2

    def step(self, factor: Tensor, h: Tensor, sign: float) -> Tensor:
        """Add (+1) or remove (-1) one row and return the directions ``[Q·D, 2 w]``: Z and W.

        With Z = M⁻¹ V (I ± G)^(-1/2): M⁻¹ becomes M⁻¹ ∓ Z Zᵀ, and W = M⁻¹ F Z ∓ Z K / 2 with
        K = Zᵀ F Z carries H, so that rows need one product with Z and W and no more.

        Args:
            factor: the row's B, ``[Q, w]``.
            h: the row's embedding, ``[D]``.
            sign: +1 adds, -1 removes.
        """
        v = (factor[:, None, :] * h[None, :, None]).reshape(-1, factor.shape[1])  # [Q·D, w]
        wide = self.inverse @ v
        g = v.T @ wide
        eye = torch.eye(len(g), dtype=torch.float64)
        values, vectors = torch.linalg.eigh(eye + sign * (g + g.T) / 2)
        z = wide @ (vectors / values.clamp_min(FLOOR).sqrt())
        fz = self.fisher @ z
        k = z.T @ fz
        w = self.inverse @ fz - sign * (z @ k) / 2
        self.inverse.addmm_(z, z.T, alpha=-sign)
        self.changes.append((sign, v))
        self.trace -= sign * float(k.diagonal().sum())
        return torch.cat([z, w], dim=1)
