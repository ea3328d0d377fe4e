"""What an exported folder says of itself, read without torch: `pathryoshka.json`."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pathryoshka import config

FACTS = "pathryoshka.json"
FORMAT = 1


class LoadError(ValueError):
    """A folder that is no export, or a width it does not have; says what to do."""


def read_facts(folder: Path, path: str | Path) -> dict[str, Any]:
    """`pathryoshka.json` of an exported folder that the user calls `path`."""
    if not (folder / FACTS).is_file():
        hint = " (a timm folder: load it with timm.create_model)" if (folder / "config.json").is_file() else ""
        raise LoadError(
            f"{path} is not a Pathryoshka export: it has no {FACTS}{hint}; make one with `pathryoshka export`"
        )
    return parsed((folder / FACTS).read_text(), path)


def facts_at(path: str, cfg: config.Storage) -> dict[str, Any]:
    """`pathryoshka.json` of the export at a folder or URI, without the rest of it.

    Raises:
        LoadError: no export there, or one of a newer format.
    """
    from pathryoshka import storage

    if Path(path).is_dir():
        return read_facts(Path(path), path)
    try:
        return parsed(storage.read_bytes(storage.join(path, FACTS), cfg), path)
    except storage.NotFound:
        raise LoadError(no_export(path)) from None


def no_export(path: str | Path) -> str:
    return f"{path} is not a Pathryoshka export: there is no {FACTS}; make one with `pathryoshka export`"


def parsed(text: str | bytes, path: str | Path) -> dict[str, Any]:
    facts = json.loads(text)
    if facts.get("format") != FORMAT:
        raise LoadError(f"{path} is an export of format {facts.get('format')}; this version reads format {FORMAT}")
    return facts


def check_width(facts: dict[str, Any], width: int | None, path: str | Path) -> None:
    """Refuses, with a LoadError, a width that the student was not trained for; none is all of it."""
    if width is not None and width not in facts["widths"]:
        raise LoadError(f"{path} was trained for widths {', '.join(map(str, facts['widths']))}; got width={width}")


@contextlib.contextmanager
def local_folder(path: str | Path, cfg: config.Storage | None) -> Iterator[Path]:
    """`path` itself where it is a folder here, else a copy of what storage has under it."""
    if Path(path).is_dir():
        yield Path(path).resolve()
        return
    from pathryoshka import storage

    cfg = cfg or config.Storage()
    if not storage.exists(storage.join(str(path), FACTS), cfg):
        raise LoadError(no_export(path))
    with tempfile.TemporaryDirectory(prefix="pathryoshka-load-") as name:
        storage.download_folder(str(path), Path(name), cfg)
        yield Path(name)
