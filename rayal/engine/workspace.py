"""The workspace of a project: everything that the stages of its rounds work with, as one value."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rayal.engine.executor import LOCAL, Executor, PartJob
from rayal.engine.spec import ProjectSpec, ScanOptions
from rayal.engine.tasks import task_of
from rayal.ledger import Ledger, RoundRow, StageRow
from rayal.ledger.items import STATES
from rayal.pool.reader import Part, Pool
from rayal.tasks import Task
from rayal.types import TILE_ROWS, Keys, id_keys

Report = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Inputs:
    """Rows that networks are trained and run on.

    Args:
        pool: the snapshot's items, or their embeddings in parts of the same names and rows.
        task: how its rows are decoded.
    """

    pool: Pool
    task: Task


@dataclass(frozen=True)
class Workspace:
    """A project on one snapshot of its pool, and the means by which its stages work.

    Stages take a workspace and record what they have done in its ledger. None of them changes it:
    where the pool has grown, or embeddings take the place of its rows, they return another one.

    Args:
        ledger: the storage root's ledger.
        name: the project's name in it.
        spec: what the project's rounds do.
        pool: the snapshot of the pool.
        task: of the pool's rows.
        inputs: the rows that networks see, and how they are decoded.
        executor: where the work runs.
        report: called with (stage, done, total) while work goes on.
    """

    ledger: Ledger
    name: str
    spec: ProjectSpec
    pool: Pool
    task: Task
    inputs: Inputs
    executor: Executor = LOCAL
    report: Report = silent

    @classmethod
    def open(
        cls,
        ledger: Ledger,
        name: str,
        *,
        spec: ProjectSpec | None = None,
        executor: Executor = LOCAL,
        report: Report = silent,
    ) -> Workspace:
        """Return the workspace of a project on the latest snapshot of its pool.

        Args:
            ledger: the storage root's ledger.
            name: the project's name in it.
            spec: what its rounds do; by default what the ledger says.
            executor: where the work runs.
            report: called with (stage, done, total) while work goes on.
        """
        row = ledger.project(name)
        spec = spec or ProjectSpec.from_json(row.settings)
        pool = Pool.open(Path(ledger.root), row.pool)
        task = task_of(pool, spec.task)
        return cls(ledger, name, spec, pool, task, Inputs(pool, task), executor, report)

    @property
    def root(self) -> Path:
        """The storage root."""
        return Path(self.ledger.root)

    @property
    def options(self) -> ScanOptions:
        """Options of a pass over the inputs; heads go over cached embeddings tile by tile."""
        tiles = self.spec.backbone is not None
        return replace(self.spec.scan, batch=TILE_ROWS) if tiles else self.spec.scan

    def at(self, snapshot: int | None = None) -> Workspace:
        """Return the same project on a snapshot of its pool, the latest by default."""
        pool = Pool.open(self.root, self.pool.name, snapshot)
        if pool.snapshot == self.pool.snapshot:
            return self
        task = task_of(pool, self.spec.task)
        return replace(self, pool=pool, task=task, inputs=Inputs(pool, task))

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

    # -- the record of its rounds ---------------------------------------------------------------

    def begun(self, round: int) -> RoundRow:
        """Return the record of a round that was begun."""
        return self.ledger.rounds(self.name)[round]

    def stage(self, round: int, stage: str) -> StageRow | None:
        """Return the record of a finished stage; None before it is."""
        return self.ledger.stage(self.name, round, stage)

    def finish(
        self, round: int, stage: str, output: Mapping[str, Any], *, started: float | None = None
    ) -> None:
        """Record that a stage is done.

        Args:
            round: the round.
            stage: its stage.
            output: what it gave.
            started: ``time.perf_counter()`` at its start; None for a stage that takes no time.
        """
        seconds = 0.0 if started is None else time.perf_counter() - started
        self.ledger.finish_stage(self.name, round, stage, output, seconds=seconds)

    def finish_once(self, round: int, stage: str, output: Mapping[str, Any]) -> None:
        """Record that a stage which takes no time is done, unless it is recorded already."""
        if self.stage(round, stage) is None:
            self.finish(round, stage, output)

    # -- work on parts ----------------------------------------------------------------------------

    def map_parts(
        self, stage: str, job: PartJob[Any], parts: Sequence[Part], every: Sequence[Part]
    ) -> Iterator[Any]:
        """Let the executor work on parts, those of ``every`` that are not done yet."""
        total = sum(part.rows for part in every)
        done = total - sum(part.rows for part in parts)

        def tick(rows: int) -> None:
            nonlocal done
            done += rows
            self.report(stage, done, total)

        return self.executor.map_parts(job, parts, threads=self.spec.threads_per_model, report=tick)
