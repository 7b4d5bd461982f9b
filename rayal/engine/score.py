"""A strategy's score of scanned rows."""

from __future__ import annotations

import torch
from torch import Tensor

from rayal.errors import ScoreError
from rayal.strategies.base import Strategy
from rayal.types import TILE_ROWS, Columns


def score_tiles(strategy: Strategy, columns: Columns) -> Tensor | None:
    """Score tile by tile, so that the bits do not depend on the scan's batch size."""
    if not columns:
        return None
    scores = []
    for start in range(0, len(columns.ids), TILE_ROWS):
        stop = start + TILE_ROWS
        tile = Columns({n: c[start:stop] for n, c in columns.items()}, columns.ids[start:stop])
        score = strategy.score(tile)
        if score is None:
            return None
        bad = torch.isnan(score.reshape(len(score), -1)).any(dim=1)
        if bad.any():
            item = tile.ids[int(torch.nonzero(bad)[0])]
            raise ScoreError(
                f"{type(strategy).__name__} scored item {item!r} NaN; look at its row with "
                "`rayal why`, and at the model's loss"
            )
        scores.append(score.double())
    return torch.cat(scores)
