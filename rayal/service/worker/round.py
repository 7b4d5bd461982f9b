"""A round as the service does it: its model becomes a version, with suggestions."""

from __future__ import annotations

from typing import Any

from rayal.engine.executor import RayOptions
from rayal.engine.project import Project
from rayal.engine.spec import ProjectSpec
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


class ServedRounds:
    """The rounds of a project as jobs.

    Settings may change between rounds and while one is at work: a round that was begun is ended
    with those that it was begun with.

    Args:
        ledger: the storage root's ledger.
        name: the project's name.
        tell: told round, stage, and how far.
    """

    def __init__(self, ledger: Ledger, name: str, tell: Tell) -> None:
        self.project = Project(ledger, name, report=self._progress)
        self._ledger, self._name, self._tell = ledger, name, tell
        self._stage, self._round = "", INITIAL

    @property
    def chosen(self) -> bool:
        """True once the first items are chosen."""
        return self._ledger.selection(self._name, INITIAL) is not None

    def choose_first(self) -> int:
        """Choose and offer the first items and the ready ones, and return how many."""
        self.project.prepare(ready=ServiceOptions.of(self._ledger.project(self._name)).ready)
        chosen = self._ledger.selection(self._name, INITIAL)
        return len(chosen.picks) if chosen else 0

    def work(self, options: WorkOptions) -> dict[str, Any]:
        """Do one round, or end the one that was stopped, and commit its model.

        Raises:
            NeedsError: the project has a frozen backbone.
        """
        if self.project.spec.backbone is not None:
            raise NeedsError(
                f"project {self._name!r} has a frozen backbone, whose models are no versions yet; "
                "run its rounds by `rayal run`"
            )
        round = self._uncommitted()
        if round is not None:
            return self._commit(self.project, round, self.project.committee(round))
        spec = self._begun_spec() or self.project.spec
        with open_executor(
            options.executor,
            RayOptions(address=options.address or "local"),
            threads=spec.threads_per_model,
            members=spec.committee_size,
            shared=self.project.root,
        ) as executor:
            project = Project(
                self._ledger,
                self._name,
                report=self._progress,
                executor=executor,
                spec=spec,
                record={"settings": spec.to_json()},
            )
            round = project.begin()
            committee = project.committee(round)
            project.complete(round, committee)
        return self._commit(project, round, committee)

    def _uncommitted(self) -> int | None:
        """Return the last round if its stages are done but its model is no version yet."""
        rounds = self._ledger.rounds(self._name)
        if not rounds:
            return None
        last = rounds[-1].round
        selected = self._ledger.stage(self._name, last, "select") is not None
        known = {row.round for row in self._ledger.models(self._name)}
        return last if (selected or self.project.finished) and last not in known else None

    def _begun_spec(self) -> ProjectSpec | None:
        """Return the settings that an unfinished round was begun with; None without one."""
        rounds = self._ledger.rounds(self._name)
        stage = self._ledger.stage(self._name, rounds[-1].round, "prepare") if rounds else None
        if stage is None or self._ledger.stage(self._name, stage.round, "select") is not None:
            return None
        settings = stage.output.get("settings")
        return None if settings is None else ProjectSpec.from_json(settings)

    def _commit(self, project: Project, round: int, committee: Committee) -> dict[str, Any]:
        """Make the round's model a version, with what it says of the open items."""
        model, info = describe(project.workspace, round)
        version = version_name(round, model)
        suggestions = self._suggestions(project, committee)
        with self._ledger.transaction():
            self._ledger.commit_model(self._name, version, round, model, info)
            self._ledger.commit_suggestions(self._name, version, suggestions)
        chosen = self._ledger.selection(self._name, round)
        offered = len(chosen.picks) if chosen else 0
        kept = {name: info[name] for name in ("labels", "metrics")}
        return {"round": round, "model": version, "offered": offered, **kept}

    def _suggestions(self, project: Project, committee: Committee) -> list[tuple[str, Any, Any]]:
        """Return (item, label, probabilities or moments) of each open item."""
        items = self._ledger.open_items(self._name)
        suggestions: list[tuple[str, Any, Any]] = []
        pool = project.workspace.at().pool  # an item may have come after the round's snapshot
        for start in range(0, len(items), _BLOCK):
            some = items[start : start + _BLOCK]
            how = (project.spec.scan, project.spec.threads_per_model)
            predictions = answers(committee, pool.take(some), *how)
            for item, answer in zip(some, predictions, strict=True):
                label, probs, mean, variance = said(committee.task.labels, answer)
                moments = {"mean": mean, "variance": variance}
                suggestions.append((item, label, moments if probs is None else list(probs)))
            self._progress("suggest", start + len(some), len(items))
        return suggestions

    def _progress(self, stage: str, done: int, total: int) -> None:
        if stage != self._stage:
            self._stage = stage
            self._round = len(self._ledger.rounds(self._name)) - 1
        self._tell({"round": self._round, "stage": stage, "done": done, "total": total})
