"""k-means++ seeding: draws in proportion to the squared distance to what is already chosen.

References:
    Arthur & Vassilvitskii, SODA 2007 (D² sampling);
    Ash, Zhang, Krishnamurthy, Langford & Agarwal, ICLR 2020, algorithm 1 (on gradient embeddings).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Ge

from rayal.selection.devices import to_host
from rayal.selection.distances import between_products, factored, squared_norm, to_tensor
from rayal.selection.draws import keyed_uniform, uniform
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.objective import Commit, Objective, Progress
from rayal.selection.threads import Team
from rayal.selection.tiles import Floats, Proposal, Tile
from rayal.types import TILE_ROWS, Keys

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
    rows: Annotated[int, Ge(1)] = 512

    @property
    def needs(self) -> tuple[str, ...]:
        """The factors' columns."""
        left = self.log_probs or self.residual
        return (self.embedding,) if left is None else (left, self.embedding)

    @property
    def narrow(self) -> tuple[str, ...]:
        """The embedding."""
        return (self.embedding,)

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return what the draws take.

        A row keeps its squared norm, its mass and its tile's running sum, 8 bytes each, and the
        residual (4 C) where that is formed from log-probabilities. A block of draws is taken to
        give 100 picks; their rows wait on the shard for the next one. Pairs that are computed
        again from differences, where many rows are close to a centre, are not counted in the work.
        """
        d = width(shapes, self.embedding)
        left = self.log_probs or self.residual
        c = 1 if left is None else width(shapes, left)
        formed = 0 if left is not None and self.log_probs is None else 4 * c
        passes = 2 + k / 100
        return Footprint(
            row=24 + formed,
            tile=self.rows * 8,
            transient=TILE_ROWS * 12 * self.rows + 2_000_000,
            shard=self.rows * 16 * (c + d),
            driver=self.rows * 24 * (c + d) + 48 * self.rows**2,
            flops=2.0 * rows * (c + d) * (k + 8 * passes),
            read=4.0 * rows * (c + d) * (2 + passes),
        )

    def block(self, progress: Progress) -> int:
        """Return the draws of the next step: one until there is a centre."""
        return self.rows if progress.keys else 1

    def begin(self, tile: Tile, seed: int) -> None:
        """Form the residuals and the squared norms."""
        h = tile.columns[self.embedding]
        if self.log_probs is not None:
            a = tile.columns[self.log_probs].exp()
            a[torch.arange(len(a), device=a.device), a.argmax(dim=1)] -= 1.0
        else:
            a = h.new_ones((len(h), 1)) if self.residual is None else tile.columns[self.residual]
        norm = squared_norm(a) * squared_norm(h)
        tile.state.update(a=a, norm=norm, seed=seed, cumulative=np.empty(len(h)))
        if self.first == "uniform":
            tile.state["mass"] = np.ones(len(h))
        else:
            tile.state["mass"] = to_host(norm).copy()
        if self.first == "largest":
            eligible = tile.state["mass"][tile.eligible]
            tile.state["largest"] = eligible.max(initial=0.0)
        self._accumulate(tile)

    def gain(self, tile: Tile) -> Floats:
        """Return squared distances (at first: what the first centre is drawn by)."""
        return np.asarray(tile.state["mass"])

    def offer(self, tiles: Sequence[Tile], m: int, step: int, team: Team) -> Proposal:
        """Draw m tiles by the shard's races, and a row of each."""
        self.settle(tiles, m, team)
        draws = np.arange(m, dtype=np.uint64)
        race = np.stack([self._race(tile, draws, step) for tile in tiles])  # [tiles, m]
        names = np.array([tile.name for tile in tiles], dtype=np.uint64)
        winner = _first_of(race, np.broadcast_to(names[:, None], race.shape))
        rows = np.zeros(m, dtype=np.int64)
        for t in np.unique(winner).tolist():
            won = winner == t
            rows[won] = self._rows(tiles[t], draws[won], step)
        at = list(zip(winner.tolist(), rows.tolist(), strict=True))
        sent = {
            "name": names[winner],
            "a": to_host(torch.stack([tiles[t].state["a"][r] for t, r in at])),
            "h": to_host(torch.stack([tiles[t].rows(self.embedding, r) for t, r in at])),
            "mass": np.array([tiles[t].state["mass"][r] for t, r in at]),
        }
        keys = np.array([tiles[t].keys[r] for t, r in at], dtype=np.uint64)
        return Proposal(race[winner, draws.astype(np.int64)][:, None], keys, sent)

    def _race(self, tile: Tile, draws: Keys, step: int) -> Floats:
        """Return minus the tile's time in each draw's race: an Exp(total mass)."""
        total = tile.state["cumulative"][-1]
        if total <= 0.0:
            return np.full(len(draws), -np.inf)
        if "largest" in tile.state and step == 0:
            return np.full(len(draws), tile.state["largest"])
        chance = keyed_uniform(draws, tile.state["seed"], step, tile.name, 1)
        return np.asarray(np.log1p(-chance) / total)

    def _rows(self, tile: Tile, draws: Keys, step: int) -> npt.NDArray[np.int64]:
        """Return each draw's row, in proportion to the rows' masses."""
        cumulative = tile.state["cumulative"]
        target = keyed_uniform(draws, tile.state["seed"], step, tile.name, 2) * cumulative[-1]
        last = np.searchsorted(cumulative, cumulative[-1])  # the last row that has mass
        rows = np.searchsorted(cumulative, target, side="right")
        return np.asarray(np.minimum(rows, last), dtype=np.int64)

    def _accumulate(self, tile: Tile) -> None:
        mass = np.ones(len(tile.keys)) if tile.shared.get("flat") else tile.state["mass"]
        mass = np.where(tile.eligible, mass, 0.0)
        if "largest" in tile.state and not (tile.state.get("centred") or tile.shared.get("flat")):
            mass = np.where(mass == tile.state["largest"], mass, 0.0)
        np.cumsum(mass, out=tile.state["cumulative"])

    def fold(self, proposals: Sequence[Proposal], m: int) -> Proposal:
        """Let the tiles race in each draw; the smaller key wins a tie."""
        if len(proposals) == 1:
            return proposals[0]
        race = np.stack([p.priority[:, 0] for p in proposals])  # [shards, m]
        winner = _first_of(race, np.stack([p.columns["name"] for p in proposals]))
        draw = np.arange(race.shape[1])
        columns = {
            n: np.stack([p.columns[n] for p in proposals])[winner, draw]
            for n in proposals[0].columns
        }
        keys = np.stack([p.keys for p in proposals])[winner, draw]
        return Proposal(race[winner, draw][:, None], keys, columns)

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
        between = between_products(proposal.columns["a"], proposal.columns["h"])  # [m, m]
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
                true = np.minimum(true, between[s])
        chosen = {n: proposal.columns[n][accepted] for n in ("a", "h")}
        chosen["flat"] = np.array(flat)
        return Commit(proposal.keys[accepted], np.array(scores), chosen)

    def receive(self, shared: dict[Any, Any], commit: Commit) -> None:
        """Keep the new centres until the next draws, and learn whether any mass is left."""
        shared["flat"] = bool(commit.columns["flat"])
        shared["new"] = commit.columns

    def settle(self, tiles: Sequence[Tile], m: int, team: Team) -> None:
        """Lower each row's squared distance to that of its nearest new centre."""
        new = tiles[0].shared.pop("new", None)
        if new is not None:
            team.map(lambda tile: self._lowered(tile, new), tiles)

    def _lowered(self, tile: Tile, new: Mapping[str, Any]) -> None:
        state = tile.state
        if not tile.shared["flat"]:
            # the first centre replaces the norms: the origin is no centre
            old = state["mass"] if state.get("centred") else np.full(len(tile.keys), np.inf)
            columns = (state["a"], tile.columns[self.embedding], state["norm"])
            a, h = (to_tensor(new[n], tile.device) for n in ("a", "h"))
            state["mass"][:] = factored(*columns, old, (a, h))
            state["centred"] = True
        self._accumulate(tile)


def _first_of(race: Floats, names: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the winner of each column of a race; the smaller name wins a tie."""
    tied = np.where(race == race.max(axis=0), names, np.iinfo(np.uint64).max)
    return np.asarray(tied.argmin(axis=0))
