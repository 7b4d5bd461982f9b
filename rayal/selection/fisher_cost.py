"""What the greedy on Fisher information takes in memory and work; see ``fisher_algebra``."""

from __future__ import annotations

from rayal.selection.fisher_algebra import ROWS
from rayal.selection.footprint import Footprint
from rayal.types import TILE_ROWS


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
