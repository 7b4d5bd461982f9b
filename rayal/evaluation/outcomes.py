"""The outcome of a run as rows: points of curves, rounds and picks, read from the ledger."""

from __future__ import annotations

from typing import Any

from rayal.engine.project import Project, RoundSummary
from rayal.evaluation.curves import CurvePoint
from rayal.evaluation.oracle import Oracle
from rayal.settings.run import Cell, OracleSettings
from rayal.types import Seeds


def seeds_text(seeds: Seeds) -> str:
    """Return seeds as one short word."""
    if seeds.pool == seeds.model == seeds.query:
        return f"s{seeds.pool}"
    return f"p{seeds.pool}m{seeds.model}q{seeds.query}"


def point_of(cell: Cell, summary: RoundSummary) -> CurvePoint:
    """Return a round as a point of its cell's curve."""
    return CurvePoint(
        cell.label,
        seeds_text(cell.seeds),
        summary.round,
        summary.labels,
        dict(summary.metrics),
        dict(summary.seconds),
    )


def tables_of(
    project: Project, cell: Cell, oracle: OracleSettings
) -> tuple[list[Any], list[Any], list[Any]]:
    """Return a cell's curve points, rounds and picks as they stand in the ledger."""
    points = [point_of(cell, s) for s in project.rounds() if s.metrics]
    return points, _round_rows(project, cell, oracle), _pick_rows(project, cell)


def _round_rows(project: Project, cell: Cell, oracle: OracleSettings) -> list[dict[str, Any]]:
    rows = []
    wrong = _wrong_labels(project, cell, oracle)
    for summary in project.rounds():
        row: dict[str, Any] = {
            "project": project.name,
            "strategy": cell.label,
            "seed": seeds_text(cell.seeds),
            "round": summary.round,
            "labels": summary.labels,
            "cost": summary.labels * oracle.cost,
            "wrong": wrong.get(summary.round),
            "model": summary.outputs.get("train", {}).get("model"),
            "backbone": summary.outputs.get("embed", {}).get("backbone"),
            "columns": summary.outputs.get("scan", {}).get("columns"),
            "warning": summary.outputs.get("scan", {}).get("warning"),
            "approximation": summary.outputs.get("select", {}).get("approximation"),
        }
        row |= {f"metric.{n}": v for n, v in summary.metrics.items()}
        row |= {f"seconds.{n}": v for n, v in summary.seconds.items()}
        rows.append(row)
    return rows


def _pick_rows(project: Project, cell: Cell) -> list[dict[str, Any]]:
    rows = []
    for number in range(-1, len(project.rounds())):
        selection = project.ledger.selection(project.name, number)
        for pick in selection.picks if selection else ():
            rows.append(
                {
                    "project": project.name,
                    "strategy": cell.label,
                    "seed": seeds_text(cell.seeds),
                    "round": number,
                    "rank": pick.rank,
                    "item": pick.item,
                    "score": pick.score,
                    "probability": pick.probability,
                }
            )
    return rows


def _wrong_labels(project: Project, cell: Cell, oracle: OracleSettings) -> dict[int, int]:
    """Return how many labels a simulated annotator had got wrong: round to number."""
    if oracle.name != "hidden" or not oracle.noise:
        return {}
    asked = Oracle(project.pool, noise=oracle.noise, seed=cell.seeds.pool)
    return {
        row.round: asked.wrong(project.ledger.resolved(project.name, row.labels_seq))
        for row in project.ledger.rounds(project.name)
    }
