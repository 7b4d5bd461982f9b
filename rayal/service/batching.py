"""Requests for predictions that wait at the same time, answered by as few passes as they allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rayal import errors
from rayal.errors import RayalError

Body = Mapping[str, Any]
Answer = Callable[[Body], dict[str, Any]]  # the answer to a request, or RayalError


def answer_all(answer: Answer, bodies: Sequence[Body]) -> list[dict[str, Any]]:
    """Return an outcome per request, in order; those of one model and project share a pass.

    Where the shared pass is refused, each of its requests is answered alone, so that one with an
    unknown item spoils no other.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for at, body in enumerate(bodies):
        named = body.get("items") is not None
        alone = None if named else at
        groups.setdefault((body.get("project"), body.get("model"), alone), []).append(at)
    outcomes: dict[int, dict[str, Any]] = {}
    for rows in groups.values():
        together = [bodies[at] for at in rows]
        made = _shared(answer, together) if len(rows) > 1 else None
        found = made or [outcome_of(answer, body) for body in together]
        outcomes |= zip(rows, found, strict=True)
    return [outcomes[at] for at in range(len(bodies))]


def outcome_of(answer: Answer, body: Body) -> dict[str, Any]:
    """Return {"answer": …}, or {"error": …} for what ``answered`` raises again."""
    try:
        return {"answer": answer(body)}
    except RayalError as error:
        return {"error": {"name": type(error).__name__, "message": str(error)}}


def answered(outcome: Mapping[str, Any]) -> Any:
    """Return the answer of an outcome, or raise the error that it tells of.

    Errors travel as data: Ray would put a traceback into their messages.
    """
    if "error" not in outcome:
        return outcome["answer"]
    kind = getattr(errors, outcome["error"]["name"], RayalError)
    raise kind(outcome["error"]["message"])


def _shared(answer: Answer, bodies: Sequence[Body]) -> list[dict[str, Any]] | None:
    """Return the outcomes of requests for items by one pass; None where it is refused."""
    items = [item for body in bodies for item in body["items"]]
    try:
        made = answer({**bodies[0], "items": items})
    except RayalError:
        return None
    outcomes, start = [], 0
    for body in bodies:
        end = start + len(body["items"])
        outcomes.append({"answer": {**made, "predictions": made["predictions"][start:end]}})
        start = end
    return outcomes
