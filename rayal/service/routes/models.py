"""Versions of the committee, and what they predict."""

from __future__ import annotations

from typing import Any

from anyio.to_thread import run_sync

from rayal.ledger.records import ModelRow
from rayal.service.auth import LABEL, READ, WRITE
from rayal.service.call import Answer, Call, Here
from rayal.service.problems import ProblemError
from rayal.service.routes.jobs import accepted
from rayal.service.routing import Section
from rayal.service.schemas.base import ProjectName, Version
from rayal.service.schemas.rounds import ModelInfo, ModelList, PredictBody, Predictions

routes = Section("models")
_ONE = "/v1/projects/{project}/models/{version}"
_ACCEPTED = {
    "description": "too many for an answer at once: the job at Location predicts them",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Accepted"}}},
}


@routes.route("GET", "/v1/projects/{project}/models", READ, answers=ModelList)
def list_models(call: Here, project: ProjectName) -> ModelList:
    """List the versions, the oldest first."""
    return ModelList(models=[shown(row) for row in call.backend.ledger.models(project)])


@routes.route("GET", _ONE, READ, answers=ModelInfo)
def get_model(call: Here, project: ProjectName, version: Version) -> ModelInfo:
    """Return a version, which never changes but for being active."""
    versions = [row for row in call.backend.ledger.models(project) if row.version == version]
    if not versions:
        raise ProblemError("not-found", f"project {project!r} has no model {version!r}")
    return shown(versions[0])


@routes.route("POST", _ONE + ":activate", WRITE, answers=ModelInfo)
def activate_model(call: Here, project: ProjectName, version: Version) -> ModelInfo:
    """Let a version answer predictions and give suggestions from now on."""
    return shown(call.backend.ledger.activate_model(project, version))


@routes.route(
    "POST",
    "/v1/projects/{project}/predictions",
    LABEL,
    answers=Predictions,
    more={202: _ACCEPTED},
    problems=["conflict"],
    limit="body_bytes",
)
async def predict_items(call: Here, project: ProjectName, body: PredictBody) -> Any:
    """Predict up to 256 items or inputs at once; more items are predicted by a job."""
    many = len(body.items or ()) > call.backend.limits.predict_items
    if many:
        return await run_sync(lambda: call.perform(lambda: _later(call, project, body)))
    version = await run_sync(version_of, call, project, body.model)
    fields = body.model_dump(exclude={"model"}, exclude_none=True)
    answer = await call.backend.predict({"project": project, "model": version, **fields})
    return Predictions.model_validate(answer)


def version_of(call: Call, project: str, model: str) -> str:
    """Return the version that answers: the active one, or one by its name."""
    rows = call.backend.ledger.models(project)
    wanted = [row for row in rows if (row.active if model == "active" else row.version == model)]
    if wanted:
        return wanted[0].version
    if model == "active":
        raise ProblemError(
            "conflict", f"project {project!r} has no model yet; label items, then close a round"
        )
    raise ProblemError("not-found", f"project {project!r} has no model {model!r}")


def shown(row: ModelRow) -> ModelInfo:
    """Return a version as the API shows it."""
    return ModelInfo(
        version=row.version,
        round=row.round,
        active=row.active,
        labels=row.info.get("labels"),
        metrics=row.info.get("metrics", {}),
        created_at=row.created,
    )


def _later(call: Call, project: str, body: PredictBody) -> Answer:
    version = version_of(call, project, body.model)
    args = {"model": version, "items": body.items}
    return accepted(call.backend.ledger.add_job(project, "predict", args, once=False))
