"""The OpenAPI document as a page, in the dress of the others: no script, nothing from the net."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from pathryoshka.page import page, table


def docs_page(openapi: Mapping[str, Any]) -> str:
    """HTML of all routes: what they take, what they answer, and a line for a shell."""
    parts = [
        f"<h1>{escape(openapi['info']['title'])} {escape(openapi['info']['version'])}</h1>",
        f'<p class="lead">{escape(openapi["info"]["description"])}</p>',
        "<p>Requests bear the token: <code>Authorization: Bearer &lt;token&gt;</code>. An error is JSON with one "
        'sentence. The same as a document for programs: <a href="/openapi.json">openapi.json</a>.</p>',
    ]
    for path, methods in openapi["paths"].items():
        for method, said in methods.items():
            parts.append(route(path, method, said))
    return page("Pathryoshka: routes", "\n".join(parts))


def route(path: str, method: str, said: Mapping[str, Any]) -> str:
    taken = [
        (
            "",
            [f"<code>{escape(one['name'])}</code>", one["in"], kind(one["schema"]), escape(one.get("description", ""))],
        )
        for one in said.get("parameters", ())
    ]
    body = said.get("requestBody", {}).get("content", {})
    answers = [
        ("", [code, ", ".join(map(escape, one.get("content", {}))) or "", escape(one["description"])])
        for code, one in said["responses"].items()
    ]
    return "\n".join(
        [
            f"<h2><code>{method.upper()} {escape(path)}</code></h2>",
            f"<p>{escape(said.get('description', ''))}</p>",
            f"<pre>{escape(shell_line(path, method, body))}</pre>",
            table(["parameter", "where", "type", "what"], taken) if taken else "",
            table(["answer", "as", "what"], answers),
        ]
    )


def kind(schema: Mapping[str, Any]) -> str:
    options = schema.get("anyOf", [schema])
    return " or ".join(str(one.get("type", "object")) for one in options if one.get("type") != "null")


def shell_line(path: str, method: str, body: Mapping[str, Any]) -> str:
    line = 'curl -H "Authorization: Bearer $TOKEN"'
    if any(name.startswith("image/") for name in body):
        line += " --data-binary @tile.png"
    elif body:
        line += " --json @batch.json"
    elif method == "post":
        line += " -X POST"
    return f"{line} http://127.0.0.1:8000{path}"
