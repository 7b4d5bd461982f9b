"""Leases: work handed to annotators, each item to as many as it needs, never twice to one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rayal.ledger import Lease
from rayal.ledger.records import Suggestion as SuggestionRow
from rayal.service import signing
from rayal.service.auth import LABEL
from rayal.service.call import Answer, Call, Here
from rayal.service.routing import Section
from rayal.service.schemas.base import LeaseId, ProjectName, key_of
from rayal.service.schemas.labels import (
    ExtendBody,
    LeaseBody,
    LeasedItem,
    LeaseInfo,
    LeaseList,
    Suggestion,
)

routes = Section("leases")
_SECONDS = {"training": 5, "held": 15, "nothing-offered": 30, "finished": 300}
_EMPTY = {
    "headers": {
        "Retry-After": {
            "description": "seconds; only where no lease is given",
            "schema": {"type": "integer", "minimum": 1},
        }
    }
}


@routes.route("POST", "/v1/projects/{project}/leases", LABEL, answers=LeaseList)
def lease_items(call: Here, project: ProjectName, body: LeaseBody) -> Answer:
    """Lease the best open items.

    The annotator's open leases come first, unchanged, so a client that lost them gets them again.
    Without any item the list is empty, with a reason and Retry-After.
    """
    leases = call.backend.ledger.lease(project, body.annotator, body.count, ttl=body.ttl_s)
    call.request.app.state.metrics.leases.labels("answered").inc(len(leases))
    if leases:
        return Answer(LeaseList(leases=leases_shown(call, project, leases)))
    reason = why_none(call, project)
    return Answer(LeaseList(leases=[], reason=reason), headers={"Retry-After": _wait(reason)})


@routes.route(
    "POST",
    "/v1/projects/{project}/leases/{lease}:extend",
    LABEL,
    answers=LeaseInfo,
    problems=["lease-expired"],
)
def extend_lease(call: Here, project: ProjectName, lease: LeaseId, body: ExtendBody) -> LeaseInfo:
    """Let a lease last longer; one that expired lives again while its item has a free slot."""
    row = call.backend.ledger.extend(project, lease, body.ttl_s)
    call.request.app.state.metrics.leases.labels("extended").inc()
    return leases_shown(call, project, [row])[0]


@routes.route("DELETE", "/v1/projects/{project}/leases/{lease}", LABEL, status=204)
def give_back_lease(call: Here, project: ProjectName, lease: LeaseId) -> Answer:
    """Give a lease back; the item may come to the annotator again."""
    call.backend.ledger.give_back(project, lease)
    call.request.app.state.metrics.leases.labels("given back").inc()
    return Answer(None, 204)


def leases_shown(call: Call, project: str, rows: Sequence[Lease]) -> list[LeaseInfo]:
    """Return leases as the API shows them, with what the active model suggests."""
    known = call.backend.ledger.suggestions(project, [row.item for row in rows])
    return [_shown(call, project, row, known.get(row.item)) for row in rows]


def why_none(call: Call, project: str) -> Any:
    """Return why no item can be leased."""
    ledger = call.backend.ledger
    if any(ledger.jobs(project, state=state, limit=1) for state in ("queued", "running")):
        return "training"
    counts = ledger.counts(project)
    if counts["offered"] or counts["leased"]:
        return "held"
    last = ledger.project(project).settings.get("rounds")
    if last is not None and ledger.stage(project, last, "evaluate") is not None:
        return "finished"
    return "nothing-offered"


def _wait(reason: str) -> str:
    return str(_SECONDS[reason])


def _shown(call: Call, project: str, row: Lease, said: SuggestionRow | None) -> LeaseInfo:
    backend, key = call.backend, key_of(row.item)
    until = backend.clock() + backend.limits.url_seconds
    item = LeasedItem(
        id=row.item, key=key, content=signing.content_path(backend.secret, project, key, until)
    )
    hint = None
    if said is not None:
        distribution = said.probs if isinstance(said.probs, dict) else {"probs": said.probs}
        hint = Suggestion(
            label=said.label,
            probs=distribution.get("probs"),
            mean=distribution.get("mean"),
            variance=distribution.get("variance"),
            model_version=said.version,
        )
    return LeaseInfo(
        lease_id=row.lease,
        annotator=row.annotator,
        item=item,
        round=row.round,
        rank=row.rank,
        score=row.score,
        suggestion=hint,
        expires_at=row.expires,
    )
