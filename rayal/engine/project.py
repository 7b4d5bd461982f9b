"""A project: one pool, one strategy, and rounds: prepare, train, evaluate, scan, select, label."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from rayal.engine.checks import check_spec
from rayal.engine.embed import embedded
from rayal.engine.evaluate import Truth, evaluate
from rayal.engine.executor import LOCAL, Executor
from rayal.engine.scan import scan_pool
from rayal.engine.select import choose_initial, select
from rayal.engine.spec import ProjectSpec
from rayal.engine.train import train_committee
from rayal.engine.trainset import Training
from rayal.engine.workspace import Inputs, Report, Workspace, silent
from rayal.errors import LabelError, UnknownNameError
from rayal.labels import Label
from rayal.ledger import LabelEntry, LabelResult, Lease, Ledger, RoundRow
from rayal.ledger.selections import INITIAL
from rayal.models.committee import Committee
from rayal.pool.files import drop_files
from rayal.pool.reader import Pool
from rayal.selection.threads import torch_threads
from rayal.tasks import Task


@dataclass(frozen=True)
class RoundSummary:
    """The work of a round so far.

    Attributes:
        round: 0, 1, ….
        labels: labels that its model was trained on.
        metrics: on the test items; empty until they are evaluated, or without test labels.
        seconds: finished stage to wall seconds.
        outputs: finished stage to its output.
    """

    round: int
    labels: int
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    outputs: Mapping[str, Mapping[str, Any]]


class Project:
    """One pool, one task, one strategy, and the ledger of its rounds.

    Args:
        ledger: the storage root's ledger.
        name: the project's name in it.
        report: called with (stage, done, total) while work goes on.
        executor: where the work runs; by default in this process.
        spec: what its rounds do; by default what the ledger says.
        record: extra fields of the prepare stage's record.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        *,
        report: Report | None = None,
        executor: Executor = LOCAL,
        spec: ProjectSpec | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        means: Any = {"executor": executor, "report": report or silent, "spec": spec}
        self._workspace = Workspace.open(ledger, name, **means)
        self._record = dict(record or {})

    @classmethod
    def create(
        cls,
        ledger: Ledger,
        name: str,
        pool: Pool,
        spec: ProjectSpec,
        *,
        report: Report | None = None,
        executor: Executor = LOCAL,
    ) -> Project:
        """Enter a project in the ledger, or open it when it is there with the same settings.

        Args:
            ledger: the storage root's ledger.
            name: the project's name.
            pool: an ingested pool of the same root.
            spec: what the project's rounds do.
            report: called with (stage, done, total) while work goes on.
            executor: where the work runs.

        Raises:
            BudgetError: the rounds would label more items than the pool has.
            NeedsError: the strategy asks for what network and learner do not give.
            SettingsError: a project of that name has other settings.
        """
        check_spec(pool, spec)
        ledger.create_project(name, pool.name, spec.to_json())
        return cls(ledger, name, report=report, executor=executor)

    @classmethod
    def open(
        cls,
        root: str | Path,
        name: str,
        *,
        report: Report | None = None,
        executor: Executor = LOCAL,
    ) -> Project:
        """Open a project of a storage root; ``rayal.connect`` gives an executor on Ray."""
        return cls(Ledger(root, create=False), name, report=report, executor=executor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.ledger.close()

    @property
    def workspace(self) -> Workspace:
        """The project on the snapshot of the pool that its last call worked on."""
        return self._workspace

    @property
    def ledger(self) -> Ledger:
        """The storage root's ledger."""
        return self._workspace.ledger

    @property
    def name(self) -> str:
        """The project's name."""
        return self._workspace.name

    @property
    def root(self) -> Path:
        """The storage root."""
        return self._workspace.root

    @property
    def spec(self) -> ProjectSpec:
        """Settings of its rounds."""
        return self._workspace.spec

    @property
    def pool(self) -> Pool:
        """The snapshot of its pool."""
        return self._workspace.pool

    @property
    def task(self) -> Task:
        """The task of the pool's rows."""
        return self._workspace.task

    @property
    def inputs(self) -> Inputs:
        """The rows that networks see: the pool's, or their embeddings."""
        return self._workspace.inputs

    def work_on(self, executor: Executor) -> None:
        """Let the rounds to come work on another executor."""
        self._workspace = replace(self._workspace, executor=executor)

    # -- what an annotator sees ---------------------------------------------------------------

    def ask(self, count: int, *, annotator: str = "me", ttl: float | None = None) -> list[Lease]:
        """Lease the next offered items; where none is offered, choose a batch first.

        Args:
            count: most items to lease.
            annotator: who holds them; open leases of the same annotator come back first.
            ttl: seconds until a lease expires; by default what the project's settings say.
        """
        if not self.waiting:
            if self.ledger.selection(self.name, INITIAL) is None:
                self.prepare()
            else:
                self.train()
        return self.lease(count, annotator=annotator, ttl=ttl)

    def lease(self, count: int, *, annotator: str = "me", ttl: float | None = None) -> list[Lease]:
        """Lease the next offered items, and choose nothing."""
        return self.ledger.lease(self.name, annotator, count, ttl=ttl)

    def tell(
        self,
        labels: Mapping[str, Label],
        *,
        annotator: str = "me",
        leases: Mapping[str, str] | None = None,
    ) -> list[LabelResult]:
        """Record labels by item id; all are checked before one is written.

        Args:
            labels: item id to label.
            annotator: who says so.
            leases: item id to the lease under which it was labeled.

        Raises:
            LabelError: a label does not fit the task.
            UnknownNameError: an item is not in the pool.
        """
        self._workspace = self._workspace.at()
        ids = list(labels)
        unknown = [i for i, there in zip(ids, self.pool.contains(ids), strict=True) if not there]
        if unknown:
            raise UnknownNameError(
                f"{len(unknown)} of {len(ids)} items are not in pool {self.pool.name!r}, the "
                f"first is {unknown[0]!r}; labels name items by the id they were ingested with"
            )
        lease_of = leases or {}
        entries = [
            LabelEntry(i, self.task.labels.check(labels[i], i), lease_of.get(i)) for i in ids
        ]
        return self.ledger.label(self.name, annotator, entries)

    # -- rounds ---------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """True once the last round is evaluated, or nothing is left to choose."""
        last, rounds = self.spec.rounds, self.ledger.rounds(self.name)
        done = self._workspace.stage(rounds[-1].round, "select") if rounds else None
        if done is not None and done.output["picks"] == 0 and not self._grown(rounds[-1]):
            return True
        return last is not None and self._workspace.stage(last, "evaluate") is not None

    @property
    def waiting(self) -> bool:
        """True while offered items want labels."""
        return bool(self.ledger.open_items(self.name))

    def prepare(self, chosen: Sequence[str] | None = None, *, ready: int = 0) -> None:
        """Choose and offer the first items, once.

        Args:
            chosen: their ids where somebody else chose them; by default the initial strategy.
            ready: items offered beyond ``initial.count``, so that annotators have work while the
                first round trains.
        """
        choose_initial(self._workspace, chosen, ready=ready)

    def train(self, truth: Truth | None = None) -> RoundSummary:
        """Run the present round up to offering its picks; the last one ends after evaluation.

        Args:
            truth: labels of test items by id; by default those in the ledger, if all are there.

        Raises:
            LabelError: nothing is labeled yet, or no label is new.
        """
        round = self.begin()
        self.complete(round, self.committee(round), truth)
        return self.rounds()[-1]

    def begin(self) -> int:
        """Return the last round begun, until it has offered; then begin the next one.

        Raises:
            LabelError: nothing is labeled yet, or no label is new.
        """
        begun = self.ledger.rounds(self.name)
        if begun and (self.finished or self._unfinished(begun[-1].round)):
            return begun[-1].round
        self._workspace = self._workspace.at()  # a pool that has grown enters with a new round
        seq = self.ledger.labels_seq(self.name)
        if not len(self._workspace.excluded("labeled")):
            raise LabelError(f"project {self.name!r} has no labels yet; ask, label, then train")
        if begun and seq == begun[-1].labels_seq and not self._grown(begun[-1]):
            raise LabelError(
                f"project {self.name!r} has no new labels since round {begun[-1].round}; label "
                "some of the offered items first"
            )
        if begun:
            self._close(begun[-1].round)
        number = len(begun)
        seeds = {"query": self.spec.query_seed(number), "model": self.spec.seeds.model}
        self.ledger.begin_round(
            self.name, number, snapshot=self.pool.snapshot, labels_seq=seq, seeds=seeds
        )
        return number

    def committee(self, round: int) -> Committee:
        """Return a begun round's committee: loaded as far as it is committed, else trained."""
        with torch_threads(self.spec.threads_per_model):
            begun = self._workspace.begun(round)
            self._workspace = self._workspace.at(begun.snapshot)
            if self.spec.backbone is not None:
                self._workspace = embedded(self._workspace, round)
            labels = self.ledger.resolved(self.name, begun.labels_seq)
            training = Training.of(self._workspace, labels, round)
            self._workspace.finish_once(round, "prepare", {**training.record, **self._record})
            return self._trained(round, training)

    def complete(self, round: int, committee: Committee, truth: Truth | None = None) -> None:
        """Evaluate a round's committee, scan the pool with it and offer its picks.

        Args:
            round: the round.
            committee: that was trained for it.
            truth: labels of test items by id; by default those in the ledger, if all are there.
        """
        with torch_threads(self.spec.threads_per_model):
            evaluate(self._workspace, round, committee, truth)
            if self.spec.rounds is None or round < self.spec.rounds:
                select(self._workspace, round, *scan_pool(self._workspace, round, committee))
        drop_files(self.ledger, self.name, keep=self.spec.keep)

    def rounds(self) -> list[RoundSummary]:
        """Return the summary of each round so far."""
        stages = self.ledger.stages(self.name)
        summaries = []
        for row in self.ledger.rounds(self.name):
            of = {s.stage: s for s in stages if s.round == row.round}
            outputs = {name: s.output for name, s in of.items()}
            summaries.append(
                RoundSummary(
                    row.round,
                    int(outputs.get("prepare", {}).get("labels", 0)),
                    outputs.get("evaluate", {}).get("metrics", {}),
                    {name: s.seconds for name, s in of.items()},
                    outputs,
                )
            )
        return summaries

    def _trained(self, round: int, training: Training) -> Committee:
        """Train or load the committee of a training set, and record that it is there."""
        workspace = self._workspace
        weights = training.weights()
        started = time.perf_counter()
        done = workspace.stage(round, "train")
        committee = train_committee(
            training.request,
            training.data,
            training.store,
            columns=training.columns() if done is None else None,
            weights=weights,
            progress=workspace.report,
            train=workspace.executor.train_members,
            quorum=self.spec.quorum,
            used=None if done is None else done.output.get("used"),
        )
        if done is None:
            members = training.request.members
            output = {"model": training.request.hash, "members": members}
            if committee.members != tuple(range(members)):
                output["used"] = list(committee.members)  # the others were lost
            workspace.finish(round, "train", output, started=started)
        return committee

    def _grown(self, begun: RoundRow) -> bool:
        """Return whether items have come to the pool since a round was begun."""
        return self.ledger.snapshot(self.pool.name).number > begun.snapshot

    def _unfinished(self, round: int) -> bool:
        return self._workspace.stage(round, "select") is None

    def _close(self, round: int) -> None:
        """Finish a round's label stage with what came in."""
        selection = self.ledger.selection(self.name, round)
        states = self.ledger.states(self.name)
        picks = selection.picks if selection else ()
        labeled = sum(states.get(p.item) == "labeled" for p in picks)
        self._workspace.finish_once(round, "label", {"labeled": labeled, "picks": len(picks)})
