"""The stages of a round. Each asks the ledger whether it is done, works, and commits once.

A run that was killed anywhere goes on by the same calls and makes the same picks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayal.engine.columns import ids_of, rows_by_key
from rayal.engine.embed import Embed, Inputs
from rayal.engine.executor import Executor, PartJob
from rayal.engine.remember import attached_to, keep_memory, recall
from rayal.engine.scan import (
    Evaluation,
    Scan,
    ScannedPart,
    ScanOptions,
    reconcile,
    spread,
    written_range,
)
from rayal.engine.select import Request, choose_items, output_of, provenance_of
from rayal.engine.spec import ProjectSpec
from rayal.errors import StorageError
from rayal.failpoints import failpoint
from rayal.labels import Label
from rayal.ledger import ColumnsPart, Ledger, Pick
from rayal.ledger.items import STATES
from rayal.ledger.selections import INITIAL
from rayal.models.committee import Committee
from rayal.pool.reader import Part, Pool
from rayal.pool.storage import present
from rayal.registry import strategies
from rayal.selection.greedy import Chosen
from rayal.selection.tiles import Proposal
from rayal.strategies.base import Ctx, Strategy
from rayal.tasks import Task
from rayal.types import TILE_ROWS, Keys, digest, id_keys, stated

Report = Callable[[str, int, int], None]
Truth = Callable[[Sequence[str]], Sequence[Label]]
RUNNERS_UP = 10
HELD = ("labeled", "offered", "leased", "conflict")  # whose label is there, or on its way


class Stages:
    """The stages of one project's rounds; ``Project`` strings them together."""

    ledger: Ledger
    name: str
    root: Path
    spec: ProjectSpec
    pool: Pool
    task: Task
    inputs: Inputs
    executor: Executor
    _report: Report

    @property
    def options(self) -> ScanOptions:
        """How networks run over their inputs; heads go over cached embeddings tile by tile."""
        tiles = self.spec.backbone is not None
        return replace(self.spec.scan, batch=TILE_ROWS) if tiles else self.spec.scan

    def finish(self, round: int, stage: str, output: Mapping[str, Any], started: float) -> None:
        """Record that a stage is done."""
        seconds = time.perf_counter() - started
        self.ledger.finish_stage(self.name, round, stage, output, seconds=seconds)

    def excluded(self, *states: str) -> Keys:
        """Return the keys of the pool's items in these states, sorted.

        Args:
            states: as ``Ledger.states`` names them; by default all but unlabeled.
        """
        touched = self.ledger.states(self.name).items()
        chosen = set(states or STATES) - {"unlabeled"}
        keys = id_keys(i for i, state in touched if state in chosen)
        parts = [self.pool.read(p).column("key").to_numpy() for p in self.pool.parts_of("pool")]
        here = [np.intersect1d(keys, part) for part in parts]
        return np.sort(np.concatenate(here)) if here else keys[:0]

    # -- evaluate -----------------------------------------------------------------------------

    def _evaluate(self, round: int, committee: Committee, truth: Truth | None) -> None:
        if self.ledger.stage(self.name, round, "evaluate") is not None:
            return
        started = time.perf_counter()
        known = truth or self._ledger_truth()
        parts = () if known is None else self.inputs.pool.parts_of("test")
        job = Evaluation(self.inputs.pool, committee, self.options)
        made = dict(self._map("evaluate", job, parts, parts))
        predictions, targets = [], []
        for part in parts:
            ids = self.pool.read(part).column("id").to_pylist()
            predictions.append(made[part.part])
            targets.append(self.task.targets(list(known(ids)) if known else []))
        failpoint("evaluate")
        metrics: Mapping[str, float] = {}
        if targets:
            metrics = self.task.metrics(torch.cat(predictions), torch.cat(targets))
        items = sum(part.rows for part in parts)
        self.finish(round, "evaluate", {"metrics": dict(metrics), "items": items}, started)

    def _map(
        self, stage: str, job: PartJob[Any], parts: Sequence[Part], every: Sequence[Part]
    ) -> Iterator[Any]:
        """Let the executor work on parts, those of ``every`` that are not done yet."""
        total = sum(part.rows for part in every)
        done = total - sum(part.rows for part in parts)

        def tick(rows: int) -> None:
            nonlocal done
            done += rows
            self._report(stage, done, total)

        return self.executor.map_parts(job, parts, threads=self.spec.threads_per_model, report=tick)

    def _ledger_truth(self) -> Truth | None:
        """Return the ledger's labels of the test items, if it has all of them."""
        resolved = self.ledger.resolved(self.name)
        for part in self.pool.parts_of("test"):
            ids = self.pool.read(part).column("id").to_pylist()
            if any(i not in resolved for i in ids):
                return None
        return lambda ids: [resolved[i] for i in ids]

    # -- scan ---------------------------------------------------------------------------------

    def _scan(self, round: int, committee: Committee) -> tuple[Scan, list[Path]]:
        """Compute and commit the columns of every part; return where they lie."""
        pool, spec = self.inputs.pool, self.spec
        given = (spec.strategy, spec.learner, self.options, spec.selection.precision)
        scan = Scan(pool, committee, *given)
        parts = pool.parts_of("pool")
        if not scan.signals:  # nothing is asked of the model: the pool's own keys suffice
            self._stage_once(round, "scan", {"columns": None, "rows": 0})
            return scan, [present(self.root / part.file) for part in parts]
        hash, started = scan.columns_hash(), time.perf_counter()
        done = self.ledger.columns(hash)
        missing = [part for part in parts if part.part not in done]
        results = list(self.commit_parts(round, "scan", scan, missing=missing, parts=parts))
        if self.ledger.stage(self.name, round, "scan") is None:
            before = [self.root / done[p.part].file for p in parts if p.part in done]
            new = [(result.low, result.high) for result in results]
            scores = spread([*map(written_range, before), *new])
            rows = sum(part.rows for part in parts)
            answers = digest(self.task.labels.to_json())  # what the columns' classes are
            output = {"columns": hash, "rows": rows, "labels": answers, **scores}
            self.finish(round, "scan", output, started)
        committed = self.ledger.columns(hash)
        return scan, [self.root / committed[part.part].file for part in parts]

    def commit_parts(
        self,
        round: int,
        stage: str,
        job: Scan | Embed,
        *,
        missing: Sequence[Part],
        parts: Sequence[Part],
    ) -> Iterator[ScannedPart]:
        """Let the executor work on missing parts, commit each as it is done, and yield it."""
        hash, of = job.columns_hash(), {part.part: part for part in missing}
        for result in self._map(stage, job, missing, parts):
            reconcile(of.pop(result.part), result)
            failpoint(f"{stage}.commit")
            row = ColumnsPart(hash, result.part, result.file, result.rows, result.key_sum)
            self.commit_columns(round, row)
            yield result
        if of:
            raise StorageError(f"the {stage} gave nothing for parts {sorted(of)}; run it again")

    def commit_columns(self, round: int, row: ColumnsPart) -> None:
        """Commit a file of columns; where another process was quicker, its file stands alone."""
        if self.ledger.commit_columns(self.name, round, row) != row.file:
            (self.root / row.file).unlink(missing_ok=True)

    def _stage_once(self, round: int, stage: str, output: Mapping[str, Any]) -> None:
        if self.ledger.stage(self.name, round, stage) is None:
            self.ledger.finish_stage(self.name, round, stage, output, seconds=0.0)

    # -- select -------------------------------------------------------------------------------

    def _choose_initial(self, chosen: Sequence[str] | None, ready: int) -> None:
        """Choose the first items by a strategy that needs no model, or take the given ones."""
        started = time.perf_counter()
        initial = self.spec.initial
        strategy: Strategy = strategies[initial.strategy]()
        provenance = {"initial": stated(initial), "seed": self.spec.query_seed(INITIAL)}
        provenance |= {"ready": ready} if ready else {}
        if chosen is not None:
            keys = id_keys(chosen)
            picks = [
                Pick(i, int(k), rank, None, None)
                for rank, (i, k) in enumerate(zip(chosen, keys, strict=True), start=1)
            ]
            self._commit_selection(INITIAL, picks, [], {**provenance, "given": True}, started)
            return
        paths = [present(self.root / part.file) for part in self.pool.parts_of("pool")]
        result, n, _ = self._greedy(INITIAL, strategy, paths, initial.count + ready)
        picks, others = self._named(result, len(result.keys) / n if n else None)
        self._commit_selection(INITIAL, picks, others, {**provenance, "candidates": n}, started)

    def _select(self, round: int, scan: Scan, paths: Sequence[Path]) -> None:
        """Choose the round's batch and offer it."""
        if self.ledger.selection(self.name, round) is not None:
            return
        started = time.perf_counter()
        self._report("select", 0, self.spec.batch)
        strategy = self.spec.strategy
        context = {}
        if strategy.context:
            context = rows_by_key(paths, strategy.context, self.excluded(*HELD))
        recalled = recall(self, round, scan.committee)
        known = {"context": context, "memory": recalled.memory}
        result, n, approximation = self._greedy(round, strategy, paths, self.spec.batch, **known)
        chance = len(result.keys) / n if n and not strategy.signals() else None
        picks, others = self._named(result, chance)
        failpoint("select")
        found: dict[str, Any] = {"candidates": n, "approximation": approximation}
        found |= {"drawn": dict(result.drawn)} if result.drawn else {}
        found |= attached_to(self, round, scan.committee, picks)
        found |= keep_memory(self, round, scan.committee, picks, recalled, result.notes)
        provenance = provenance_of(self.spec, round, scan, self.pool.snapshot) | found
        self._commit_selection(round, picks, others, provenance, started)

    def _greedy(
        self,
        round: int,
        strategy: Strategy,
        paths: Sequence[Path],
        k: int,
        **known: Mapping[str, Any],
    ) -> tuple[Chosen, int, dict[str, Any] | None]:
        excluded, seed = self.excluded(), self.spec.query_seed(round)
        n = sum(part.rows for part in self.pool.parts_of("pool")) - len(excluded)
        labels = self.ledger.resolved(self.name)
        ctx = Ctx(round=round, k=k, seed=seed, n_candidates=n, labels=labels, **known)
        request = Request(
            self.executor,
            paths,
            excluded,
            n,
            min(k, n),
            seed,
            shards=self.spec.shards,
            threads=self.spec.threads_per_model,
            context=known.get("context"),
            device=self.spec.selection.device,
        )
        chosen, approximation = choose_items(
            request,
            strategy.objective(ctx),
            runners_up=RUNNERS_UP,
            report=lambda done, total: self._report("select", done, total),
        )
        return chosen, n, approximation

    def _named(self, chosen: Chosen, probability: float | None) -> tuple[list[Pick], list[Pick]]:
        """Return picks and runners-up with ids, ranks from 1, and scores where they are finite."""

        def rows(keys: Keys, scores: Sequence[float], first: int) -> list[Pick]:
            ids = ids_of(self.pool, keys)
            return [
                Pick(i, int(k), first + r, s if math.isfinite(s) else None, probability)
                for r, (i, k, s) in enumerate(zip(ids, keys, scores, strict=True))
            ]

        picks = rows(chosen.keys, chosen.scores.tolist(), 1)
        rest: Proposal = chosen.runners_up
        others = rows(rest.keys, rest.priority[:, 0].tolist(), len(picks) + 1)
        return picks, others

    def _commit_selection(
        self,
        round: int,
        picks: Sequence[Pick],
        others: Sequence[Pick],
        provenance: Mapping[str, Any],
        started: float,
    ) -> None:
        self.ledger.commit_selection(
            self.name,
            round,
            picks,
            others,
            provenance,
            stage=None if round == INITIAL else "select",
            output=output_of(round, picks, provenance),
            seconds=time.perf_counter() - started,
        )
