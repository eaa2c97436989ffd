"""The OpenAPI document as one page of HTML: no script, nothing from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

__all__ = ["STYLE", "page"]

STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .75rem; overflow-x: auto; border-radius: .4rem; }
h2 { border-top: 1px solid var(--line); padding-top: 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.method { font-weight: 700; }
"""


def page(document: dict[str, Any], examples: dict[str, str]) -> str:
    """`document` for people; `examples` has a curl line by path."""
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{escape(document['info']['title'])}: the API</title><link rel=stylesheet href=/docs.css></head><body>",
        f"<h1>{escape(document['info']['title'])}: the API</h1><p>{escape(document['info'].get('description', ''))}</p>",
        "<p>For programs: <a href=/openapi.json>/openapi.json</a></p><main>",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(path, method, operation, examples.get(path)))
    parts.append("<h2>The documents</h2>")
    schemas = document.get("components", {}).get("schemas", {})
    parts += [_schema(name, schema) for name, schema in sorted(schemas.items())]
    return "".join([*parts, "</main></body></html>"])


def _operation(path: str, method: str, operation: dict[str, Any], example: str | None) -> str:
    parts = [
        f"<h2><span class=method>{escape(method.upper())}</span> <code>{escape(path)}</code></h2>",
        f"<p>{escape(operation.get('description', ''))}</p>",
    ]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if body is not None:
        parts.append(f"<p>Takes {_type(body)}.</p>")
    if example:
        parts.append(f"<pre>{escape(example)}</pre>")
    rows = []
    for status, answer in sorted(operation["responses"].items()):
        what = "".join(
            _type(content["schema"]) for content in answer.get("content", {}).values() if content.get("schema")
        )
        rows.append(f"<tr><td>{escape(status)}<td>{escape(answer.get('description', ''))}<td>{what}")
    return "".join([*parts, "<table><tr><th>Status<th>When<th>Answer", *rows, "</table>"])


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        f"<tr><td><code>{escape(field)}</code><td>{_type(said)}<td>{'' if field in required else 'optional'}"
        f"<td>{escape(said.get('description', ''))}"
        for field, said in schema.get("properties", {}).items()
    ]
    return (
        f"<h3 id='{escape(name)}'>{escape(name)}</h3><p>{escape(schema.get('description', ''))}</p>"
        f"<table><tr><th>Field<th>Is<th><th>{''.join(rows)}</table>"
    )


def _type(schema: dict[str, Any]) -> str:
    """What a schema takes, in words, its documents as links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"<a href='#{escape(name)}'>{escape(name)}</a>"
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_type(option) for option in options)
    if "const" in schema or "enum" in schema:
        return " or ".join(escape(json.dumps(each)) for each in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        items = schema.get("items") or {}
        return f"a list of ({_type(items)})" if items else "a list"
    return escape(str(schema.get("type", "anything")))
