"""Rounds: how they stand, closing one, and the learning curve."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from math import fsum
from typing import Any

from rayal.labels import NumberLabel
from rayal.ledger import STAGES, Labeling, LabelRow, StageRow
from rayal.ledger.agreement_rules import near
from rayal.ledger.records import JobRow, ModelRow
from rayal.service.auth import READ, WRITE
from rayal.service.call import Answer, Call, Here
from rayal.service.problems import ProblemError
from rayal.service.routes.jobs import accepted
from rayal.service.routing import Section
from rayal.service.schemas.base import ProjectName, RoundNumber
from rayal.service.schemas.rounds import (
    Accepted,
    Agreement,
    CloseBody,
    CurveInfo,
    CurvePoint,
    RoundInfo,
    RoundList,
)


def agreement_of(
    labels: Iterable[tuple[str, Any]], *, numbers: bool = False, tolerance: float = 0.0
) -> dict[str, Any]:
    """Return how far labels of the same items agree.

    Alpha is Krippendorff's for any number of labels per item: one minus the ratio of observed to
    expected disagreement, over items with two labels or more. It is that for nominal data, where
    values are equal or not; of numbers that for interval data, where they disagree by their
    squared difference.

    Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, sections C and D.

    Args:
        labels: item and value, once for each annotator of an item.
        numbers: whether the values are numbers.
        tolerance: how far numbers of a pair that agrees may lie apart; alpha knows none.

    Returns:
        ``items`` with two labels or more, ``pairs`` of their labels, the share of pairs that are
        ``observed`` to agree, and ``alpha``; None where it is undefined.
    """
    # the package `krippendorff` forms arrays [items, values, values]: 300 pairs of unequal numbers
    # take it 18 s and 2.6 GB, and large ones give nan
    if numbers:
        return _of_numbers(labels, tolerance)
    units: dict[str, Counter[str]] = defaultdict(Counter)
    for item, value in labels:
        units[item][json.dumps(value, sort_keys=True)] += 1
    paired = [unit for unit in units.values() if unit.total() > 1]
    totals = sum(paired, Counter[str]())
    n = totals.total()
    pairs = sum(unit.total() * (unit.total() - 1) // 2 for unit in paired)
    equal = sum(count * (count - 1) // 2 for unit in paired for count in unit.values())
    # an item's ordered pairs weigh 1 / (labels - 1), so that each label weighs 1
    disagreeing = sum(
        count * (unit.total() - count) / (unit.total() - 1)
        for unit in paired
        for count in unit.values()
    )
    expected = sum(count * (n - count) for count in totals.values())
    return {
        "items": len(paired),
        "pairs": pairs,
        "observed": equal / pairs if pairs else None,
        "alpha": 1 - (n - 1) * disagreeing / expected if expected else None,
    }


def _of_numbers(labels: Iterable[tuple[str, float]], tolerance: float) -> dict[str, Any]:
    units: dict[str, list[float]] = defaultdict(list)
    for item, value in labels:
        units[item].append(float(value))
    paired = [unit for unit in units.values() if len(unit) > 1]
    pooled = [value for unit in paired for value in unit]
    n = len(pooled)
    pairs = [pair for unit in paired for pair in combinations(unit, 2)]
    scale = max(map(abs, pooled), default=0.0) or 1.0  # alpha is the same in any unit
    observed = sum(_differences(unit, scale) / (len(unit) - 1) for unit in paired)
    expected = _differences(pooled, scale) / (n - 1) if n else 0.0
    return {
        "items": len(paired),
        "pairs": len(pairs),
        "observed": sum(near(*pair, tolerance) for pair in pairs) / len(pairs) if pairs else None,
        "alpha": 1 - observed / expected if expected else None,
    }


def _differences(values: list[float], scale: float) -> float:
    """Return the sum of the squared differences of all ordered pairs, in units of ``scale``."""
    scaled = [value / scale for value in values]
    mean = fsum(scaled) / len(scaled) if scaled else 0.0
    # equal to 2 n times the sum of squares about the mean
    return 2 * len(scaled) * fsum((value - mean) ** 2 for value in scaled)


routes = Section("rounds")
INITIAL = -1


@routes.route("GET", "/v1/projects/{project}/rounds", READ, answers=RoundList)
def list_rounds(call: Here, project: ProjectName) -> RoundList:
    """List the rounds; -1 is the initial choice."""
    return RoundList(rounds=_rounds(call, project))


@routes.route("GET", "/v1/projects/{project}/rounds/{round}", READ, answers=RoundInfo)
def get_round(call: Here, project: ProjectName, round: RoundNumber) -> RoundInfo:
    """Return a round: the stage it is at, what was asked for, and what came."""
    rounds = [row for row in _rounds(call, project) if row.n == round]
    if not rounds:
        raise ProblemError("not-found", f"round {round} of project {project!r} was not begun")
    return rounds[0]


@routes.route(
    "POST",
    "/v1/projects/{project}/rounds:close",
    WRITE,
    answers=Accepted,
    status=202,
    problems=["conflict"],
)
def close_round(call: Here, project: ProjectName, body: CloseBody) -> Answer:
    """Train on what is labeled and choose the next batch, without waiting for the quorum.

    While one is closing, its job is returned.
    """
    ledger = call.backend.ledger
    begun = ledger.rounds(project)
    new = ledger.new_labels(project, begun[-1].labels_seq if begun else 0)
    if body.min_labels is not None and new < body.min_labels:
        raise ProblemError(
            "conflict", f"{new} labels are new, fewer than min_labels = {body.min_labels}"
        )
    if not new and _waits(call, project):
        raise ProblemError("conflict", "no label is new; label some of the offered items first")
    return accepted(ledger.add_job(project, "round", {"reason": body.reason}))


@routes.route("GET", "/v1/projects/{project}/metrics", READ, answers=CurveInfo)
def get_curve(call: Here, project: ProjectName) -> CurveInfo:
    """Return the learning curve, and how far annotators agree."""
    ledger = call.backend.ledger
    stages, models = ledger.stages(project), ledger.models(project)
    present = [
        row for row in _labels(call, project) if row.superseded_by is None and row.value is not None
    ]
    said = [(row.item, row.value) for row in present]
    record = ledger.project(project)
    rules, kind = Labeling.of(record.settings), call.backend.labels(record).kind
    by: dict[str, int] = {}
    for row in present:
        by[row.annotator] = by.get(row.annotator, 0) + 1
    return CurveInfo(
        curve=[_point(row.round, stages, models) for row in ledger.rounds(project)],
        annotators=dict(sorted(by.items())),
        agreement=Agreement(
            **agreement_of(said, numbers=kind == NumberLabel.kind, tolerance=rules.tolerance)
        ),
        counts=ledger.counts(project),
    )


def _rounds(call: Call, project: str) -> list[RoundInfo]:
    ledger = call.backend.ledger
    begun = [row.round for row in ledger.rounds(project)]
    stages, models = ledger.stages(project), ledger.models(project)
    job = _last_job(call, project)
    first = ledger.selection(project, INITIAL) is not None
    numbers = ([INITIAL] if first else []) + begun
    last = ledger.project(project).settings.get("rounds")
    return [
        RoundInfo.model_validate(
            {
                "n": n,
                "stage": _stage(n, stages, numbers, job, last=last),
                "error": job.error if job and n == numbers[-1] else None,
                **_made(n, stages, models),
                **ledger.counts(project, n),
            }
        )
        for n in numbers
    ]


def _stage(
    n: int, stages: Sequence[StageRow], numbers: Sequence[int], job: JobRow | None, *, last: Any
) -> str:
    """Return the stage that a round is at; ``last`` ends after its evaluation."""
    finished = {row.stage: row.output for row in stages if row.round == n}
    nothing_left = finished.get("select", {}).get("picks") == 0
    ended = nothing_left or (n == last and "evaluate" in finished)
    if n != numbers[-1] or "label" in finished or ended:
        return "done"
    if job is not None and job.state == "failed":
        return "failed"
    if n == INITIAL or "select" in finished:
        return "label"
    reached = max((STAGES.index(stage) for stage in finished), default=-1)
    return next(s for s in STAGES[reached + 1 :] if s not in ("embed", "pretrain", "auxiliary"))


def _made(n: int, stages: Sequence[StageRow], models: Sequence[ModelRow]) -> dict[str, Any]:
    outputs = {row.stage: row.output for row in stages if row.round == n}
    version = [model.version for model in models if model.round == n]
    return {
        "labels": int(outputs.get("prepare", {}).get("labels", 0)),
        "metrics": outputs.get("evaluate", {}).get("metrics", {}),
        "model": version[-1] if version else None,
    }


def _point(n: int, stages: Sequence[StageRow], models: Sequence[ModelRow]) -> CurvePoint:
    seconds = {row.stage: row.seconds for row in stages if row.round == n}
    return CurvePoint(round=n, seconds=seconds, **_made(n, stages, models))


def _last_job(call: Call, project: str) -> JobRow | None:
    """Return the latest job of kind round."""
    last, after = None, None
    while page := call.backend.ledger.jobs(project, after=after, limit=1000):
        after = page[-1].job
        last = next((job for job in reversed(page) if job.kind == "round"), last)
    return last


def _waits(call: Call, project: str) -> bool:
    """Return whether a round can begin only with new labels: the first choice or last one is made.

    A round that was begun and is not done goes on with the labels that it has.
    """
    ledger = call.backend.ledger
    begun = ledger.rounds(project)
    if not begun:
        return ledger.selection(project, INITIAL) is not None
    return ledger.stage(project, begun[-1].round, "select") is not None


def _labels(call: Call, project: str) -> Iterator[LabelRow]:
    """Yield the history, page by page."""
    since = 0
    while page := call.backend.ledger.labels(project, since=since, limit=1000):
        yield from page
        since = page[-1].seq
