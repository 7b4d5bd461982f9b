"""A round's joint choice: shards opened, the greedy run, an approximation named and measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayal.engine.columns import bf16_columns, rows_by_key
from rayal.engine.executor import Executor, open_share
from rayal.engine.scan import Scan, options_record
from rayal.engine.spec import ProjectSpec
from rayal.ledger import Pick
from rayal.ledger.selections import INITIAL
from rayal.pool.storage import read_mapped
from rayal.selection.greedy import Chosen, Shards, choose, count
from rayal.selection.objective import Objective
from rayal.selection.quality import SAMPLE_ROWS
from rayal.selection.sampling import wider
from rayal.selection.tiles import Tile
from rayal.selection.topk import TopK
from rayal.types import Keys, stated


@dataclass(frozen=True)
class Request:
    """One joint choice over committed columns.

    Args:
        executor: where the shards are held.
        paths: the column parts.
        excluded: uint64, keys of items that may not be chosen.
        rows: items that may be chosen.
        k: picks, at most ``rows``.
        seed: the query seed.
        shards: of the local executor.
        threads: torch threads of a shard.
        context: columns of labeled and pending items, in key order.
        device: where the shards hold their columns.
    """

    executor: Executor
    paths: Sequence[Path]
    excluded: Keys
    rows: int
    k: int
    seed: int
    shards: int = 1
    threads: int = 1
    context: Mapping[str, npt.NDArray[Any]] | None = None
    device: str = "cpu"

    def open(self, objective: Objective) -> Shards:
        """Return the holders of the objective's tiles."""
        return self.executor.start_shards(
            objective,
            self.paths,
            self.excluded,
            seed=self.seed,
            count=self.shards,
            threads=self.threads,
            device=self.device,
        )


def choose_items(
    request: Request,
    objective: Objective,
    *,
    runners_up: int,
    report: Callable[[int, int], None] | None = None,
) -> tuple[Chosen, dict[str, Any] | None]:
    """Return the choice, and what made it approximate with its measured loss; None if exact.

    Candidates are drawn once more, with twice the share, where chance gave fewer than k: a choice
    never has fewer items because it was approximate. Rounded columns are named, and their loss is
    not measured: what they were before is not stored.

    Args:
        request: over which columns, how many.
        objective: how items are chosen together.
        runners_up: how many of the best not chosen to return.
        report: called with (picks done, k).
    """
    while True:
        with closing(request.open(objective)) as shards:
            held = count(shards) if objective.share < 1.0 else request.rows
            if held >= request.k:
                chosen = choose(
                    objective,
                    shards,
                    request.k,
                    seed=request.seed,
                    context=request.context,
                    runners_up=runners_up,
                    report=report,
                )
                break
        objective = wider(objective)
    made = objective.approximation()
    rounded = any(set(bf16_columns(path)) & set(objective.needs) for path in request.paths[:1])
    if made is None and not rounded:
        return chosen, None
    loss = None if made is None else _loss(request, objective, chosen)
    named = {"precision": "bf16", **(made or {})} if rounded else made or {}
    return chosen, {**named, "candidates": held, "of": request.rows, "loss": loss}


def _loss(request: Request, objective: Objective, chosen: Chosen) -> dict[str, Any] | None:
    """Return the measured quality of an approximate choice, None where none is defined."""
    quality = objective.measure(_FinishedChoice(request, chosen))
    return None if quality is None else quality.to_json()


@dataclass(frozen=True)
class _FinishedChoice:
    """A finished choice beside the columns it was made over, for the objective's measure."""

    request: Request
    chosen: Chosen

    @property
    def rows(self) -> int:
        return self.request.rows

    @property
    def seed(self) -> int:
        return self.request.seed

    @property
    def context(self) -> Mapping[str, npt.NDArray[Any]]:
        return self.request.context or {}

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        return self.chosen.scores

    def picks(self, names: Sequence[str]) -> tuple[Keys, Mapping[str, npt.NDArray[Any]]]:
        """Return the picks' keys, ascending, and their columns."""
        columns = rows_by_key(self.request.paths, names, self.chosen.keys)
        return np.sort(self.chosen.keys), columns

    def sample(self, objective: Objective) -> Sequence[Tile]:
        """Return tiles with about SAMPLE_ROWS of the rows."""
        share = min(1.0, SAMPLE_ROWS / max(1, self.rows))
        sampler = replace(objective, share=share)
        return open_share(sampler, self.request.paths, self.request.excluded, self.seed + 1)

    def best_scores(self) -> npt.NDArray[np.float64] | None:
        """Return the k largest values of the score column, where there is one."""
        if not all("score" in read_mapped(p).column_names for p in self.request.paths[:1]):
            return None
        with closing(self.request.open(TopK())) as shards:
            k = len(self.chosen.keys)
            return choose(TopK(), shards, k, seed=self.seed, runners_up=0).scores


def provenance_of(spec: ProjectSpec, round: int, scan: Scan, snapshot: int) -> dict[str, Any]:
    """Return what a round's choice rests on, before it is made."""
    backbone = {} if spec.backbone is None else {"backbone": spec.backbone.hash}
    return {
        "model": scan.committee.hash,
        "strategy": spec.to_json()["strategy"],
        "seed": spec.query_seed(round),
        "columns": scan.columns_hash() if scan.signals else None,
        "snapshot": snapshot,
        "scan": options_record(spec.scan),
        "selection": stated(spec.selection),
        **backbone,
    }


def output_of(round: int, picks: Sequence[Pick], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the output of the select stage; the initial choice has none."""
    if round == INITIAL:
        return {}
    found = {name: provenance.get(name) for name in ("approximation", "memory")}
    return {"picks": len(picks)} | {n: made for n, made in found.items() if made is not None}
