"""Selection: a round's joint choice, with what it rests on, committed and offered."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rayal.engine.columns import bf16_columns, ids_of, rows_by_key
from rayal.engine.executor import Executor, open_share
from rayal.engine.remember import keep_attached, keep_memory, recall
from rayal.engine.scan import Scan
from rayal.engine.spec import ProjectSpec, options_record
from rayal.engine.workspace import Workspace
from rayal.failpoints import failpoint
from rayal.ledger import Pick
from rayal.ledger.selections import INITIAL
from rayal.pool.reader import Pool
from rayal.pool.storage import present, read_mapped
from rayal.registry import strategies
from rayal.selection.greedy import Chosen, Shards, choose, count
from rayal.selection.objective import Objective
from rayal.selection.quality import SAMPLE_ROWS
from rayal.selection.sampling import wider
from rayal.selection.tiles import Proposal, Tile
from rayal.selection.topk import TopK
from rayal.strategies.base import Ctx, Strategy
from rayal.types import Keys, id_keys, stated

RUNNERS_UP = 10
TOUCHED = ("labeled", "offered", "leased", "conflict")  # whose label is there, or on its way


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
            candidates = count(shards) if objective.share < 1.0 else request.rows
            if candidates >= request.k:
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
    approximation = objective.approximation()
    rounded = any(set(bf16_columns(path)) & set(objective.needs) for path in request.paths[:1])
    if approximation is None and not rounded:
        return chosen, None
    loss = None if approximation is None else _loss(request, objective, chosen)
    named = {"precision": "bf16", **(approximation or {})} if rounded else approximation or {}
    return chosen, {**named, "candidates": candidates, "of": request.rows, "loss": loss}


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


def choose_initial(
    workspace: Workspace, chosen: Sequence[str] | None = None, *, ready: int = 0
) -> None:
    """Choose the first items by a strategy that needs no model, or take chosen ones, once.

    Args:
        workspace: of the project.
        chosen: their ids where somebody else chose them.
        ready: items offered beyond ``initial.count``.
    """
    if workspace.ledger.selection(workspace.name, INITIAL) is not None:
        return
    started, initial = time.perf_counter(), workspace.spec.initial
    strategy: Strategy = strategies[initial.strategy]()
    provenance = {"initial": stated(initial), "seed": workspace.spec.query_seed(INITIAL)}
    provenance |= {"ready": ready} if ready else {}
    if chosen is not None:
        keys = id_keys(chosen)
        picks = [
            Pick(i, int(k), rank, None, None)
            for rank, (i, k) in enumerate(zip(chosen, keys, strict=True), start=1)
        ]
        _commit(workspace, INITIAL, picks, [], {**provenance, "given": True}, started=started)
        return
    parts = workspace.pool.parts_of("pool")
    paths = [present(workspace.root / part.file) for part in parts]
    choice, n, _ = _greedy(workspace, INITIAL, strategy, paths, k=initial.count + ready)
    picks, others = _named(workspace.pool, choice, len(choice.keys) / n if n else None)
    provenance = {**provenance, "candidates": n}
    _commit(workspace, INITIAL, picks, others, provenance, started=started)


def select(workspace: Workspace, round: int, scan: Scan, paths: Sequence[Path]) -> None:
    """Choose a round's batch and offer it, once.

    Args:
        workspace: whose round it is.
        round: its number.
        scan: of the round's committee.
        paths: the columns that it committed.
    """
    if workspace.ledger.selection(workspace.name, round) is not None:
        return
    started, spec, committee = time.perf_counter(), workspace.spec, scan.committee
    workspace.report("select", 0, spec.batch)
    strategy = spec.strategy
    context = {}
    if strategy.context:
        context = rows_by_key(paths, strategy.context, workspace.excluded(*TOUCHED))
    recalled = recall(workspace, round, committee)
    known = {"context": context, "memory": recalled.memory}
    choice, n, approximation = _greedy(workspace, round, strategy, paths, k=spec.batch, **known)
    chance = len(choice.keys) / n if n and not strategy.signals() else None
    picks, others = _named(workspace.pool, choice, chance)
    failpoint("select")
    record: dict[str, Any] = {"candidates": n, "approximation": approximation}
    record |= {"drawn": dict(choice.drawn)} if choice.drawn else {}
    record |= keep_attached(workspace, round, committee, picks)
    record |= keep_memory(workspace, round, committee, picks, recalled, choice.notes)
    provenance = provenance_of(spec, round, scan, workspace.pool.snapshot) | record
    _commit(workspace, round, picks, others, provenance, started=started)


def _greedy(
    workspace: Workspace,
    round: int,
    strategy: Strategy,
    paths: Sequence[Path],
    *,
    k: int,
    **known: Mapping[str, Any],
) -> tuple[Chosen, int, dict[str, Any] | None]:
    """Return the choice, the number of candidates, and what made the choice approximate."""
    spec, pool = workspace.spec, workspace.pool
    excluded, seed = workspace.excluded(), spec.query_seed(round)
    n = sum(part.rows for part in pool.parts_of("pool")) - len(excluded)
    labels = workspace.ledger.resolved(workspace.name)
    ctx = Ctx(round=round, k=k, seed=seed, n_candidates=n, labels=labels, **known)
    request = Request(
        workspace.executor,
        paths,
        excluded,
        n,
        min(k, n),
        seed,
        shards=spec.shards,
        threads=spec.threads_per_model,
        context=known.get("context"),
        device=spec.selection.device,
    )
    chosen, approximation = choose_items(
        request,
        strategy.objective(ctx),
        runners_up=RUNNERS_UP,
        report=lambda done, total: workspace.report("select", done, total),
    )
    return chosen, n, approximation


def _named(pool: Pool, chosen: Chosen, probability: float | None) -> tuple[list[Pick], list[Pick]]:
    """Return picks and runners-up with ids, ranks from 1, and scores where they are finite."""

    def rows(keys: Keys, scores: Sequence[float], first: int) -> list[Pick]:
        ids = ids_of(pool, keys)
        return [
            Pick(i, int(k), first + r, s if math.isfinite(s) else None, probability)
            for r, (i, k, s) in enumerate(zip(ids, keys, scores, strict=True))
        ]

    picks = rows(chosen.keys, chosen.scores.tolist(), 1)
    rest: Proposal = chosen.runners_up
    others = rows(rest.keys, rest.priority[:, 0].tolist(), len(picks) + 1)
    return picks, others


def _commit(
    workspace: Workspace,
    round: int,
    picks: Sequence[Pick],
    others: Sequence[Pick],
    provenance: Mapping[str, Any],
    *,
    started: float,
) -> None:
    """Write a selection, and that its stage is done, in one transaction."""
    workspace.ledger.commit_selection(
        workspace.name,
        round,
        picks,
        others,
        provenance,
        stage=None if round == INITIAL else "select",
        output=_output(round, picks, provenance),
        seconds=time.perf_counter() - started,
    )


def _output(round: int, picks: Sequence[Pick], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the output of the select stage; the initial choice has none."""
    if round == INITIAL:
        return {}
    record = {name: provenance.get(name) for name in ("approximation", "memory")}
    return {"picks": len(picks)} | {n: value for n, value in record.items() if value is not None}
