"""`formats/browser/`: a page that embeds a tile in the browser, without a server behind it and without a network.

Plain HTML, CSS and ES modules from `page/`, ONNX Runtime Web from `page/vendor/`, and beside them the student. The
folder is whole by itself: any static file server may serve it (`python -m http.server -d <export>/formats/browser`);
opened as `file://` it does not work, for browsers load no modules from there.

ONNX Runtime Web 1.30.0 (MIT), from its npm package `onnxruntime-web`: `ort.wasm.bundle.min.mjs`, named .js since some
servers do not know .mjs, and `ort-wasm-simd-threaded.wasm`, the smallest of its builds, packed by xz (14.2 MB, 2.2
packed). It runs with a single thread: threads want headers that a plain file server does not send.
"""

from __future__ import annotations

import hashlib
import json
import lzma
from pathlib import Path

import numpy as np
from PIL import Image

from pathryoshka.export.load import Embedder

PAGE = Path(__file__).parent / "page"
PACKED = ".xz"


def write_page(to: Path, embedder: Embedder, tiles: np.ndarray, vectors: np.ndarray, onnx: Path) -> dict[str, str]:
    """Writes the page for a student into the folder `to`.

    Args:
        tiles, vectors: uint8 [N, size, size, 3] golden tiles and their whole vectors [N, D], what the page searches.
        onnx: the student's ONNX file.

    Returns:
        file below `to` -> SHA-256.
    """
    for source in sorted(PAGE.rglob("*")):
        if source.is_file():
            target = to / source.relative_to(PAGE)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == PACKED:
                target.with_suffix("").write_bytes(lzma.decompress(source.read_bytes()))
            else:
                target.write_bytes(source.read_bytes())
    (to / "golden").mkdir()
    names = [f"golden/{i}.png" for i in range(len(tiles))]
    for name, tile in zip(names, tiles, strict=True):
        Image.fromarray(tile).save(to / name)
    (to / "golden" / "vectors.f32").write_bytes(vectors.astype("<f4").tobytes())
    (to / "model.onnx").write_bytes(onnx.read_bytes())
    facts = {
        "model_id": embedder.model_id, "size": embedder.size, "width": vectors.shape[1], "widths": embedder.widths,
        "golden": names,
    }  # fmt: skip
    (to / "student.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    files = sorted(path for path in to.rglob("*") if path.is_file())
    return {path.relative_to(to).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
