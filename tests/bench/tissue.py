"""Embeddings of real tissue for measurements of search: every image and slide of a folder, by EfficientNet-Lite0.

The encoder is not nested, so its numbers are rotated to their principal directions: the first carry most, as in an
embedding that was trained to be cut.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from pathryoshka import config
from pathryoshka.teachers.encoder import load_encoder

SIDE, STEP = 224, 448
"""Of a tile; from one to the next on a slide, in pixels."""
FLAT = 12.0
"""Grey levels of standard deviation below which a square is glass."""


def squares(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(image or slide, uint8 [224, 224, 3]) on a grid over every image, and on a wider one over every slide."""
    files = [path for path in sorted((folder / "tiles").rglob("*")) if path.suffix in (".jpeg", ".jpg", ".png", ".bmp")]
    for path in files:
        image = np.asarray(Image.open(path).convert("RGB"))
        for y in range(0, image.shape[0] - SIDE + 1, SIDE):
            for x in range(0, image.shape[1] - SIDE + 1, SIDE):
                yield path.name, image[y : y + SIDE, x : x + SIDE]
    for path in sorted((folder / "slides").iterdir()):
        if path.suffix not in (".svs", ".tif"):
            continue
        with openslide.OpenSlide(str(path)) as slide:
            width, height = slide.dimensions
            for y in range(0, height - SIDE + 1, STEP):
                strip = np.asarray(slide.read_region((0, y), 0, (width, SIDE)).convert("RGB"))
                for x in range(0, width - SIDE + 1, STEP):
                    tile = strip[:, x : x + SIDE]
                    if tile[..., 1].std() > FLAT:
                        yield f"{path.name}/{x // (8 * SIDE)}_{y // (8 * SIDE)}", tile


def real_embeddings(folder: Path, width: int) -> tuple[np.ndarray, np.ndarray]:
    """fp32 rows [N, width] and held-out queries [Q, width] of length 1: every tenth image, or region of a slide."""
    encoder = load_encoder("lite0", config.Teacher(model="efficientnet_lite0", device="cpu"), (7, 7), "cpu")
    names, vectors, batch = [], [], []

    def flush() -> None:
        if batch:
            vectors.append(encoder(np.stack(batch))["summary"].float().numpy())
            batch.clear()

    for name, tile in squares(folder):
        names.append(name)
        batch.append(tile)
        if len(batch) == 32:
            flush()
    flush()
    x_ND = np.concatenate(vectors)
    asks = np.array([zlib.crc32(name.encode()) % 10 == 0 for name in names])
    middle = x_ND[~asks].mean(0)
    x_ND -= middle  # what all tiles share says nothing of any
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    x_ND = x_ND @ np.linalg.svd(x_ND[~asks], full_matrices=False)[2][:width].T
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    return x_ND[~asks], x_ND[asks]
