"""k-means++ seeding: draws in proportion to the squared distance to what is already chosen.

References:
    Arthur & Vassilvitskii, SODA 2007 (D² sampling);
    Ash, Zhang, Krishnamurthy, Langford & Agarwal, ICLR 2020, algorithm 1 (on gradient embeddings).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge

from rayal.selection.distances import factored, factored_pairs, squared_norm, to_tensor
from rayal.selection.draws import keyed_uniform, uniform
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.objective import Commit, Floats, Objective, Progress, Proposal, Tile
from rayal.types import TILE_ROWS

First = Literal["norm", "uniform", "largest"]


@dataclass(frozen=True)
class KMeansPP(Objective):
    """D² sampling of residual ⊗ embedding rows, exact in law, many draws per pass.

    Each of a block's draws picks a tile by an exponential race over the tiles' masses (which is a
    draw in proportion to mass, whatever shard holds the tile), then a row by the tile's cumulative
    mass. Masses are stale within a block; the driver keeps a draw with probability true / stale
    squared distance, which restores the exact law (rejection sampling).

    Args:
        residual: column ``[N, C]``; None for plain k-means++ on the embedding.
        embedding: column ``[N, D]``.
        log_probs: with it, the residual is p - e_argmax of these log-probabilities ``[N, C]``.
        first: the first centre: in proportion to the squared norm, uniform, or the largest norm.
        rows: draws per pass.
    """

    title: ClassVar[str] = "k-means++"

    residual: str | None = "residual"
    embedding: str = "embedding"
    log_probs: str | None = None
    first: First = "norm"
    rows: Annotated[int, Ge(1)] = 32

    @property
    def needs(self) -> tuple[str, ...]:
        """The factors' columns."""
        left = self.log_probs or self.residual
        return (self.embedding,) if left is None else (left, self.embedding)

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return what the draws take.

        A row keeps its squared norm and its mass, 8 bytes each, and the residual (4 C) where that
        is formed from log-probabilities. Norms square a tile's factors in float64. A block of
        32 draws is taken to give 20 picks. Pairs that are computed again from differences, where
        many rows are close to a centre, are not counted.
        """
        d = width(shapes, self.embedding)
        left = self.log_probs or self.residual
        c = 1 if left is None else width(shapes, left)
        formed = 0 if left is not None and self.log_probs is None else 4 * c
        passes = 2 + k / 20
        return Footprint(
            row=16 + formed,
            tile=self.rows * (24 + 4 * (c + d)),
            transient=TILE_ROWS * (16 * (c + d) + 40 * self.rows),
            driver=self.rows * 24 * (c + d),
            flops=2.0 * rows * (c + d) * self.rows * passes,
            read=20.0 * rows * (c + d) * passes,  # the factors, and their squares
        )

    def block(self, progress: Progress) -> int:
        """Return the draws of the next step: one until there is a centre."""
        return self.rows if progress.keys else 1

    def begin(self, tile: Tile, seed: int) -> None:
        """Form the residuals and the squared norms."""
        h = tile.columns[self.embedding]
        if self.log_probs is not None:
            a = tile.columns[self.log_probs].exp()
            a[np.arange(len(a)), a.argmax(dim=1)] -= 1.0
        else:
            a = h.new_ones((len(h), 1)) if self.residual is None else tile.columns[self.residual]
        norm = (squared_norm(a) * squared_norm(h)).numpy()
        tile.state.update(a=a, norm=norm, mass=norm, seed=seed)
        if self.first == "uniform":
            tile.state["mass"] = np.ones(len(h))

    def gain(self, tile: Tile) -> Floats:
        """Return squared distances (at first: what the first centre is drawn by)."""
        return np.asarray(tile.state["mass"])

    def propose(self, tile: Tile, m: int, step: int) -> Proposal:
        """Draw m rows of the tile, each with the tile's time in that draw's race."""
        flat = tile.shared.get("flat", False)
        mass = np.ones(len(tile.keys)) if flat else tile.state["mass"]
        mass = np.where(tile.eligible, mass, 0.0)
        if step == 0 and self.first == "largest" and not flat:
            mass = np.where(mass == mass.max(initial=0.0), mass, 0.0)
        cumulative = np.cumsum(mass)
        total = cumulative[-1]
        draws = np.arange(m, dtype=np.uint64)
        salt = (tile.state["seed"], step, tile.name)
        if total <= 0.0:
            race, rows = np.full(m, -np.inf), np.zeros(m, dtype=np.int64)
        else:
            race = np.log1p(-keyed_uniform(draws, *salt, 1)) / total  # minus an Exp(total) time
            if step == 0 and self.first == "largest" and not flat:
                race = np.full(m, mass.max())
            target = keyed_uniform(draws, *salt, 2) * total
            rows = np.searchsorted(cumulative, target, side="right")
        sent = {
            "a": tile.state["a"][rows].numpy(),
            "h": tile.columns[self.embedding][rows].numpy(),
            "mass": mass[rows],
        }
        return Proposal(race[:, None], tile.keys[rows], sent)

    def fold(self, proposals: Sequence[Proposal], m: int) -> Proposal:
        """Let the tiles race in each draw; the smaller key wins a tie."""
        if len(proposals) == 1:
            return proposals[0]
        race = np.stack([p.priority[:, 0] for p in proposals])  # [tiles, m]
        keys = np.stack([p.keys for p in proposals])
        tied = np.where(race == race.max(axis=0), keys, np.iinfo(np.uint64).max)
        winner = tied.argmin(axis=0)
        draw = np.arange(race.shape[1])
        columns = {
            n: np.stack([p.columns[n] for p in proposals])[winner, draw]
            for n in proposals[0].columns
        }
        return Proposal(race[winner, draw][:, None], keys[winner, draw], columns)

    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Keep each draw with probability true / stale squared distance."""
        alive = np.isfinite(proposal.priority[:, 0])
        if not alive.any():
            if progress.state.get("flat"):
                return None
            progress.state["flat"] = True  # only copies of centres are left: draw uniformly
            return Commit(np.zeros(0, np.uint64), np.zeros(0), {"flat": True})
        accepted: list[int] = []
        scores: list[float] = []
        true = proposal.columns["mass"].astype(np.float64).copy()
        stale = proposal.columns["mass"]
        flat = bool(progress.state.get("flat"))
        for s in np.flatnonzero(alive).tolist():
            if len(accepted) == progress.left:
                break
            if flat and proposal.keys[s] in proposal.keys[accepted]:
                continue
            if not flat and uniform(progress.seed, progress.step, s, 3) * stale[s] >= true[s]:
                continue
            accepted.append(s)
            scores.append(0.0 if flat else float(true[s]))
            if not flat:
                true = np.minimum(true, _distances_to(proposal, s))
        chosen = {n: proposal.columns[n][accepted] for n in ("a", "h")}
        chosen["flat"] = np.array(flat)
        return Commit(proposal.keys[accepted], np.array(scores), chosen)

    def receive(self, shared: dict[str, Any], commit: Commit) -> None:
        """Learn that no mass is left, where that is so."""
        shared["flat"] = bool(commit.columns["flat"])

    def commit(self, tile: Tile, commit: Commit) -> None:
        """Lower each row's squared distance to that of its nearest new centre."""
        if tile.shared["flat"]:
            return
        a, h = to_tensor(commit.columns["a"]), to_tensor(commit.columns["h"])
        new = factored(tile.state["a"], tile.columns[self.embedding], a, h, self.rows)
        nearest = new.amin(dim=1).numpy()
        # the first centre replaces the norms: the origin is no centre
        old = tile.state["mass"] if tile.state.get("centred") else nearest
        tile.state["mass"] = np.minimum(old, nearest)
        tile.state["centred"] = True


def _distances_to(proposal: Proposal, row: int) -> Floats:
    a, h = to_tensor(proposal.columns["a"]), to_tensor(proposal.columns["h"])
    return factored_pairs(a, h, a[row], h[row]).numpy()
