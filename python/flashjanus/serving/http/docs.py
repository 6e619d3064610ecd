"""The page at /docs: the API as HTML, made from its OpenAPI description, without scripts or external resources."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h2 { margin-top: 2.5rem; border-top: 1px solid #d0d7de; padding-top: 1rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; background: #f3f5f7; border-radius: 4px; padding: .1em .3em; }
pre { padding: .8rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0; border-bottom: 1px solid #e4e8ec; }
.method { color: #0550ae; }
@media (prefers-color-scheme: dark) {
  body { background: #15191e; color: #e2e6ea; } code, pre { background: #232931; }
  h2, td, th { border-color: #343c46; } .method { color: #79b8ff; } a { color: #79b8ff; }
}
"""
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "/v1/images/generations": {"prompt": "a red circle", "n": 1, "size": "auto"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Is a circle round?"}], "temperature": 0},
    "/v1/responses": {"input": "a red circle", "tools": [{"type": "image_generation"}]},
}


def page(openapi: Mapping[str, Any]) -> str:
    """Render an OpenAPI description as HTML."""
    schemas = openapi["components"]["schemas"]
    info = openapi["info"]
    title = f"{info['title']} {info['version']}"
    parts = [
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{escape(title)}</title>",
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{escape(info['description'])}</p>",
        "<p><a href='openapi.json'>openapi.json</a> describes the same for programs. API keys go into the header "
        "<code>Authorization: Bearer KEY</code>.</p>",
    ]
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            parts += _operation(path, method.upper(), operation, schemas)
    parts.append("<h2>Kinds of values</h2>")
    for name, schema in schemas.items():
        parts += [f"<h3 id='{escape(name)}'>{escape(name)}</h3>", *_fields(schema)]
    return "".join([*parts, "</body></html>"])


def _operation(path: str, method: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><span class='method'>{method}</span> <code>{escape(path)}</code></h2>"
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    body = operation.get("requestBody")
    if body is not None:
        schema = body["content"]["application/json"]["schema"]
        yield from _fields(schemas[schema["$ref"].rpartition("/")[2]])
    if path in EXAMPLES:
        example = escape(json.dumps(EXAMPLES[path]), quote=False)
        yield f"<pre>curl http://HOST:PORT{escape(path)} -H 'Content-Type: application/json' \\\n  -d '{example}'</pre>"


def _fields(schema: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    yield "<table><tr><th>field</th><th>value</th><th>meaning</th></tr>"
    for name, one in schema.get("properties", {}).items():
        needed = ", required" if name in required else ""
        yield f"<tr><td><code>{escape(name)}</code></td><td>{_kind(one)}{needed}</td>"
        yield f"<td>{escape(one.get('description', ''))}</td></tr>"
    yield "</table>"


def _kind(schema: Mapping[str, Any]) -> str:
    """Describe in words, as HTML, which values are allowed."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href='#{name}'>{name}</a>"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(map(_kind, schema[key])))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(json.dumps(one))}</code>" for one in values)
    types = schema.get("type", "any value")
    words = " or ".join(types) if isinstance(types, list) else types
    if types == "array" and "items" in schema:
        words = f"list of {_kind(schema['items'])}"
    low, high = schema.get("minimum"), schema.get("maximum")
    span = "" if low is None else f" from {_short(low)}" if high is None else f" from {_short(low)} to {_short(high)}"
    return words + span


def _short(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)
