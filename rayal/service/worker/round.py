"""A project's round, as the service does it: its model becomes a version, with suggestions."""

from __future__ import annotations

from typing import Any

from rayal.engine.driver import Project
from rayal.engine.embed import Inputs
from rayal.engine.executor import RayOptions
from rayal.engine.spec import ProjectSpec
from rayal.engine.trainset import task_of
from rayal.engine.versions import answers, describe
from rayal.errors import NeedsError
from rayal.ledger import Ledger
from rayal.ledger.models import version_name
from rayal.ledger.selections import INITIAL
from rayal.models.committee import Committee
from rayal.ray_executor.open import open_executor
from rayal.service.predictor import said
from rayal.service.settings import ServiceOptions
from rayal.service.worker.options import Tell, WorkOptions

_BLOCK = 1024  # items whose suggestions are computed at once


class ServedProject(Project):
    """A project whose rounds are jobs.

    Settings may change between rounds and while one is at work: a round that was begun is ended
    with those that it was begun with.

    Args:
        ledger: the storage root's ledger.
        name: the project's name.
        tell: told round, stage, and how far.
    """

    def __init__(self, ledger: Ledger, name: str, tell: Tell) -> None:
        super().__init__(ledger, name, report=self._progress)
        self._tell = tell
        self._stage = ""
        self._round = INITIAL
        self._trained: tuple[int, Committee] | None = None
        self.service = ServiceOptions.of(ledger.project(name))

    @property
    def chosen(self) -> bool:
        """Whether the first items are chosen."""
        return self.ledger.selection(self.name, INITIAL) is not None

    def choose_first(self) -> int:
        """Choose and offer the first items and the ready ones, and return how many."""
        self.prepare(ready=self.service.ready)
        chosen = self.ledger.selection(self.name, INITIAL)
        return len(chosen.picks) if chosen else 0

    def work(self, options: WorkOptions) -> dict[str, Any]:
        """Do one round, or end the one that was stopped, and commit its model.

        Raises:
            NeedsError: the project has a frozen backbone.
        """
        if self.spec.backbone is not None:
            raise NeedsError(
                f"project {self.name!r} has a frozen backbone, whose models are no versions yet; "
                "run its rounds by `rayal run`"
            )
        round = self._uncommitted()
        if round is None:
            self._take_settings()
            with open_executor(
                options.executor,
                RayOptions(address=options.address or "local"),
                threads=self.spec.threads_per_model,
                members=self.spec.committee_size,
                shared=self.root,
            ) as self.executor:
                round = self.train().round
        return self._commit(round)

    def committee(self, round: int) -> Committee:
        """Return a begun round's committee, and remember it for its suggestions."""
        made = super().committee(round)
        self._trained = (round, made)
        return made

    def _uncommitted(self) -> int | None:
        """Return the last round if its stages are done but its model is no version yet."""
        rounds = self.ledger.rounds(self.name)
        if not rounds:
            return None
        last = rounds[-1].round
        ended = self.ledger.stage(self.name, last, "select") is not None or self.finished
        known = {row.round for row in self.ledger.models(self.name)}
        return last if ended and last not in known else None

    def _take_settings(self) -> None:
        """Go on with the settings that an unfinished round was begun with."""
        rounds = self.ledger.rounds(self.name)
        stage = self.ledger.stage(self.name, rounds[-1].round, "prepare") if rounds else None
        if stage is not None and self.ledger.stage(self.name, stage.round, "select") is None:
            self.spec = ProjectSpec.from_json(stage.output.get("settings", self.spec.to_json()))
            self.task = task_of(self.pool, self.spec.task)
            self.inputs = Inputs(self.pool, self.task)
        self.noted = {"settings": self.spec.to_json()}

    def _commit(self, round: int) -> dict[str, Any]:
        """Make the round's model a version, with what it says of the open items."""
        if self._trained is None or self._trained[0] != round:
            self.committee(round)
        assert self._trained is not None
        model, info = describe(self, round)
        version = version_name(round, model)
        told = self._suggestions(self._trained[1])
        with self.ledger.transaction():
            self.ledger.commit_model(self.name, version, round, model, info)
            self.ledger.commit_suggestions(self.name, version, told)
        chosen = self.ledger.selection(self.name, round)
        offered = len(chosen.picks) if chosen else 0
        kept = {name: info[name] for name in ("labels", "metrics")}
        return {"round": round, "model": version, "offered": offered, **kept}

    def _suggestions(self, committee: Committee) -> list[tuple[str, Any, Any]]:
        items = self.ledger.open_items(self.name)
        told: list[tuple[str, Any, Any]] = []
        self._reopen(None)  # an item may have come after the round's snapshot
        for start in range(0, len(items), _BLOCK):
            some = items[start : start + _BLOCK]
            rows = self.pool.take(some)
            made = answers(committee, rows, self.spec.scan, self.spec.threads_per_model)
            for item, answer in zip(some, made, strict=True):
                label, probs, mean, variance = said(committee.task.labels, answer)
                moments = {"mean": mean, "variance": variance}
                told.append((item, label, moments if probs is None else list(probs)))
            self._progress("suggest", start + len(some), len(items))
        return told

    def _progress(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            self._round = len(self.ledger.rounds(self.name)) - 1
        self._tell({"round": self._round, "stage": stage, "done": done, "total": total})
