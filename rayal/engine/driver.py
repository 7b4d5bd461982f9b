"""A project: one pool, one strategy, and rounds: prepare, train, evaluate, scan, select, label."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from rayal.engine.embed import Inputs, embedded
from rayal.engine.executor import LOCAL, Executor
from rayal.engine.rounds import Report, Stages, Truth
from rayal.engine.spec import ProjectSpec
from rayal.engine.summary import RoundSummary as RoundSummary
from rayal.engine.train import train_committee
from rayal.engine.trainset import Training, check_spec, task_of
from rayal.errors import LabelError, UnknownNameError
from rayal.labels import Label
from rayal.ledger import LabelEntry, LabelResult, Lease, Ledger, RoundRow
from rayal.ledger.selections import INITIAL
from rayal.models.committee import Committee
from rayal.pool.files import drop_files
from rayal.pool.reader import Pool
from rayal.selection.threads import torch_threads


class Project(Stages):
    """One pool, one task, one strategy, and the ledger of its rounds.

    Args:
        ledger: the storage root's ledger.
        name: the project's name in it.
        report: called with (stage, done, total) while work goes on.
        executor: where the work runs; by default in this process.
    """

    def __init__(
        self,
        ledger: Ledger,
        name: str,
        *,
        report: Report | None = None,
        executor: Executor = LOCAL,
    ) -> None:
        row = ledger.project(name)
        self.ledger, self.name = ledger, name
        self.root = Path(ledger.root)
        self.spec = ProjectSpec.from_json(row.settings)
        self.pool = Pool.open(self.root, row.pool)
        self.task = task_of(self.pool, self.spec.task)
        self.inputs = Inputs(self.pool, self.task)
        self.executor = executor
        self.noted: Mapping[str, Any] = {}  # what the prepare stage tells besides
        self._report = report or (lambda stage, done, total: None)

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
        self._reopen(None)
        ids = list(labels)
        unknown = [i for i, there in zip(ids, self.pool.contains(ids), strict=True) if not there]
        if unknown:
            raise UnknownNameError(
                f"{len(unknown)} of {len(ids)} items are not in pool {self.pool.name!r}, the "
                f"first is {unknown[0]!r}; labels name items by the id they were ingested with"
            )
        held = leases or {}
        entries = [LabelEntry(i, self.task.labels.check(labels[i], i), held.get(i)) for i in ids]
        return self.ledger.label(self.name, annotator, entries)

    # -- rounds ---------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether the last round has been evaluated, or nothing is left to choose."""
        last = self.spec.rounds
        rounds = self.ledger.rounds(self.name)
        done = self.ledger.stage(self.name, rounds[-1].round, "select") if rounds else None
        if done is not None and done.output["picks"] == 0 and not self._grown(rounds[-1]):
            return True
        return last is not None and self.ledger.stage(self.name, last, "evaluate") is not None

    @property
    def waiting(self) -> bool:
        """Whether offered items still want labels."""
        return bool(self.ledger.open_items(self.name))

    def prepare(self, chosen: Sequence[str] | None = None, *, ready: int = 0) -> None:
        """Choose and offer the first items, once.

        Args:
            chosen: their ids where somebody else chose them; by default the initial strategy.
            ready: items offered beyond ``initial.count``, so that annotators have work while the
                first round trains.
        """
        if self.ledger.selection(self.name, INITIAL) is None:
            self._choose_initial(chosen, ready)

    def train(self, truth: Truth | None = None) -> RoundSummary:
        """Run the present round up to offering its picks; the last one ends after evaluation.

        Args:
            truth: labels of test items by id; by default those in the ledger, if all are there.

        Raises:
            LabelError: nothing is labeled yet, or no label is new.
        """
        round = self._present_round()
        with torch_threads(self.spec.threads_per_model):
            committee = self.committee(round)
            self._evaluate(round, committee, truth)
            if self.spec.rounds is None or round < self.spec.rounds:
                scan, paths = self._scan(round, committee)
                self._select(round, scan, paths)
        drop_files(self.ledger, self.name, keep=self.spec.keep)
        return self.rounds()[-1]

    def rounds(self) -> list[RoundSummary]:
        """Return what each round did so far."""
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

    def _present_round(self) -> int:
        """Return the last round begun, until it has offered; then begin the next one."""
        begun = self.ledger.rounds(self.name)
        if begun and (self.finished or self._unfinished(begun[-1].round)):
            return begun[-1].round
        self._reopen(None)  # a pool that has grown enters with a new round
        seq = self.ledger.labels_seq(self.name)
        if not len(self.excluded("labeled")):
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

    def _grown(self, begun: RoundRow) -> bool:
        """Whether items have come to the pool since a round was begun."""
        return self.ledger.snapshot(self.pool.name).number > begun.snapshot

    def _reopen(self, snapshot: int | None) -> None:
        """Work on a snapshot of the pool, the latest by default."""
        pool = Pool.open(self.root, self.pool.name, snapshot)
        if pool.snapshot != self.pool.snapshot:
            self.pool, self.task = pool, task_of(pool, self.spec.task)
            self.inputs = Inputs(self.pool, self.task)

    def _unfinished(self, round: int) -> bool:
        return self.ledger.stage(self.name, round, "select") is None

    def _close(self, round: int) -> None:
        """Finish a round's label stage with what came in."""
        selection = self.ledger.selection(self.name, round)
        states = self.ledger.states(self.name)
        picks = selection.picks if selection else ()
        labeled = sum(states.get(p.item) == "labeled" for p in picks)
        self._stage_once(round, "label", {"labeled": labeled, "picks": len(picks)})

    def committee(self, round: int) -> Committee:
        """Return a begun round's committee: loaded as far as it is committed, else trained."""
        begun = self.ledger.rounds(self.name)[round]
        self._reopen(begun.snapshot)
        labels = self.ledger.resolved(self.name, begun.labels_seq)
        if self.spec.backbone is not None:
            self.inputs = embedded(self, round)
        training = Training.of(self, labels, round)
        self._stage_once(round, "prepare", {**training.noted, **self.noted})
        weights = training.weights()
        started = time.perf_counter()
        done = self.ledger.stage(self.name, round, "train")
        committee = train_committee(
            **training.arguments(),
            columns=training.columns() if done is None else None,
            weights=weights,
            threads_per_model=self.spec.threads_per_model,
            progress=self._report,
            train=self.executor.train_members,
            quorum=self.spec.quorum,
            used=None if done is None else done.output.get("used"),
        )
        if done is None:
            output = {"model": training.hash, "members": self.spec.committee_size}
            if committee.members != tuple(range(self.spec.committee_size)):
                output["used"] = list(committee.members)  # the others were lost
            self.finish(round, "train", output, started)
        return committee
