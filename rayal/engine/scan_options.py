"""How the network is run over the pool, what that promises, and how columns are held then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rayal.selection.tiles import PAD
from rayal.types import stated


@dataclass(frozen=True)
class ScanOptions:
    """How the network is run over the pool; part of the columns' hash where it changes bits.

    Args:
        batch: rows per forward pass. Every pass is padded to one number of rows, a multiple of
            64, so that the columns' bits do not depend on it.
        precision: fp32, or bf16 (autocast), whose scores differ in the third digit.
        device: where the network runs.
        compile: compile the network's stages for each committee: seconds first, then faster;
            columns differ from the eager ones in the last digits.
    """

    batch: int = 64
    precision: str = "fp32"
    device: str = "cpu"
    compile: bool = False

    @property
    def width(self) -> int:
        """Rows of a padded pass."""
        return -(-self.batch // PAD) * PAD


@dataclass(frozen=True)
class SelectionOptions:
    """How a joint choice holds the columns that it compares.

    Args:
        precision: fp32, or bf16: embeddings are stored and held in half the bytes, rounded to 8
            bits (a relative error up to 2^-9), and computed with in float32 all the same.
        device: where shards hold their columns and make products: cpu or cuda.
    """

    precision: str = "fp32"
    device: str = "cpu"


def options_record(options: ScanOptions) -> dict[str, Any]:
    """Return the options as they stand in a round's record, with the tolerance they promise."""
    tolerance = 1e-2 if options.precision != "fp32" else 1e-5 if options.compile else 0.0
    return {**stated(options), "tolerance": tolerance}
