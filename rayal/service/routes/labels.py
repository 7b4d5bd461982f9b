"""Labels: answers of annotators, an append-only history, and the values to train on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Annotated, Any, Literal

from fastapi import Query

from rayal.errors import LabelError
from rayal.labels import ClassLabel, NumberLabel
from rayal.ledger import LabelEntry, LabelResult, LabelRow, SkipEntry
from rayal.service.auth import LABEL, READ
from rayal.service.call import Answer, Call, Here
from rayal.service.inbox import known_items
from rayal.service.problems import ProblemError
from rayal.service.routes.items import item_named
from rayal.service.routing import Section
from rayal.service.schemas.base import AnnotatorName, Cursor, ItemKey, Limit, ProjectName, key_of
from rayal.service.schemas.labels import (
    LabelBatch,
    LabelInfo,
    LabelItem,
    LabelOutcome,
    LabelPage,
    LabelResults,
    RelabelBody,
    Resolved,
    ResolvedPage,
)

routes = Section("labels")
_ONE = "/v1/projects/{project}/labels/{item}/{annotator}"
_KEPT = ("client_id", "labeled_at", "model_version_seen")


@routes.route("POST", "/v1/projects/{project}/labels", LABEL, answers=LabelResults)
def add_labels(call: Here, project: ProjectName, body: LabelBatch) -> LabelResults:
    """Record answers, one after another, and tell what became of each.

    A bad one is rejected and changes nothing; the others go on. A late label is never refused.
    """
    return LabelResults(results=take(call, project, body.labels))


@routes.route("PUT", _ONE, LABEL, answers=LabelOutcome)
def relabel_item(
    call: Here, project: ProjectName, item: ItemKey, annotator: AnnotatorName, *, body: RelabelBody
) -> LabelOutcome:
    """Say what an annotator says of an item now; the history keeps what they said before.

    A label that does not fit the project is a problem here, where it is the only one.
    """
    named = item_named(call, project, item)
    try:
        call.backend.labels(call.project(project)).check(body.label, named)
    except LabelError as error:
        raise ProblemError("validation", str(error), errors=[("/label", str(error))]) from None
    entry = LabelItem(item=named, annotator=annotator, label=body.label)
    return take(call, project, [entry])[0]


@routes.route("DELETE", _ONE, LABEL, answers=LabelOutcome)
def retract_label(
    call: Here, project: ProjectName, item: ItemKey, annotator: AnnotatorName
) -> LabelOutcome:
    """Take an annotator's answer back; the history keeps it."""
    named = item_named(call, project, item)
    return _outcome(call, call.backend.ledger.retract(project, annotator, named))


@routes.route("GET", "/v1/projects/{project}/labels", READ, answers=LabelPage | ResolvedPage)
def list_labels(
    call: Here,
    project: ProjectName,
    *,
    since: Annotated[int, Query(ge=0, lt=2**63, description="rows after this label_id")] = 0,
    state: Annotated[
        Literal["accepted", "surplus", "updated", "skipped", "retracted", "conflict"] | None,
        Query(description="rows of this status"),
    ] = None,
    view: Annotated[
        Literal["history", "resolved"], Query(description="resolved: the values to train on")
    ] = "history",
    limit: Limit = 1000,
    cursor: Cursor = None,
) -> Answer:
    """List the history of answers, or the values to train on."""
    if view == "resolved":
        return _resolved(call, project, limit, cursor)
    at = call.position(cursor, "history", str(state))
    start = at[0] if at else since
    labels, last = _history(call, project, start, state=state, limit=limit)
    more = call.cursor([last] if len(labels) == limit else None, "history", str(state))
    body = LabelPage(labels=[_row(row) for row in labels], last=last, next=more)
    return call.linked(body, more)


def take(call: Call, project: str, answers: Sequence[LabelItem]) -> list[LabelOutcome]:
    """Record answers in one transaction, each checked against pool and task."""
    backend = call.backend
    kind = backend.labels(backend.ledger.project(project))
    known = known_items(backend.ledger, project, [answer.item for answer in answers])
    results: list[LabelOutcome] = []
    with backend.ledger.transaction():
        for annotator, some in groupby(
            zip(answers, known, strict=True), lambda pair: pair[0].annotator
        ):
            checked = [_checked(answer, kind, there) for answer, there in some]
            good = [entry for entry in checked if not isinstance(entry, LabelResult)]
            taken = iter(backend.ledger.label(project, annotator, good) if good else [])
            for entry in checked:
                result = entry if isinstance(entry, LabelResult) else next(taken)
                results.append(_outcome(call, result))
    return results


def _checked(
    answer: LabelItem, kind: ClassLabel | NumberLabel, there: bool
) -> LabelEntry | SkipEntry | LabelResult:
    """Return the ledger's entry, or the result of one that cannot be entered."""
    details = {n: getattr(answer, n) for n in _KEPT if getattr(answer, n) is not None}
    if not there:
        detail = "the item is not in the project's pool"
        return LabelResult(answer.item, "rejected", False, None, detail)
    if answer.skip:
        return SkipEntry(answer.item, answer.reason, answer.lease_id, details)
    try:
        value = kind.check(answer.label, answer.item)
    except LabelError as error:
        return LabelResult(answer.item, "rejected", False, None, str(error))
    return LabelEntry(answer.item, value, answer.lease_id, details)


def _outcome(call: Call, result: LabelResult) -> LabelOutcome:
    call.request.app.state.metrics.labels.labels(result.status).inc()
    return LabelOutcome(
        item=result.item,
        key=key_of(result.item),
        status=result.status,
        late=result.late,
        label_id=result.seq,
        detail=result.detail,
    )


def _history(
    call: Call, project: str, since: int, *, state: str | None, limit: int
) -> tuple[list[LabelRow], int]:
    """Return rows of a status, and the last row that was looked at."""
    ledger, last = call.backend.ledger, since

    def rows() -> Iterator[LabelRow]:
        nonlocal last
        while page := ledger.labels(project, since=last, limit=1000):
            for row in page:
                last = row.seq
                if state in (None, row.status):
                    yield row

    labels = list(islice(rows(), limit))
    return labels, last


def _resolved(call: Call, project: str, limit: int, cursor: str | None) -> Answer:
    at = call.position(cursor, "resolved")
    up_to = at[0] if at else call.backend.ledger.labels_seq(project)
    values = call.backend.ledger.resolved(project, up_to)
    rest = [item for item in values if not at or item > at[1]]
    page = [Resolved(item=i, key=key_of(i), label=values[i]) for i in rest[:limit]]
    more = call.cursor([up_to, page[-1].item] if len(rest) > limit else None, "resolved")
    return call.linked(ResolvedPage(labels=page, next=more), more)


def _row(row: LabelRow) -> LabelInfo:
    shown: dict[str, Any] = {
        "label_id": row.seq,
        "label": row.value,
        "lease_id": row.lease,
        "labeled_at": row.time,
        "key": key_of(row.item),
    }
    same = ("item", "annotator", "status", "late", "reason", "provenance", "superseded_by")
    return LabelInfo(**shown, **{name: getattr(row, name) for name in same})
