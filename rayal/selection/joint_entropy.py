"""BatchBALD: the batch with the largest mutual information with the model's parameters.

References:
    Kirsch, van Amersfoort & Gal, NeurIPS 2019, sections 3.2 (greedy, submodular) and 4
    (conditioning on sampled configurations);
    Minoux, Optimization Techniques 1978 (lazy evaluation of submodular gains).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Ge
from torch import Tensor

from rayal.acquisition.disagreement import bald
from rayal.acquisition.uncertainty import probability_entropy
from rayal.selection.devices import to_device, to_host
from rayal.selection.footprint import Footprint, Shapes
from rayal.selection.objective import Finished, Objective, Quality
from rayal.selection.progress import Commit, Progress
from rayal.selection.tiles import Floats, Proposal, Shared, Tile
from rayal.types import TILE_ROWS

ROWS = 16  # rows evaluated at once: every product has the same shape, hence the same bits
CONFIGURATIONS = 512  # of one product: it and its logarithm stay in the cache
FLOAT32 = 4e-6  # nats: a gain computed in float32 is nearer than this to that in float64


@dataclass(slots=True)
class EntropyTile:
    """The running state of a tile: mean entropy of the members and last gain, ``[T]``."""

    noise: Floats
    gain: Floats


@dataclass(slots=True)
class Batch:
    """The batch's label configurations, as a shard was sent them.

    Attributes:
        weights: W ``[J, S]``, by precision.
        pi: ``[J]``, by precision.
        sampled: whether they are a sample.
    """

    weights: dict[torch.dtype, Tensor]
    pi: dict[torch.dtype, Tensor]
    sampled: bool


@dataclass(slots=True)
class Sample:
    """The member ``[J]`` that each configuration's labels are drawn from, and the generator."""

    origin: npt.NDArray[np.int64]
    rng: np.random.Generator


@dataclass(slots=True)
class EntropyRun:
    """The running state of the driver.

    Attributes:
        picked: log-probabilities ``[S, C]`` of the picks.
        log_joint: ``[J, S]``, of each configuration under each member; None for the empty batch.
        sample: what draws configurations, once they are a sample.
    """

    picked: list[Floats] = field(default_factory=list)
    log_joint: Floats | None = None
    sample: Sample | None = None


@dataclass(frozen=True)
class JointEntropy(Objective):
    """Greedy on I(y_x; w | y_A), exact while C^|A| <= draws, then over sampled configurations.

    The state of the batch is one matrix W [J, S]: row j is the posterior over the S members given
    that the labels of A are configuration j, with weight pi_j. Then
    I(y_x; w | y_A) = sum_j pi_j H(sum_s W_js p_s(y_x)) - mean_s H(p_s(y_x)).
    A pick multiplies W by its likelihood and normalises: samples are extended, never redrawn.
    A tile evaluates rows by their last gain, an upper bound by submodularity, until none can win.
    With sampled configurations gains are estimates; three standard errors are added to the bound.

    Args:
        column: member log-probabilities ``[N, S, C]``, the same members for every row.
        draws: most configurations held.
    """

    title: ClassVar[str] = "BatchBALD"

    column: str = "member_log_probs"
    draws: Annotated[int, Ge(1)] = 10_000

    @property
    def needs(self) -> tuple[str, ...]:
        """The members' predictions."""
        return (self.column,)

    @property
    def sends(self) -> tuple[str, ...]:
        """The driver extends the batch by the pick's predictions."""
        return (self.column,)

    def footprint(self, shapes: Shapes, rows: int, k: int) -> Footprint:
        """Return what the greedy takes, with J configurations held by driver and shards.

        A row keeps its noise and its gain, 8 bytes each. A tile's probabilities are float64, with
        three arrays of their size while entropies are taken. A pick is taken to evaluate two
        blocks of rows in each tile while configurations are exact, and a third of all rows once
        they are sampled.
        """
        s, c = shapes[self.column]
        configurations = min(self.draws, c ** min(k, 20))
        tiles = -(-rows // TILE_ROWS)
        exact = [c**n for n in range(1, min(k, 20)) if c**n <= self.draws]
        sampled = float(k - 1 - len(exact)) * self.draws / 3
        # (row, configuration, class) evaluated
        pairs = c * (min(rows, 2 * ROWS * tiles) * float(sum(exact)) + rows * sampled)
        once = TILE_ROWS * prod((s, c)) * 8
        return Footprint(
            row=16,
            tile=32,
            transient=4 * once + 16 * CONFIGURATIONS * ROWS * c + 12 * configurations * (s + 1),
            driver=4 * 8 * configurations * s,
            flops=2.0 * s * pairs,
            read=4.0 * rows * s * c,
            logs=2.0 * rows * s * c + pairs,
        )

    def block(self, progress: Progress) -> int:
        """Return one: every pick changes every gain."""
        return 1

    def begin(self, tile: Tile, seed: int) -> None:
        """Compute BALD, the gain for the empty batch."""
        probs = tile.columns[self.column].double().exp()  # [T, S, C]
        noise = probability_entropy(probs).mean(dim=1)
        gain = bald(probs.mean(dim=1), noise)
        tile.state = EntropyTile(to_host(noise), to_host(gain))

    def driver_state(self) -> EntropyRun:
        """Return the empty batch."""
        return EntropyRun()

    def gain(self, tile: Tile) -> Floats:
        """Return the last computed gains, upper bounds of the present ones."""
        return tile.state_as(EntropyTile).gain

    def propose(self, tile: Tile, m: int, step: int) -> Proposal:
        """Return the tile's best row under the present batch.

        Rows are evaluated lazily, in float32; those that may be the best, again in float64.
        """
        gain, keys = tile.state_as(EntropyTile).gain, tile.keys
        if tile.shared.state is not None and tile.eligible.any():
            self._evaluate(tile)
        masked = np.where(tile.eligible, gain, -np.inf)
        best_row = np.lexsort((keys, -masked))[: 1 if tile.eligible.any() else 0]
        return Proposal(gain[best_row][:, None], keys[best_row], {"row": best_row})

    def _evaluate(self, tile: Tile) -> None:
        """Bring the gains of all rows that may be the best up to date."""
        gain = tile.state_as(EntropyTile).gain
        rows = np.flatnonzero(tile.eligible)
        rows = rows[np.lexsort((tile.keys[rows], -gain[rows]))]
        best, slack, seen = -np.inf, 0.0, 0
        for start in range(0, len(rows), ROWS):
            chunk = rows[start : start + ROWS]
            if gain[chunk[0]] + slack < best - FLOAT32:
                break
            fresh = self._gains(tile, chunk, torch.float32)
            gain[chunk] = fresh
            seen += len(chunk)
            if fresh.max() > best:
                best = float(fresh.max())
                slack = 3.0 * self._error(tile, int(chunk[fresh.argmax()]))
        near = rows[:seen][gain[rows[:seen]] >= best - 2.0 * FLOAT32]
        gain[rows[:seen]] += FLOAT32  # upper bounds again
        for start in range(0, len(near), ROWS):
            chunk = near[start : start + ROWS]
            gain[chunk] = self._gains(tile, chunk, torch.float64)

    def merge(self, proposal: Proposal, progress: Progress) -> Commit | None:
        """Take the best row and extend the configurations by its label."""
        if len(proposal) == 0:
            return None
        log_probs = proposal.columns[self.column][0].astype(np.float64)  # [S, C]
        run = progress.state_as(EntropyRun)
        run.picked.append(log_probs)
        weights, pi = self._extend(run, log_probs, progress.seed)
        columns = {"weights": weights, "pi": pi, "sampled": run.sample is not None}
        return Commit(proposal.keys[:1], proposal.priority[:1, 0], columns)

    def receive(self, shared: Shared, commit: Commit) -> None:
        """Keep the batch's configurations."""
        weights, pi = (to_device(commit.columns[n], shared.device) for n in ("weights", "pi"))
        shared.state = Batch(
            {torch.float64: weights, torch.float32: weights.float()},
            {torch.float64: pi, torch.float32: pi.float()},
            commit.columns["sampled"],
        )

    def _gains(self, tile: Tile, rows: npt.NDArray[np.int64], dtype: torch.dtype) -> Floats:
        """Return the gains of at most ROWS rows."""
        batch = tile.shared.state_as(Batch)
        weights, pi = batch.weights[dtype], batch.pi[dtype]
        probs = tile.rows(self.column, rows).to(dtype).exp()  # [R, S, C]
        n, members, classes = probs.shape
        padded = probs.new_zeros((ROWS, members, classes))
        padded[:n] = probs
        stacked = padded.permute(1, 0, 2).reshape(members, -1)  # [S, R * C]
        tiny = torch.finfo(dtype).tiny  # 0 log 0 = 0
        total = stacked.new_zeros((1, stacked.shape[1]), dtype=torch.float64)
        mixed, logs = stacked.new_empty((2, min(len(weights), CONFIGURATIONS), stacked.shape[1]))
        for start in range(0, len(weights), CONFIGURATIONS):
            some = weights[start : start + CONFIGURATIONS]
            q, log_q = mixed[: len(some)], logs[: len(some)]  # [J, R * C]
            torch.mm(some, stacked, out=q).clamp_min_(tiny)
            torch.log(q, out=log_q).mul_(q)
            total += torch.mm(pi[None, start : start + len(some)], log_q)
        entropy = -to_host(total.view(ROWS, classes).sum(dim=1)[:n])
        return np.asarray((entropy - tile.state_as(EntropyTile).noise[rows]).clip(0.0))

    def _error(self, tile: Tile, row: int) -> float:
        """Return the standard error of a row's gain over sampled configurations."""
        batch = tile.shared.state_as(Batch)
        if not batch.sampled:
            return 0.0
        weights, pi = batch.weights[torch.float64], batch.pi[torch.float64]
        entropy = probability_entropy(weights @ tile.rows(self.column, row).double().exp())
        mean = (pi * entropy).sum()
        return float(((pi * (entropy - mean) ** 2).sum() / len(pi)).sqrt())

    def _extend(self, run: EntropyRun, log_probs: Floats, seed: int) -> tuple[Floats, Floats]:
        """Return W ``[J, S]`` and pi ``[J]`` for the batch with the new pick."""
        members, classes = log_probs.shape
        joint = np.zeros((1, members)) if run.log_joint is None else run.log_joint
        if classes ** len(run.picked) <= self.draws:
            run.log_joint = (joint[:, None, :] + log_probs.T[None]).reshape(-1, members)
            return _posterior(run.log_joint)
        fresh = [log_probs]
        if run.sample is None:  # the first sampled step draws the earlier labels too
            origin = np.repeat(np.arange(members), max(1, self.draws // members))
            run.sample = Sample(origin, np.random.Generator(np.random.Philox(seed & (2**64 - 1))))
            joint, fresh = np.zeros((len(origin), members)), run.picked
        for factor in fresh:
            labels = _draw(factor[run.sample.origin], run.sample.rng)
            joint = joint + factor.T[labels]
        run.log_joint = joint
        weights, _ = _posterior(joint)
        return weights, np.full(len(weights), 1.0 / len(weights))

    def measure(self, finished: Finished) -> Quality | None:
        """Return the joint information beside a bound of what any batch could have.

        Gains add up to the joint information, and no batch has more than the sum of the k largest
        gains of single items (subadditivity), which stand in the score column of the whole pool.
        """
        best = finished.best_scores()
        if best is None:
            return None
        value, bound = float(finished.scores.sum()), float(best.sum())
        return Quality("joint information", value, bound, finished.rows)


def _posterior(log_joint: Floats) -> tuple[Floats, Floats]:
    """Return each configuration's posterior over members, and its probability."""
    top = log_joint.max(axis=1, keepdims=True)
    joint = np.exp(log_joint - np.where(np.isfinite(top), top, 0.0))
    total = joint.sum(axis=1)
    alive = total > 0  # a configuration that no member allows has no weight
    weights = joint[alive] / total[alive, None]
    pi = np.exp(top[alive, 0]) * total[alive] / log_joint.shape[1]
    return weights, pi


def _draw(log_probs: Floats, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw one label per row of log-probabilities ``[J, C]``."""
    cumulative = np.cumsum(np.exp(log_probs), axis=1)
    target = rng.random(len(log_probs)) * cumulative[:, -1]
    labels = np.count_nonzero(cumulative <= target[:, None], axis=1)
    return np.asarray(np.minimum(labels, log_probs.shape[1] - 1), dtype=np.int64)
