"""What the student computes in: ONNX Runtime on a CPU where there is a graph for it, else PyTorch.

An actor imports torch and timm for 5 s of CPU, 20 to 45 s on two busy cores, before its first view; ONNX Runtime is
there at once and takes two thirds of PyTorch's time a view. The graph is the one that the export carries (`pathryoshka
formats`), or is made here where there is so much to do that it pays. Vectors of one are those of the other to 1e-5, as
those of one processor are those of another, so the engine is no part of the recipe and a table may be continued in the
other one; the state of each unit says in which it was made.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pathryoshka import config, storage
from pathryoshka.embedding.recipe import EmbedRefused, Recipe
from pathryoshka.export.record import FILES, FOLDER, RECORD, FormatsError, parsed

if TYPE_CHECKING:
    from pathryoshka.embedding.sources import Unit

ONNX = FILES["onnx"]
WORTHWHILE = 4000
"""Tiles from which on a graph is made: that takes 8 s of CPU and the import of torch 5, two students in ONNX Runtime
save 5 s each at their start and 1.1 ms a tile."""
TILES_OF_A_SLIDE = 1000
"""Taken for a slide, whose tiles nobody has counted yet."""
Say = Callable[[str], None]


def tiles_of(units: Sequence[Unit]) -> int:
    """About how many there are to do."""
    return sum(TILES_OF_A_SLIDE if unit.rows is None else unit.rows for unit in units)


@dataclass(frozen=True)
class Engine:
    """A runtime and the student in it.

    Attributes:
        name: with its version. student: class with `embed(views)` and `tokens(views)`, made with `arguments`.
    """

    name: str
    student: type[Any]
    arguments: dict[str, Any]


def choose(student: str, recipe: Recipe, units: Sequence[Unit], device: str, cfg: config.Storage, say: Say) -> Engine:
    """The engine in which the export at `student` embeds `units` on a device, cpu or cuda.

    Raises:
        EmbedRefused: the ONNX file of the export is not what its record says.
    """
    graph = None
    if device == "cpu" and recipe.precision == "float32" and installed("onnxruntime"):
        graph = carried(student, recipe.model_id, cfg)
        if graph is None and tiles_of(units) >= WORTHWHILE and installed("onnx") and installed("onnxscript"):
            graph = made(student, cfg, say)
    if graph is not None:
        return in_onnx_runtime(graph, recipe.width)
    return in_torch(student, cfg, width=recipe.width, device=device, precision=recipe.precision)


def at_hand(student: str, facts: dict[str, Any], device: str, num_threads: int, cfg: config.Storage) -> Engine:
    """The engine in which the whole embedding of the export at `student` is served: what it carries, nothing is made.

    Raises:
        EmbedRefused: as `graph_at_hand`.
    """
    graph = graph_at_hand(student, facts["model_id"], device, cfg)
    if graph is not None:
        return in_onnx_runtime(graph, facts["width"], num_threads)
    return in_torch(student, cfg, width=facts["width"], device=device, num_threads=num_threads)


def graph_at_hand(student: str, model_id: str, device: str, cfg: config.Storage) -> bytes | None:
    """The graph in which an export is served, none where PyTorch has to; what `at_hand` refuses, without its imports.

    Raises:
        EmbedRefused: the ONNX file of the export is not what its record says, or no engine is installed for it.
    """
    graph = carried(student, model_id, cfg) if device == "cpu" and installed("onnxruntime") else None
    if graph is None and not installed("torch"):
        raise EmbedRefused(
            f"{student} has no graph for ONNX Runtime, and PyTorch is not installed here; "
            f"`pathryoshka formats {student} --only onnx` writes one where it is"
        )
    return graph


def in_onnx_runtime(graph: bytes, width: int, num_threads: int = 1) -> Engine:
    from pathryoshka.embedding.onnx_student import OnnxStudent

    given = {"graph": graph, "width": width, "num_threads": num_threads}
    return Engine(f"onnxruntime {installed('onnxruntime')}", OnnxStudent, given)


def in_torch(student: str, cfg: config.Storage, **given: Any) -> Engine:
    from pathryoshka.embedding.student import Student

    return Engine(f"torch {installed('torch')}", Student, {"path": student, "storage": cfg, **given})


def installed(package: str) -> str | None:
    """Its version; found without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def carried(student: str, model_id: str, cfg: config.Storage) -> bytes | None:
    """The ONNX file of the export, none where it has none of this model.

    Raises:
        EmbedRefused: its bytes are not those that were written.
    """
    base = storage.join(student, FOLDER)
    try:
        formats = parsed(storage.read_bytes(storage.join(base, RECORD), cfg))
        if formats.model_id != model_id or ONNX not in formats.files:
            return None
        data = storage.read_bytes(storage.join(base, ONNX), cfg)
    except storage.NotFound:
        return None
    except FormatsError as error:
        raise EmbedRefused(f"{student}: {error}") from None
    if hashlib.sha256(data).hexdigest() != formats.files[ONNX].sha256:
        raise EmbedRefused(f"{storage.join(base, ONNX)} is damaged; write it again with `pathryoshka formats`")
    return data


def made(student: str, cfg: config.Storage, say: Say) -> bytes | None:
    """The graph of the export, made now and held to its golden tiles; none where that cannot be done."""
    from pathryoshka.export.formats import graph_of_export

    began = time.perf_counter()
    try:
        graph = graph_of_export(student, cfg)
    except FormatsError as error:
        say(f"embed: PyTorch, since {error}")
        return None
    took = time.perf_counter() - began
    say(f"embed: a graph for ONNX Runtime, made in {took:.0f} s; `pathryoshka formats {student}` keeps one")
    return graph
