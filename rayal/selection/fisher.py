"""BAIT: the batch whose Fisher information leaves the least variance over the pool.

References:
    Ash, Goel, Krishnamurthy & Kakade, NeurIPS 2021, "Gone fishing: neural active learning with
    Fisher embeddings", algorithm 1 (forward greedy, backward removal).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Ge, Gt
from torch import Tensor

from rayal.errors import SettingsError
from rayal.selection.devices import to_device, to_host
from rayal.selection.fisher_algebra import (
    ROWS,
    Information,
    class_factors,
    fisher_blocks,
    forms,
    from_blocks,
    projected,
    trace_decrease,
    trace_increase,
    updated,
)
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.objective import Objective
from rayal.selection.progress import Commit, Progress
from rayal.selection.tiles import PAD, Floats, Proposal, Tile
from rayal.types import TILE_ROWS

LabeledWeight = Literal["sum", "mean", "release"]
REFRESH = 64  # changes at most between factorisations of the explicit matrix
BITS = 61  # of the integers in which tiles are summed


def check_form(rank: int, block_diagonal: bool) -> None:
    """Raise SettingsError where both ways to leave information out are asked for."""
    if rank > 0 and block_diagonal:
        raise SettingsError(
            f"{rank=} keeps the most probable labels with the information between them, and "
            "block_diagonal=True leaves that out for all labels; give one of them: rank 0, or "
            "block_diagonal False"
        )


@dataclass(slots=True)
class FisherTile:
    """The running state of a tile: of the n rows that may be picked, padded to a multiple of PAD.

    Attributes:
        rows: int64 ``[n]``, where they lie in the tile.
        h: the embedding ``[T, D]``, float64.
        factor: the class parts ``[T, P, Q, w]``, float64.
        g: the forms G ``[T, P, w, w]``.
        half: the forms H ``[T, P, w, w]``.
    """

    rows: npt.NDArray[np.int64]
    h: Tensor
    factor: Tensor
    g: Tensor = field(init=False)
    half: Tensor = field(init=False)


@dataclass(slots=True)
class FisherRun:
    """The running state of the driver.

    Attributes:
        rows: rows that may be picked.
        unit: exponent of the unit in which tiles are summed.
        pool: the sum over their information, in blocks; None where there are no rows.
        information: M, F and what follows from them.
        scale: by which the class parts of candidates count.
        picks: class parts and embedding of each pick.
    """

    rows: int = 0
    unit: int = 0
    pool: Floats | None = None
    information: Information = field(init=False)
    scale: float = 1.0
    picks: list[tuple[Tensor, Tensor]] = field(default_factory=list)


@dataclass(frozen=True)
class Fisher(Objective):
    """Greedy on tr(M⁻¹ F): forward to oversample * k picks, then backward to k.

    F is the mean Fisher information over candidates and context, M = ridge I + labeled + picked.
    Each row keeps G = Vᵀ M⁻¹ V and H = Vᵀ M⁻¹ F M⁻¹ V, w x w, and updates them by the low-rank
    change of every pick; adding the row lowers the trace by tr(H (I + G)⁻¹). This gain is not
    submodular, so every row is evaluated at every step. Removals touch the picks alone and happen
    on the driver. Runners-up are rows that the forward pass never took.

    Args:
        log_probs: column ``[N, C]``; None is the regression form, I(x) = h hᵀ / noise².
        embedding: column ``[N, D]``, the input of the last linear layer.
        oversample: forward picks per item of the batch; 1 leaves out the removals.
        ridge: multiple of the identity in M.
        labeled_weight: sum: labeled rows count as candidates do; mean: all of them together as
            one row; release: mean * L / (L + k), and candidates k / (L + k), as the authors' code.
        rank: keep this many most probable labels of each row; 0, and C or more, keep all.
        block_diagonal: leave out the information between classes: C problems ``[D, D]``, and C
            numbers for the forms of a row.
        noise: standard deviation of the regression form.

    Raises:
        SettingsError: rank together with block_diagonal.
    """

    title: ClassVar[str] = "BAIT"

    log_probs: str | None = "log_probs"
    embedding: str = "embedding"
    oversample: Annotated[int, Ge(1)] = 2
    ridge: Annotated[float, Gt(0)] = 1.0
    labeled_weight: LabeledWeight = "release"
    rank: Annotated[int, Ge(0)] = 0
    block_diagonal: bool = False
    noise: Annotated[float, Gt(0)] = 1.0

    def __post_init__(self) -> None:
        check_form(self.rank, self.block_diagonal)

    @property
    def needs(self) -> tuple[str, ...]:
        """The factors' columns."""
        return (self.embedding,) if self.log_probs is None else (self.log_probs, self.embedding)

    @property
    def narrow(self) -> tuple[str, ...]:
        """The embedding."""
        return (self.embedding,)

    @property
    def context(self) -> tuple[str, ...]:
        """Labeled and pending rows carry information already."""
        return self.needs

    def target(self, k: int) -> int:
        """Return the length of the forward pass."""
        return self.oversample * k

    @property
    def sends(self) -> tuple[str, ...]:
        """The driver updates the inverse by the pick's factors."""
        return self.needs

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return what the greedy takes: forms of every row, and the matrices of all classes."""
        form = (1, 1, 1)
        if self.log_probs is not None:
            form = sizes_of(width(shapes, self.log_probs), self.rank, self.block_diagonal)
        sizes = (*form, width(shapes, self.embedding))
        return fisher_footprint(sizes, rows, self.target(k), refresh=REFRESH)

    def block(self, progress: Progress) -> int:
        """Return one: every pick changes every gain."""
        return 1

    def begin(self, tile: Tile, seed: int) -> None:
        """Keep the factors of rows that may be picked, padded to a multiple of PAD."""
        rows = np.flatnonzero(tile.eligible)
        pad = -len(rows) % PAD
        factor, h = self._factors({n: tile.rows(n, rows) for n in self.needs})
        h = torch.cat([h, h.new_zeros((pad, h.shape[1]))])
        columns = factor.mT  # [T, P, w, Q], the layout that it has
        factor = torch.cat([columns, h.new_zeros((pad, *columns.shape[1:]))]).mT
        tile.state = FisherTile(rows, h, factor)

    def driver_state(self) -> FisherRun:
        """Return the state before the pool is summed."""
        return FisherRun()

    def summarize(self, tile: Tile, message: Any) -> Any:
        """Return (rows, largest |information| of a row), then the tile's sum as integers.

        Floating sums depend on their order, so tiles are summed as int64 multiples of a power of
        two agreed for the whole pool: exact, in any order. The sum of rows bounds every entry, so
        nothing overflows; what is lost is at most 2^-61 of that bound per tile.
        """
        state = tile.state_as(FisherTile)
        factor, h = state.factor, state.h
        if message is None:
            size = (factor**2).sum(dim=(1, 2, 3)) * (h**2).sum(dim=1)  # the trace of I(x)
            return len(state.rows), float(size.max()) if len(size) else 0.0
        blocks = to_host(fisher_blocks(factor, h))
        np.rint(np.ldexp(blocks, message, out=blocks), out=blocks)
        return blocks.astype(np.int64)

    def combine(self, first: Any, second: Any) -> Any:
        """Add integers, and take the larger bound."""
        if isinstance(first, tuple):
            return first[0] + second[0], max(first[1], second[1])
        return first + second

    def reduce(self, total: Any, progress: Progress) -> int | None:
        """Agree on the unit of the integers, then keep the pool's sum."""
        run = progress.state_as(FisherRun)
        if isinstance(total, tuple):
            run.rows = total[0]
            run.unit = BITS - int(np.frexp(max(total[0] * total[1], 1e-300))[1])
            return run.unit
        run.pool = np.ldexp(total.astype(np.float64), -run.unit)
        return None

    def open(self, context: Mapping[str, npt.NDArray[Any]], progress: Progress) -> list[Commit]:
        """Form M and F, and send what the rows' first forms need."""
        run = progress.state_as(FisherRun)
        if run.pool is None:
            return []
        pool = torch.from_numpy(run.pool)
        labeled, count = torch.zeros_like(pool), 0
        if all(name in context for name in self.needs):
            count = len(context[self.embedding])
            for start in range(0, count, TILE_ROWS):
                part = {n: context[n][start : start + TILE_ROWS] for n in self.needs}
                labeled += fisher_blocks(*self._factors(part))
        fisher = from_blocks((pool + labeled) / max(run.rows + count, 1))
        known, weight = self._weights(count, progress.k)
        matrix = from_blocks(labeled * known)
        matrix.diagonal(dim1=1, dim2=2).add_(self.ridge)
        run.information, run.scale = Information(matrix, fisher), np.sqrt(weight)
        return [self._restart(run.information, scale=run.scale)]

    def gain(self, tile: Tile) -> Floats:
        """Return by how much each row would lower the trace."""
        state, values = tile.state_as(FisherTile), np.zeros(len(tile.keys))
        if len(rows := state.rows):
            values[rows] = to_host(trace_decrease(state.g, state.half)[: len(rows)])
        return values

    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Take the row that lowers the trace most."""
        if len(proposal) == 0:
            return None
        run = progress.state_as(FisherRun)
        factor, h = self._factors({n: proposal.columns[n][:1] for n in self.needs})
        factor = factor * run.scale
        run.picks.append((factor[0], h[0]))
        information = run.information
        directions = information.step(factor[0], h[0], 1.0)
        columns: dict[str, Any] = {"directions": directions.numpy()}
        if information.stale(REFRESH):
            information.refreshed()
            columns = dict(self._restart(information).columns)
        return Commit(proposal.keys[:1], proposal.priority[:1, 0], columns)

    def commit(self, tile: Tile, commit: Commit) -> None:
        """Update each row's forms, or compute them anew."""
        state, columns = tile.state_as(FisherTile), commit.columns
        if len(state.rows) == 0:
            return
        if "scale" in columns:
            state.factor = state.factor * columns["scale"]
        factor, h = state.factor, state.h
        if "inverse" in columns:
            state.g = forms(factor, h, to_device(columns["inverse"], tile.device))
            state.half = forms(factor, h, to_device(columns["middle"], tile.device))
            return
        directions = to_device(columns["directions"], tile.device)
        updated(state.g, state.half, projected(factor, h, directions), 1.0)

    def finish(self, progress: Progress) -> list[int]:
        """Remove picks, each time the one that raises the trace least, until k are left.

        Of equals the one with the larger key goes.
        """
        kept = list(range(len(progress.keys)))
        if len(kept) <= progress.k:
            return kept
        run = progress.state_as(FisherRun)
        information = run.information
        factor = torch.stack([f for f, _ in run.picks])
        h = torch.stack([x for _, x in run.picks])
        keys = np.array(progress.keys, dtype=np.uint64)
        for removed in range(len(kept) - progress.k):
            if removed == 0 or information.stale(REFRESH):
                information.refreshed()
                g = forms(factor, h, information.inverse)
                half = forms(factor, h, information.middle())
            cost = trace_increase(g[kept], half[kept]).numpy()
            gone = kept.pop(int(np.lexsort((~keys[kept], cost))[0]))
            directions = information.step(factor[gone], h[gone], -1.0)
            # W = M⁻¹ F Z + Z K / 2, and both forms grow
            updated(g, half, projected(factor, h, directions), -1.0)
        return kept

    def _factors(self, columns: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the class parts ``[T, P, Q, w]`` and the embedding ``[T, D]``, float64."""
        h = torch.as_tensor(columns[self.embedding]).double()
        if self.log_probs is None:
            return h.new_full((len(h), 1, 1, 1), 1.0 / self.noise), h
        log_probs = torch.as_tensor(columns[self.log_probs])
        return class_factors(log_probs, self.rank, self.block_diagonal), h

    def _weights(self, labeled: int, k: int) -> tuple[float, float]:
        """Return what one labeled row and one candidate count in M."""
        if self.labeled_weight == "sum" or labeled == 0:
            return 1.0, 1.0
        if self.labeled_weight == "mean":
            return 1.0 / labeled, 1.0
        return 1.0 / (labeled + k), k / (labeled + k)

    def _restart(self, information: Information, **more: Any) -> Commit:
        matrices = {"inverse": information.inverse.numpy(), "middle": information.middle().numpy()}
        return Commit(np.zeros(0, np.uint64), np.zeros(0), {**matrices, **more})


def sizes_of(classes: int, rank: int, block_diagonal: bool) -> tuple[int, int, int]:
    """Return blocks P, and rows Q and columns w of B, as ``class_factors`` makes it.

    Args:
        classes: C.
        rank: most probable labels that are kept; 0, and C or more, keep all.
        block_diagonal: the diagonal alone, which is not rotated.
    """
    if block_diagonal:
        return classes, 1, 1
    size = max(classes - 1, 1)
    return 1, size, rank if 0 < rank < classes else size


def fisher_footprint(
    sizes: tuple[int, int, int, int], rows: int, picks: int, *, refresh: int
) -> Footprint:
    """Return memory and work of the forward pass; all of it is float64.

    A row keeps its position, embedding, B [P, Q, w] and two forms [P, w, w]. At first a thread
    sums the P Q (Q + 1) / 2 class pairs of a tile (as made, as integers, and all tiles so far);
    later it solves for the gains (five arrays of forms). A restart brings a shard two matrices
    [P, Q D, Q D]. The driver holds M, F, the inverse, the pool's blocks, and for a message the
    middle matrix and both in bytes. In work a float64 operation counts as two of float32.

    Args:
        sizes: P, Q, w and D.
        rows: of all shards.
        picks: of the forward pass.
        refresh: picks between restarts.
    """
    parts, size, rank, d = sizes
    blocks = 8 * parts * (size * (size + 1) // 2) * d * d
    matrix = 8 * parts * (size * d) ** 2
    forms = 8 * parts * rank * rank
    factor = parts * size * rank
    summing = 3 * blocks + TILE_ROWS * 8 * (2 * parts * size * size + d)
    solving = TILE_ROWS * (5 * forms + 8 * 2 * parts * rank * (size + rank))
    projecting = 8 * ROWS * size * (2 * d + parts * size) + TILE_ROWS * 2 * forms
    changes = min(refresh, picks)
    restarts = 1 + picks // refresh
    pick = parts * (4 * d * size * rank + 4 * rank * rank * size + 8 * rank**3)
    restart = 2 * parts * size * (size + 1) * d * d
    return Footprint(
        row=8 * (1 + d + factor) + 2 * forms,
        tile=32,
        transient=max(solving, projecting),
        shard=2 * matrix,
        summing=summing,
        driver=6 * matrix + blocks + 8 * picks * (factor + d) + 8 * changes * d * factor,
        flops=2.0 * rows * (picks * pick + (restarts + 0.5) * restart),
        read=8.0 * rows * picks * (d + factor + 4 * parts * rank * rank),
    )
