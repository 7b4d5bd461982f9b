"""The OpenAPI document of the API, and its page of HTML, without scripts or outside assets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
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
    schema = ItemsBody.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "ItemsBody": schema}


def document(app: FastAPI) -> dict[str, Any]:
    """Return the document, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            openapi_version="3.1.0",
            description=_ABOUT,
            routes=app.routes,
        )
        components = schema.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for name in _DROPPED:
            schemas.pop(name, None)
        schemas["Problem"] = problems.schema()
        schemas.update(_read_by_handlers())
        text = "a token of this service, as POST /v1/tokens gives it"
        bearer = {"type": "http", "scheme": "bearer", "description": text}
        components["securitySchemes"] = {"bearer": bearer}
        for methods in schema["paths"].values():
            for operation in methods.values():
                for parameter in operation.get("parameters", ()):
                    parameter["schema"] = _without_null(parameter["schema"])
        app.openapi_schema = schema
    return app.openapi_schema


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { border-bottom: 1px solid #999; margin-top: 2.5rem }
h3 { font: 600 1rem ui-monospace, monospace; margin: 1.8rem 0 .3rem }
pre, code { font: .875rem ui-monospace, monospace }
pre { background: #8881; padding: .6rem; overflow-x: auto }
td { padding: .1rem 1rem .1rem 0; vertical-align: top }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd } }
"""
Document = Mapping[str, Any]


def page(document: Document) -> str:
    """Return the page of an OpenAPI document."""
    about = "".join(f"<p>{escape(p)}</p>" for p in document["info"]["description"].split("\n\n"))
    title = escape(f"{document['info']['title']} {document['info']['version']}")
    sections = "".join(
        f'<h2 id="{tag}">{tag}</h2>' + "".join(_operation(document, *row) for row in rows)
        for tag, rows in _by_tag(document).items()
    )
    links = " · ".join(f'<a href="#{tag}">{tag}</a>' for tag in _by_tag(document))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f'<h1>{title}</h1>{about}<p>For machines: <a href="/openapi.json">/openapi.json</a>.</p>'
        f"<p>{links}</p>{sections}</html>"
    )


def _by_tag(document: Document) -> dict[str, list[tuple[str, str, Document]]]:
    operations: dict[str, list[tuple[str, str, Document]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            operations.setdefault(operation["tags"][0], []).append((method, path, operation))
    return operations


def _operation(document: Document, method: str, path: str, operation: Document) -> str:
    scope = operation.get("x-rayal-scope", "none")
    needs = {"none": "no token", "any": "any token"}.get(scope, f"scope {scope}")
    text = escape(operation.get("description", "")).replace("\n\n", "<br>")
    parameters = "".join(_parameter(p) for p in operation.get("parameters", ()))
    examples = "".join(f"<pre>{escape(e)}</pre>" for e in _examples(document, operation))
    answers = ", ".join(
        f"{s} {escape(r['description'])}" for s, r in operation["responses"].items()
    )
    return (
        f'<h3 id="{operation["operationId"]}">{method.upper()} {escape(path)}</h3>'
        f"<p>{text} <i>({needs})</i></p><table>{parameters}</table>{examples}"
        f"<details><summary>answers</summary><p>{answers}</p></details>"
    )


def _parameter(parameter: Document) -> str:
    text = escape(parameter.get("description", ""))
    named = escape(parameter["name"])
    return f"<tr><td><code>{named}</code><td>{escape(parameter['in'])}<td>{text}</tr>"


def _examples(document: Document, operation: Document) -> Iterator[str]:
    """Yield the examples of a body."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        named = schema.get("$ref", "").rpartition("/")[2]
        schema = document["components"]["schemas"].get(named, schema)
        for shown in schema.get("examples", ()):
            yield json.dumps(shown, indent=2)
