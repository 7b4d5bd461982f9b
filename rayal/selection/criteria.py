"""Several criteria of an item, added up: how it lies among labeled items, and what it may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from rayal.acquisition import margin
from rayal.selection.devices import to_device, to_host
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.progress import Commit, Progress
from rayal.selection.tiles import Floats, Tile
from rayal.selection.topk import TopK
from rayal.types import TILE_ROWS

BLOCK = 512  # labeled rows of one product
_WIDTH = 8  # rows of a product are padded to a multiple of this: never GEMV
_FAR = -2.0  # below every cosine


@dataclass(frozen=True)
class Weights:
    """The weight of each criterion.

    Args:
        density: 1 - mean cosine with the labeled rows of the item's class, or with all of them.
        similarity: 1 - largest cosine with a labeled row of the item's class.
        uncertainty: 1 - (p_1 - p_2).
        label: the weight of the item's class.
        classes: that weight of each class; none gives all the same.
        among_all: whether the density looks at labeled rows of all classes.
    """

    density: float
    similarity: float
    uncertainty: float
    label: float
    classes: tuple[float, ...] = ()
    among_all: bool = False


@dataclass(slots=True)
class CriteriaTile:
    """The sum of criteria and the margin of each row, ``[T, 2]``."""

    value: Floats


@dataclass(frozen=True)
class MultiCriteria(TopK):
    """The k largest weighed sums of density, similarity, uncertainty and class weight.

    An item's class is that which most of its nearest labeled rows are predicted as; without labeled
    rows it is its own prediction, and density and similarity are 1, as for a class without any. The
    mean cosine is one product with the mean of unit vectors, so that labeled rows are passed once.

    Args:
        weights: of the criteria.
        neighbors: labeled rows that vote on the class; the nearer ones win a tie.
    """

    title: ClassVar[str] = "the sum of criteria"

    weights: Weights = Weights(0.25, 0.25, 0.25, 0.25)
    neighbors: Annotated[int, Ge(1)] = 5
    log_probs: str = "log_probs"
    embedding: str = "embedding"

    @property
    def needs(self) -> tuple[str, ...]:
        """Log-probabilities and embedding."""
        return (self.log_probs, self.embedding)

    @property
    def narrow(self) -> tuple[str, ...]:
        """The embedding."""
        return (self.embedding,)

    @property
    def context(self) -> tuple[str, ...]:
        """The same columns of labeled rows."""
        return self.needs

    def drawn(self) -> dict[str, Any]:
        """Return the weights, for the record."""
        return {"weights": dict(vars(self.weights))}

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return two float64 a row, and a tile's unit vectors, cosines and class maxima."""
        classes = width(shapes, self.log_probs)
        wide = width(shapes, self.embedding)
        worked = TILE_ROWS * (12 * wide + 12 * BLOCK + 40 * classes)
        sent = min(k, TILE_ROWS) * 40
        return Footprint(row=16, tile=sent, transient=worked, read=4.0 * rows * (classes + wide))

    def begin(self, tile: Tile, seed: int) -> None:
        """Value the rows without knowing labeled ones."""
        own = tile.columns[self.log_probs].argmax(dim=1)
        ones = torch.ones(len(own), dtype=torch.float64, device=own.device)
        self._value(tile, own, ones, ones)

    def open(self, context: Mapping[str, npt.NDArray[Any]], progress: Progress) -> list[Commit]:
        """Return the labeled rows as unit vectors in the order of their classes, and the means."""
        if not all(name in context for name in self.needs) or not len(context[self.embedding]):
            return []
        log_probs = torch.as_tensor(context[self.log_probs])
        units = unit_rows(torch.as_tensor(context[self.embedding]))
        classes = log_probs.argmax(dim=1)
        order = torch.argsort(classes, stable=True)
        sums = units.new_zeros(log_probs.shape[1], units.shape[1])
        sums.index_add_(0, classes, units)
        counts = torch.bincount(classes, minlength=len(sums))
        if self.weights.among_all:
            means = sums.sum(dim=0, keepdim=True).expand_as(sums) / len(classes)
        else:
            means = sums / counts.clamp_min(1)[:, None]
        columns = {
            "units": units[order].float().numpy(),
            "counts": counts.numpy(),
            "means": means.float().contiguous().numpy(),
        }
        return [Commit(np.zeros(0, np.uint64), np.zeros(0), columns)]

    def commit(self, tile: Tile, commit: Commit) -> None:
        """Value the rows beside the labeled ones, once."""
        if "units" not in commit.columns:
            return
        units, counts, means = (
            to_device(commit.columns[name], tile.device) for name in ("units", "counts", "means")
        )
        x = unit_rows(tile.columns[self.embedding]).float()
        largest, classes = among(x, units, counts, self.neighbors)
        mean = x @ padded(means).T  # [T, ≥ C], mean cosine with each class
        known = counts[classes] > 0
        density = 1.0 - mean.gather(1, classes[:, None])[:, 0].double()
        similarity = 1.0 - largest.gather(1, classes[:, None])[:, 0].double()
        one = torch.ones_like(density)
        self._value(
            tile, classes, torch.where(known, density, one), torch.where(known, similarity, one)
        )

    def gain(self, tile: Tile) -> Floats:
        """Return the sums, with the margin behind them as the tie-breaker."""
        return tile.state_as(CriteriaTile).value

    def _value(self, tile: Tile, classes: Tensor, density: Tensor, similarity: Tensor) -> None:
        w = self.weights
        log_probs = tile.columns[self.log_probs]
        gap = margin(log_probs)
        each = w.classes or (1.0 / log_probs.shape[1],) * log_probs.shape[1]
        own = torch.tensor(each, dtype=torch.float64, device=gap.device)[classes]
        parts = (w.density * density, w.similarity * similarity, w.label * own)
        value = w.uncertainty * (1.0 + gap) + (parts[0] + parts[1] + parts[2])
        tile.state = CriteriaTile(to_host(torch.stack([value, gap], dim=1)))


def among(x: Tensor, units: Tensor, counts: Tensor, neighbors: int) -> tuple[Tensor, Tensor]:
    """Return the largest cosine with each class's labeled rows ``[T, C]``, and the classes ``[T]``.

    Where a class has no rows the cosine is -2. No more than BLOCK labeled rows are looked at once.

    Args:
        x: unit rows, float32 ``[T, D]``.
        units: labeled unit rows, float32 ``[L, D]``, those of class 0 first, and so on.
        counts: labeled rows of each class, int64 ``[C]``.
        neighbors: nearest labeled rows that vote on a row's class.
    """
    largest = x.new_full((len(x), len(counts)), _FAR)
    near = x.new_full((len(x), neighbors), _FAR)
    whose = torch.zeros((len(x), neighbors), dtype=torch.int64, device=x.device)
    start = 0
    for label, count in enumerate(counts.tolist()):
        for first in range(start, start + count, BLOCK):
            some = units[first : min(first + BLOCK, start + count)]
            cosines = (x @ padded(some).T)[:, : len(some)].clamp_(-1.0, 1.0)
            torch.maximum(largest[:, label], cosines.amax(dim=1), out=largest[:, label])
            best = cosines.topk(min(neighbors, len(some)), dim=1).values
            near, at = torch.cat([near, best], dim=1).topk(neighbors, dim=1)
            theirs = torch.full_like(best, label, dtype=torch.int64)
            whose = torch.cat([whose, theirs], dim=1).gather(1, at)
        start += count
    far = near > _FAR
    votes = torch.zeros((len(x), len(counts)), dtype=torch.float64, device=x.device)
    # a vote outweighs all cosines together, so that these decide ties alone
    votes.scatter_add_(1, whose, torch.where(far, near.double() + 4.0 * neighbors, 0.0))
    return largest, votes.argmax(dim=1)


def unit_rows(x: Tensor) -> Tensor:
    """Return rows ``[n, D]`` divided by their length, float64; a row of zeros stays zero."""
    return F.normalize(x.double(), dim=1, eps=1e-12)


def padded(rows: Tensor) -> Tensor:
    """Return rows with zeros behind them, so that a product with them is never a GEMV."""
    return F.pad(rows, (0, 0, 0, -len(rows) % _WIDTH))
