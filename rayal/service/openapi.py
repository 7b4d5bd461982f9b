"""The OpenAPI document of the API."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from rayal.service import problems
from rayal.service.schemas.items import ItemsBody

_ABOUT = """\
Which items should be labeled next? Annotators' tools lease the most useful items of a project and
send labels; rounds train, scan and choose the next batch in the background.

Times are seconds since the epoch. An item is named by its `id` in bodies, and by its `key` (16 hex
digits) in paths; every answer holds both. Lists are paged by `cursor` and `limit`. A POST with an
`Idempotency-Key` has its effect once. Errors are problem documents (RFC 9457)."""
_DROPPED = ("HTTPValidationError", "ValidationError")  # what FastAPI would answer by itself


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter that may be left out: it has no text that means null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**{name: value for name, value in schema.items() if name != "anyOf"}, **kinds[0]}


def _read_by_handlers() -> dict[str, Any]:
    """Return the schemas of bodies that FastAPI does not read."""
    made = ItemsBody.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**made.pop("$defs"), "ItemsBody": made}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the document, made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title,
            version=app.version,
            openapi_version="3.1.0",
            description=_ABOUT,
            routes=app.routes,
        )
        components = made.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for name in _DROPPED:
            schemas.pop(name, None)
        schemas["Problem"] = problems.schema()
        schemas.update(_read_by_handlers())
        text = "a token of this service, as POST /v1/tokens gives it"
        bearer = {"type": "http", "scheme": "bearer", "description": text}
        components["securitySchemes"] = {"bearer": bearer}
        for methods in made["paths"].values():
            for operation in methods.values():
                for parameter in operation.get("parameters", ()):
                    parameter["schema"] = _without_null(parameter["schema"])
        app.openapi_schema = made
    return app.openapi_schema
