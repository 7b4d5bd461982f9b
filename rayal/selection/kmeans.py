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
from torch import Tensor

from rayal.selection.devices import to_host
from rayal.selection.distances import between_products, factored, squared_norm, to_tensor
from rayal.selection.draws import keyed_uniform, uniform
from rayal.selection.footprint import Footprint, Shapes, width
from rayal.selection.objective import Finished, Objective, Quality
from rayal.selection.progress import Commit, Progress
from rayal.selection.quality import DRAWS, Picks, beside_exact, potential
from rayal.selection.threads import Team
from rayal.selection.tiles import Floats, Proposal, Shared, Tile, cut_tiles
from rayal.types import TILE_ROWS, Keys

First = Literal["norm", "uniform", "largest"]


@dataclass(slots=True)
class KMeansTile:
    """The running state of a tile.

    Attributes:
        a: the first factor ``[T, C]``; the second is the embedding's column.
        norm: squared norms ``[T]`` of the products of both.
        seed: the query seed.
        mass: float64 ``[T]``, squared distances to the nearest centre; before there is one, what
            the first is drawn by.
        cumulative: float64 ``[T]``, running sums of the eligible rows' masses.
        largest: the largest mass before there is a centre, where that makes the first one.
        centred: whether masses are distances.
    """

    a: Tensor
    norm: Tensor
    seed: int
    mass: Floats
    cumulative: Floats
    largest: float | None = None
    centred: bool = False


@dataclass(slots=True)
class KMeansShard:
    """The running state of a shard.

    Attributes:
        flat: whether only copies of centres are left.
        new: the factors of centres that no row has met yet.
    """

    flat: bool = False
    new: Mapping[str, Any] | None = None


@dataclass(slots=True)
class KMeansRun:
    """The running state of the driver: whether only copies of centres are left."""

    flat: bool = False


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
    tile_kind: ClassVar[type[KMeansTile]] = KMeansTile
    shard_kind: ClassVar[type[KMeansShard]] = KMeansShard

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

    def driver_state(self) -> KMeansRun:
        """Return the state before there is a centre."""
        return KMeansRun()

    def prepare(self, tiles: Sequence[Tile], seed: int, team: Team) -> None:
        """Set up the tiles' masses, and what the shard keeps."""
        tiles[0].shared.state = self.shard_kind()
        super().prepare(tiles, seed, team)

    def begin(self, tile: Tile, seed: int) -> None:
        """Form the residuals and the squared norms."""
        a, norm = self._factors(tile)
        mass = np.ones(len(norm)) if self.first == "uniform" else to_host(norm).copy()
        state = self.tile_kind(a, norm, seed, mass, np.empty(len(norm)))
        if self.first == "largest":
            state.largest = mass[tile.eligible].max(initial=0.0)
        tile.state = state
        self._accumulate(tile)

    def _factors(self, tile: Tile) -> tuple[Tensor, Tensor]:
        """Return the first factor ``[T, C]``, and the squared norms ``[T]`` of the products."""
        h = tile.columns[self.embedding]
        if self.log_probs is not None:
            a = tile.columns[self.log_probs].exp()
            a[torch.arange(len(a), device=a.device), a.argmax(dim=1)] -= 1.0
        else:
            a = h.new_ones((len(h), 1)) if self.residual is None else tile.columns[self.residual]
        return a, squared_norm(a) * squared_norm(h)

    def gain(self, tile: Tile) -> Floats:
        """Return squared distances (at first: what the first centre is drawn by)."""
        return tile.state_as(KMeansTile).mass

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
        states = [tile.state_as(KMeansTile) for tile in tiles]
        sent = {
            "name": names[winner],
            "a": to_host(torch.stack([states[t].a[r] for t, r in at])),
            "h": to_host(torch.stack([tiles[t].rows(self.embedding, r) for t, r in at])),
            "mass": np.array([states[t].mass[r] for t, r in at]),
        }
        keys = np.array([tiles[t].keys[r] for t, r in at], dtype=np.uint64)
        return Proposal(race[winner, draws.astype(np.int64)][:, None], keys, sent)

    def _race(self, tile: Tile, draws: Keys, step: int) -> Floats:
        """Return minus the tile's time in each draw's race: an Exp(total mass)."""
        state = tile.state_as(KMeansTile)
        total = state.cumulative[-1]
        if total <= 0.0:
            return np.full(len(draws), -np.inf)
        if state.largest is not None and step == 0:
            return np.full(len(draws), state.largest)
        chance = keyed_uniform(draws, state.seed, step, tile.name, 1)
        return np.asarray(np.log1p(-chance) / total)

    def _rows(self, tile: Tile, draws: Keys, step: int) -> npt.NDArray[np.int64]:
        """Return each draw's row, in proportion to the rows' masses."""
        state = tile.state_as(KMeansTile)
        cumulative = state.cumulative
        target = keyed_uniform(draws, state.seed, step, tile.name, 2) * cumulative[-1]
        last = np.searchsorted(cumulative, cumulative[-1])  # the last row that has mass
        rows = np.searchsorted(cumulative, target, side="right")
        return np.asarray(np.minimum(rows, last), dtype=np.int64)

    def _accumulate(self, tile: Tile) -> None:
        state, flat = tile.state_as(KMeansTile), tile.shared.state_as(KMeansShard).flat
        mass = np.ones(len(tile.keys)) if flat else state.mass
        mass = np.where(tile.eligible, mass, 0.0)
        if state.largest is not None and not (state.centred or flat):
            mass = np.where(mass == state.largest, mass, 0.0)
        np.cumsum(mass, out=state.cumulative)

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
        alive, run = np.isfinite(proposal.priority[:, 0]), progress.state_as(KMeansRun)
        if not alive.any():
            if run.flat:
                return None
            run.flat = True  # only copies of centres are left: draw uniformly
            return Commit(np.zeros(0, np.uint64), np.zeros(0), {"flat": True})
        accepted: list[int] = []
        scores: list[float] = []
        true = proposal.columns["mass"].astype(np.float64).copy()
        stale = proposal.columns["mass"]
        flat = run.flat
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

    def receive(self, shared: Shared, commit: Commit) -> None:
        """Keep the new centres until the next draws, and learn whether any mass is left."""
        shard = shared.state_as(KMeansShard)
        shard.flat, shard.new = bool(commit.columns["flat"]), commit.columns

    def settle(self, tiles: Sequence[Tile], m: int, team: Team) -> None:
        """Lower each row's squared distance to that of its nearest new centre."""
        shard = tiles[0].shared.state_as(KMeansShard)
        new, shard.new = shard.new, None
        if new is not None:
            team.map(lambda tile: self._lowered(tile, new), tiles)

    def _lowered(self, tile: Tile, new: Mapping[str, Any]) -> None:
        state = tile.state_as(KMeansTile)
        if not tile.shared.state_as(KMeansShard).flat:
            # the first centre replaces the norms: the origin is no centre
            old = state.mass if state.centred else np.full(len(tile.keys), np.inf)
            a, h = (to_tensor(new[n], tile.device) for n in ("a", "h"))
            own = (state.a, tile.columns[self.embedding], state.norm)
            state.mass[:] = factored(*own, old, (a, h))
            state.centred = True
        self._accumulate(tile)

    def exact(self) -> KMeansPP:
        """Return the draws that are exact in law, over all rows."""
        return KMeansPP(self.residual, self.embedding, self.log_probs, self.first, self.rows)

    def measure(self, finished: Finished) -> Quality | None:
        """Return the potential beside that of exact draws."""
        exact = self.exact()
        return beside_exact(exact, finished, "potential", exact._potential, draws=DRAWS)

    def _potential(self, sample: Sequence[Tile], picks: Picks) -> float:
        keys, columns = picks
        chosen = cut_tiles(keys, {n: to_tensor(columns[n]) for n in self.needs})
        rows, centres = ([(t, *self._factors(t)) for t in tiles] for tiles in (sample, chosen))
        return potential(rows, centres, self.embedding)


def _first_of(race: Floats, names: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the winner of each column of a race; the smaller name wins a tie."""
    tied = np.where(race == race.max(axis=0), names, np.iinfo(np.uint64).max)
    return np.asarray(tied.argmin(axis=0))
