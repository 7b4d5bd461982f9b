"""Rounds of a project with an oracle in place of people."""

from __future__ import annotations

from rayal.engine.project import Project
from rayal.evaluation.oracle import Oracle


def finish(project: Project, oracle: Oracle | None = None) -> Project:
    """Run a project to its end; the oracle tells the hidden labels unless another is given."""
    oracle = oracle or Oracle(project.pool)
    project.prepare()
    while not project.finished:
        oracle.work(project)
        project.train(oracle.truth)
    return project


def picks_of(project: Project, *rounds: int) -> list[tuple[str, float | None]]:
    """Return items and scores picked in the given rounds, as far as they are; -1 is the initial."""
    chosen = [project.ledger.selection(project.name, round) for round in rounds]
    return [(pick.item, pick.score) for made in chosen if made is not None for pick in made.picks]
