"""`formats/` of an exported folder: the student as ONNX, int8 ONNX and torch.export, each held to the golden vectors.

    model.onnx        ONNX Runtime, any batch size      model.int8.onnx   the same in eight bits, its loss written down
    model.pt2         torch.export.load                 formats.json      what they are; written last
    browser/          a page that embeds a tile without a server (browser/__init__.py)

All take uint8 tiles [B, size, size, 3] and give the whole embedding [B, D]: a width is `normalize(out[:, :width])`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from pathryoshka import config
from pathryoshka.export.card import with_formats
from pathryoshka.export.facts import local_folder
from pathryoshka.export.load import Embedder, load
from pathryoshka.export.record import FILES, FOLDER, RECORD, Format, Formats, FormatsError, read_formats
from pathryoshka.export.runtimes import encode_all, least_cosines, needs, open_format

LEAST = 0.9999
"""Cosine that a format of full precision must reach on every golden tile at every width."""
SLACK = 0.01
"""What an int8 file may lose in cosine between the machine that made it and another one."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Golden:
    """uint8 [N, size, size, 3], and the whole vectors fp32 [N, D] that PyTorch gave for them."""

    tiles: np.ndarray
    vectors: np.ndarray


def write_formats(
    path: str | Path,
    kinds: Sequence[str] = tuple(FILES),
    storage: config.Storage | None = None,
    *,
    browser: bool = False,
    score: Callable[[Embedder, Mapping[str, Path]], Sequence[dict[str, Any]]] | None = None,
    say: Say = lambda line: None,
) -> Formats:
    """Writes the formats `kinds` (keys of FILES) of the export `path` into its `formats/`, and what they are into its
    card. Formats of the same student that were there stay.

    Args:
        browser: also the page; needs the ONNX file.
        score: (student, name -> file) -> rows for `Formats.scores`; none = not probed, and earlier rows go.

    Raises:
        MissingPackage: onnx or onnxruntime is not installed.
        LoadError: `path` is no export. FormatsError: a format that does not reproduce the golden vectors.
    """
    from pathryoshka import storage as store

    cfg = storage or config.Storage()
    if wants_onnx := bool({"onnx", "int8"} & set(kinds)) or browser:
        needs("onnx", "onnxscript", "onnxruntime")
    with local_folder(path, cfg) as folder, tempfile.TemporaryDirectory(prefix="pathryoshka-formats-") as name:
        embedder, golden, scratch = load(folder), read_golden(folder), Path(name)
        before = earlier(folder, embedder)
        made: dict[str, Format] = {}
        if wants_onnx:
            from pathryoshka.export.graph import OPSET, write_onnx

            write_onnx(embedder, scratch / FILES["onnx"])
            made[FILES["onnx"]] = measured(scratch / FILES["onnx"], embedder, golden, {"opset": OPSET})
        if "int8" in kinds:
            made[FILES["int8"]] = int8_of(scratch, embedder, golden)
        if "torch-export" in kinds:
            from pathryoshka.export.graph import write_program

            write_program(embedder, scratch / FILES["torch-export"])
            made[FILES["torch-export"]] = measured(scratch / FILES["torch-export"], embedder, golden, {})
        for file, one in made.items():
            refuse_other(file, one)
            say(line_of(file, one))
        rows = tuple(score(embedder, {file: scratch / file for file in made})) if score else ()
        page = before.page if before else {}
        if browser:
            from pathryoshka.export.browser import write_page

            page = write_page(scratch / "browser", embedder, golden.tiles, golden.vectors, scratch / FILES["onnx"])
        formats = Formats(
            embedder.model_id, embedder.size, embedder.widths,
            {**(before.files if before else {}), **made}, page, rows,
        )  # fmt: skip
        card = with_formats((folder / "README.md").read_text(encoding="utf-8"), formats.as_json())
        to = store.join(str(path), FOLDER)
        # The record makes the files formats of this student: gone before anything changes, there again when all is.
        store.delete(store.join(to, RECORD), cfg)
        store.upload_folder(scratch, to, cfg)
        store.write_bytes(store.join(str(path), "README.md"), card.encode(), cfg)
        store.write_json(store.join(to, RECORD), formats.as_json(), cfg)
    return formats


def graph_of_export(path: str | Path, storage: config.Storage) -> bytes:
    """The ONNX file of the export at `path`, held to its golden tiles; nothing is written into the export.

    Raises:
        FormatsError: the network cannot be exported, or the file does not reproduce the golden vectors.
    """
    import torch

    from pathryoshka.export.graph import OPSET, write_onnx

    with local_folder(path, storage) as folder, tempfile.TemporaryDirectory(prefix="pathryoshka-formats-") as name:
        embedder, file = load(folder), Path(name, FILES["onnx"])
        try:
            write_onnx(embedder, file)
        except torch.onnx.errors.OnnxExporterError as error:
            raise FormatsError(f"{path} cannot be exported to ONNX: {str(error).splitlines()[0]}") from None
        refuse_other(file.name, measured(file, embedder, read_golden(folder), {"opset": OPSET}))
        return file.read_bytes()


def read_golden(folder: Path) -> Golden:
    vectors = load_file(folder / "golden.safetensors")["vectors"].numpy()
    tiles = [np.asarray(Image.open(folder / "golden" / f"{i}.png").convert("RGB")) for i in range(len(vectors))]
    return Golden(np.stack(tiles), vectors)


def earlier(folder: Path, embedder: Embedder) -> Formats | None:
    """What is there of the same student; formats of another one are as good as none."""
    if not (folder / FOLDER / RECORD).is_file():
        return None
    found = read_formats(folder)
    return found if found.model_id == embedder.model_id else None


def measured(file: Path, embedder: Embedder, golden: Golden, made: dict[str, Any]) -> Format:
    got = encode_all(open_format(file), golden.tiles)
    digest, cosine = sha256(file), least_cosines(got, golden.vectors, embedder.widths)
    return Format(digest, file.stat().st_size, cosine, made)


def int8_of(scratch: Path, embedder: Embedder, golden: Golden) -> Format:
    from pathryoshka.export.int8 import turned, write_int8

    file = scratch / FILES["int8"]

    def worst(path: Path) -> float:
        return min(measured(path, embedder, golden, {}).cosine.values())

    tiles = turned(golden.tiles)
    found = write_int8(scratch / FILES["onnx"], file, tiles, worst)
    one = measured(file, embedder, golden, {})
    return replace(
        one, made={"way": found.way, "tried": found.tried, "calibrated_on": f"{len(tiles)} turned golden tiles"}
    )


def refuse_other(file: str, one: Format) -> None:
    """Full precision must hold; int8 loses something, which is written down, but must be vectors at all."""
    worst = min(one.cosine.values())
    if file != FILES["int8"] and worst < LEAST:
        width = min(one.cosine, key=lambda each: one.cosine[each])
        raise FormatsError(
            f"{file} does not give the student's vectors: cosine {worst:.6f} at width {width} where {LEAST} is asked; "
            "nothing was written"
        )
    if worst <= 0:
        raise FormatsError(f"{file} gives no vectors of this student (cosine {worst:.3f}); leave int8 out with --only")


def line_of(file: str, one: Format) -> str:
    cosines = ", ".join(f"{width}: {value:.6f}" for width, value in one.cosine.items())
    how = f" ({one.made['way']})" if "way" in one.made else ""
    return f"{file}{how}: {one.num_bytes / 1e3:.0f} kB; least cosine to PyTorch by width {cosines}"


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- checking


def check_formats(folder: Path, model_id: str) -> dict[str, float | str]:
    """Runs every format of the exported `folder` on the golden tiles, here.

    Returns:
        file -> smallest cosine over tiles and widths, or a sentence that says why it could not be run here.

    Raises:
        FormatsError: a file that is damaged, missing, foreign or gives other vectors.
    """
    if not (folder / FOLDER).is_dir():
        return {}
    formats = read_formats(folder)
    if formats.model_id != model_id:
        raise FormatsError(
            f"{FOLDER}/ belongs to model {formats.model_id[:16]}, this export is {model_id[:16]}; "
            "write it again with `pathryoshka formats`"
        )
    digests = {**{name: one.sha256 for name, one in formats.files.items()},
               **{f"browser/{name}": digest for name, digest in formats.page.items()}}  # fmt: skip
    there = {str(path.relative_to(folder / FOLDER)) for path in (folder / FOLDER).rglob("*") if path.is_file()}
    if foreign := sorted(there - set(digests) - {RECORD}):
        raise FormatsError(f"{FOLDER}/{foreign[0]} is not listed in {RECORD}; delete it")
    for name, digest in digests.items():
        if name not in there:
            raise FormatsError(f"{FOLDER}/{name} is missing; write it again with `pathryoshka formats`")
        if (found := sha256(folder / FOLDER / name)) != digest:
            raise FormatsError(f"{FOLDER}/{name} is {found[:16]}, not {digest[:16]}: damaged or foreign; copy it again")
    golden = read_golden(folder)
    return {name: run_again(folder / FOLDER / name, one, golden) for name, one in formats.files.items()}


def run_again(file: Path, one: Format, golden: Golden) -> float | str:
    try:
        encode = open_format(file)
    except ImportError as error:
        return f"not run here: {error}"
    found = least_cosines(encode_all(encode, golden.tiles), golden.vectors, tuple(one.cosine))
    for width, value in found.items():
        least = one.cosine[width] - SLACK if file.name == FILES["int8"] else LEAST
        if value < least:
            raise FormatsError(
                f"{FOLDER}/{file.name} gives other vectors on this machine: cosine {value:.6f} at width {width} where "
                f"{least:.4f} is asked; write it again here with `pathryoshka formats`"
            )
    return min(found.values())
