"""The OpenAPI document as one page of HTML, without scripts and without anything from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

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
    found: dict[str, list[tuple[str, str, Document]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            found.setdefault(operation["tags"][0], []).append((method, path, operation))
    return found


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
