"""`tools/` in the exported folder: what others' tools need to score the student unchanged.

The files are templates in pathryoshka/export/templates. Python files are copied as they are and read the student's
facts when they run; the others have `@{name}` filled in here. Equal facts give equal bytes.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

TOOLS = "tools"
MANY = {
    "file": "eva.yaml",
    "outputs": "${oc.env:NUM_CLASSES}",
    "criterion": "torch.nn.CrossEntropyLoss",
    "score": "MulticlassAccuracy",
    "metrics": "eva.metrics.MulticlassClassificationMetrics\n          init_args:\n"
    "            num_classes: ${oc.env:NUM_CLASSES}",
    "target": "int64",
}
"""eva's parts for more than two classes."""
TWO = {
    "file": "eva_binary.yaml",
    "outputs": "1",
    "criterion": "torch.nn.BCEWithLogitsLoss",
    "score": "BinaryBalancedAccuracy",
    "metrics": "eva.metrics.BinaryClassificationMetrics",
    "target": "float32",
}
"""eva's parts for two classes: one logit."""


class Filled(string.Template):
    """`@{name}`, since `$` means something in YAML read by eva."""

    delimiter = "@"


def write_tools(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes `folder`/tools. `facts`: `pathryoshka.json`, of which size, width, widths, mean and std are used."""
    known = {key: facts[key] for key in ("size", "width")}
    known |= {key: json.dumps(facts[key]) for key in ("mean", "std")}
    known["widths"] = ", ".join(map(str, sorted({*facts["widths"], facts["width"]})))
    for path, template in templates():
        to = folder / TOOLS / path
        to.parent.mkdir(parents=True, exist_ok=True)
        text = template.read_text(encoding="utf-8")
        if path.suffix == ".py":
            to.write_text(text, encoding="utf-8")
        elif path.name == "eva.yaml":
            for parts in (MANY, TWO):
                to.with_name(parts["file"]).write_text(Filled(text).substitute(known, **parts), encoding="utf-8")
        else:
            to.write_text(Filled(text).substitute(known), encoding="utf-8")


def templates() -> list[tuple[Path, Traversable]]:
    """(path inside tools/, file), sorted."""
    found: list[tuple[Path, Traversable]] = []
    todo = [(Path(), resources.files("pathryoshka.export") / "templates")]
    while todo:
        under, here = todo.pop()
        for item in here.iterdir():
            if item.is_dir() and item.name != "__pycache__":
                todo.append((under / item.name, item))
            elif item.name.endswith((".py", ".yaml", ".toml", ".md")):
                found.append((under / item.name, item))
    return sorted(found, key=lambda each: each[0])
