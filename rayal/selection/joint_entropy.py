"""BatchBALD: the batch with the largest mutual information with the model's parameters.

References:
    Kirsch, van Amersfoort & Gal, NeurIPS 2019, sections 3.2 (greedy, submodular) and 4
    (conditioning on sampled configurations);
    Minoux, Optimization Techniques 1978 (lazy evaluation of submodular gains).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Ge

from rayal.acquisition.disagreement import bald
from rayal.acquisition.uncertainty import probability_entropy
from rayal.selection.devices import to_device, to_host
from rayal.selection.footprint import Footprint, Shapes
from rayal.selection.objective import Commit, Objective, Progress
from rayal.selection.tiles import Floats, Proposal, Tile
from rayal.types import TILE_ROWS

ROWS = 16  # rows evaluated at once: every product has the same shape, hence the same bits
CONFIGURATIONS = 512  # of one product: it and its logarithm stay in the cache
FLOAT32 = 4e-6  # nats: a gain computed in float32 is nearer than this to that in float64


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
        held = min(self.draws, c ** min(k, 20))
        tiles = -(-rows // TILE_ROWS)
        exact = [c**n for n in range(1, min(k, 20)) if c**n <= self.draws]
        sampled = float(k - 1 - len(exact)) * self.draws / 3
        # (row, configuration, class) evaluated
        pairs = c * (min(rows, 2 * ROWS * tiles) * float(sum(exact)) + rows * sampled)
        once = TILE_ROWS * prod((s, c)) * 8
        return Footprint(
            row=16,
            tile=32,
            transient=4 * once + 16 * CONFIGURATIONS * ROWS * c + 12 * held * (s + 1),
            driver=4 * 8 * held * s,
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
        tile.state.update(noise=to_host(noise), gain=to_host(gain))

    def gain(self, tile: Tile) -> Floats:
        """Return the last computed gains, upper bounds of the present ones."""
        return np.asarray(tile.state["gain"])

    def propose(self, tile: Tile, m: int, step: int) -> Proposal:
        """Return the tile's best row under the present batch.

        Rows are evaluated lazily, in float32; those that may be the best, again in float64.
        """
        gain, keys = tile.state["gain"], tile.keys
        if "sampled" in tile.shared and tile.eligible.any():
            self._evaluate(tile)
        masked = np.where(tile.eligible, gain, -np.inf)
        best_row = np.lexsort((keys, -masked))[: 1 if tile.eligible.any() else 0]
        return Proposal(gain[best_row][:, None], keys[best_row], {"row": best_row})

    def _evaluate(self, tile: Tile) -> None:
        """Bring the gains of all rows that may be the best up to date."""
        gain = tile.state["gain"]
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
        progress.state.setdefault("picked", []).append(log_probs)
        weights, pi = self._extend(progress, log_probs)
        columns = {"weights": weights, "pi": pi, "sampled": "rng" in progress.state}
        return Commit(proposal.keys[:1], proposal.priority[:1, 0], columns)

    def receive(self, shared: dict[Any, Any], commit: Commit) -> None:
        """Keep the batch's configurations."""
        for name in ("weights", "pi"):
            value = to_device(commit.columns[name], shared.get("device"))
            shared[name, torch.float64], shared[name, torch.float32] = value, value.float()
        shared["sampled"] = commit.columns["sampled"]

    def _gains(self, tile: Tile, rows: npt.NDArray[np.int64], dtype: torch.dtype) -> Floats:
        """Return the gains of at most ROWS rows."""
        weights, pi = (tile.shared[name, dtype] for name in ("weights", "pi"))
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
        return np.asarray((entropy - tile.state["noise"][rows]).clip(0.0))

    def _error(self, tile: Tile, row: int) -> float:
        """Return the standard error of a row's gain over sampled configurations."""
        if not tile.shared["sampled"]:
            return 0.0
        weights, pi = (tile.shared[name, torch.float64] for name in ("weights", "pi"))
        entropy = probability_entropy(weights @ tile.rows(self.column, row).double().exp())
        mean = (pi * entropy).sum()
        return float(((pi * (entropy - mean) ** 2).sum() / len(pi)).sqrt())

    def _extend(self, progress: Progress, log_probs: Floats) -> tuple[Floats, Floats]:
        """Return W ``[J, S]`` and pi ``[J]`` for the batch with the new pick."""
        state = progress.state
        members, classes = log_probs.shape
        if classes ** len(state["picked"]) <= self.draws:
            old = state.get("log_joint", np.zeros((1, members)))
            state["log_joint"] = (old[:, None, :] + log_probs.T[None]).reshape(-1, members)
            return _posterior(state["log_joint"])
        if "origin" not in state:  # the first sampled step draws the earlier labels too
            state["origin"] = np.repeat(np.arange(members), max(1, self.draws // members))
            state["rng"] = np.random.Generator(np.random.Philox(progress.seed & (2**64 - 1)))
            state["log_joint"] = np.zeros((len(state["origin"]), members))
            fresh = state["picked"]
        else:
            fresh = [log_probs]
        for factor in fresh:
            labels = _draw(factor[state["origin"]], state["rng"])
            state["log_joint"] = state["log_joint"] + factor.T[labels]
        weights, _ = _posterior(state["log_joint"])
        return weights, np.full(len(weights), 1.0 / len(weights))


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
