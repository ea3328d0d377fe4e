"""What the site has beside the pages in docs/: the README as its first page, infra's runbooks, and references made of
the code: the config tree, the verbs, the public Python.

Links are mended on the way: in the repository `docs/x.md` is beside the README, on the site it is `x.md`.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(\]\()([^)#:]+)((?:#[^)]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    made = {"config.md": config_page(), "cli.md": cli_page(), "api.md": api_page()}
    made["index.md"] = (ROOT / "README.md").read_text()
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    for path in (ROOT / "infra").rglob("*"):
        inside = path.relative_to(ROOT)
        if path.is_file() and not any(part.startswith(".") or "tfstate" in part for part in inside.parts):
            files.append(File.generated(config, inside.as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Paths as the repository has them, to paths as the site has them."""
    here = page.file.src_uri
    folder = ROOT / (Path(here).parent if here.startswith("infra/") else "" if here == "index.md" else "docs")

    def mended(link: re.Match[str]) -> str:
        target = (folder / link[2]).resolve()
        if not target.is_relative_to(ROOT) or not target.exists():
            return link[0]
        inside = target.relative_to(ROOT).as_posix()
        inside = "index.md" if inside == "README.md" else inside.removeprefix("docs/")
        if Path(ROOT / inside).is_dir():
            inside += "/README.md"
        up = "../" * (len(Path(here).parts) - 1)
        return f"{link[1]}{up}{inside}{link[3]}"

    return LINK.sub(mended, markdown)


# ---------------------------------------------------------------- references


def config_page() -> str:
    """Every key of a run, its default and what it says of itself, section by section."""
    from pathryoshka.config import Run

    lines = ["# The config tree", "", "Laid over a recipe with `--config`, or key by key with `--set`.", ""]
    todo: list[tuple[str, type[BaseModel]]] = [("", Run)]
    while todo:
        prefix, section = todo.pop(0)
        lines += [f"## {prefix.rstrip('.').replace('<name>', 'NAME') or 'run'}", "", plain(section.__doc__), ""]
        lines += ["| key | default | |", "|---|---|---|"]
        for name, field in section.model_fields.items():
            inner = [kind for kind in kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
            if inner:
                todo.append((f"{prefix}{name}.{'<name>.' if 'dict' in str(field.annotation) else ''}", inner[0]))
                continue
            default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
            cells = (f"`{prefix}{name}`", default or "required", field.description or "")
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    return "\n".join(lines)


def kinds(annotation: Any) -> list[Any]:
    return [annotation, *(inner for arg in getattr(annotation, "__args__", ()) for inner in kinds(arg))]


def cli_page() -> str:
    """`--help` of every verb."""
    from pathryoshka.cli import cli

    lines = ["# The verbs", ""]

    def add(command: click.Command, words: tuple[str, ...]) -> None:
        context = click.Context(command, info_name=" ".join(words), max_content_width=110)
        lines.extend([f"{'##' if len(words) < 3 else '###'} {' '.join(words)}", ""])
        lines.extend(["```text", command.get_help(context), "```", ""])
        for name, inner in command.commands.items() if isinstance(command, click.Group) else ():
            add(inner, (*words, name))

    for name in cli.list_commands(click.Context(cli)):
        add(cli.commands[name], ("pathryoshka", name))
    return "\n".join(lines)


def api_page() -> str:
    """Docstrings of what users import: the loaded student and the client of the service."""
    from pathryoshka.export.load import Embedder, load
    from pathryoshka.serve.client import Client

    lines = ["# Python", ""]
    for name, thing in (("pathryoshka.load", load), ("Embedder", Embedder), ("serve.client.Client", Client)):
        lines += told("##", name, thing)
        for inner, method in vars(thing).items() if inspect.isclass(thing) else ():
            if not inner.startswith("_") and callable(method) and method.__doc__:
                lines += told("###", f"{name.rsplit('.', 1)[-1]}.{inner}", method)
    return "\n".join(lines)


def told(level: str, name: str, thing: Any) -> list[str]:
    said = re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(inspect.signature(thing)))  # annotations are kept as strings
    return [f"{level} {name}", "", "```python", f"{name.rsplit('.', 1)[-1]}{said}", "```", "", plain(thing.__doc__), ""]


def plain(doc: str | None) -> str:
    """A docstring as paragraphs, its indented lines as a list."""
    listed = re.sub(r"^ {4}(\S.*)", r"- \1", inspect.cleandoc(doc or ""), flags=re.M)
    return re.sub(r"^(\w+:)\n- ", r"\1\n\n- ", listed, flags=re.M)
