"""The pixels of tiles at exactly the resolution asked: read in strips, resampled one by one, judged and encoded.

A tile comes from the coarsest level that is still as fine as asked and is resampled with antialiasing (Pillow's
bicubic, in integers: the same bytes on every processor) over its fractional side, seeing a little of its surroundings.
Reading a row of neighbours at once decodes what they share only once.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from pathryoshka.tiles.grid import KEPT, Cut, strips
from pathryoshka.tiles.readers import Opened

FINE_ENOUGH = 1.01
STRIP_PIXELS = 2**24
SUPPORT = 2
"""Pixels to either side that bicubic resampling looks at, where it does not shrink."""
FLATTEST = 8.0
"""Standard deviation of green, in grey levels, below which a tile is glass whatever its saturation: on three sections
under tinted glass, tiles of glass have at most 4 and tiles of tissue at least 20."""
BLURRED = 15.0
"""Mean square of the Laplacian of green below which a tile is out of focus. Sharp tiles with tissue of seven slides and
tile sets at 0.25 ... 0.7 mpp have at least 122, after a Gaussian blur of 2 pixels 4 ... 50 (median 17), of 3 pixels at
most 13. Photographs enlarged afterwards (LC25000: 6 ... 280) need `keep`."""


def level_for(opened: Opened, scale: float) -> int:
    """The coarsest level whose pixels are at most `scale` pixels of level 0, or level 0."""
    fine = [k for k, downsample in enumerate(opened.downsamples) if downsample <= scale * FINE_ENOUGH]
    return fine[-1] if fine else 0


def tiles(
    opened: Opened, found: np.ndarray, indices: Sequence[int], cut: Cut
) -> Iterator[tuple[int, Image.Image | None]]:
    """(index, RGB picture of `cut.size` pixels) of the positions `indices`, in reading order; None for glass, which is
    told before it costs a resampling."""
    for resolution in np.unique(found["side"][list(indices)]):
        level = level_for(opened, resolution / cut.size)
        downsample, side = opened.downsamples[level], resolution / opened.downsamples[level]
        margin = SUPPORT * max(1.0, side / cut.size)
        same = [i for i in indices if found["side"][i] == resolution]
        width, height = opened.sizes[level]
        for strip in strips(found, same, STRIP_PIXELS / side * downsample):
            lefts, top = found["x"][strip] / downsample, float(found["y"][strip[0]] / downsample)
            x0, y0 = (max(0, math.floor(corner - margin)) for corner in (float(lefts[0]), top))
            x1 = min(width, math.ceil(float(lefts[-1]) + side + margin))
            y1 = min(height, math.ceil(top + side + margin))
            read = opened.read(level, x0, y0, x1 - x0, y1 - y0)
            green = np.asarray(read.getchannel("G"))
            for i, left in zip(strip, lefts.tolist(), strict=True):
                # a level may be half a pixel short of the slide
                box = (left - x0, top - y0, min(left - x0 + side, x1 - x0), min(top - y0 + side, y1 - y0))
                yield i, None if "white" not in cut.keep and flat(green, box) else resampled(read, box, cut.size)


def flat(green: np.ndarray, box: tuple[float, float, float, float]) -> bool:
    """Whether the part of uint8 [h, w] in `box` hardly varies, by every second pixel of it."""
    left, top, right, bottom = (int(v) for v in box)
    return bool(green[top:bottom:2, left:right:2].std() < FLATTEST)


def resampled(image: Image.Image, box: tuple[float, float, float, float], size: int) -> Image.Image:
    """The part of `image` in `box` as `size` x `size` pixels."""
    if all(v == int(v) for v in box) and box[2] - box[0] == box[3] - box[1] == size:
        return image.crop(box)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)


def blurred(tile: np.ndarray) -> bool:
    """Whether uint8 [h, w, 3] is out of focus, by every second row of it."""
    green = tile[..., 1].astype(np.int16)
    around = green[:-2:2, 1:-1] + green[2::2, 1:-1] + green[1:-1:2, :-2] + green[1:-1:2, 2:]
    edges = (around - 4 * green[1:-1:2, 1:-1]).astype(np.float32).ravel()
    return bool(edges @ edges < BLURRED * edges.size)


def encoded(tile: Image.Image, cut: Cut) -> bytes:
    """The tile as a file: JPEG in full colour (stain lives in it), WebP, or PNG, which loses nothing."""
    sink = io.BytesIO()
    if cut.image_format == "jpeg":
        tile.save(sink, "JPEG", quality=cut.quality, subsampling=0)
    elif cut.image_format == "webp":
        tile.save(sink, "WEBP", quality=cut.quality, method=2)
    else:
        tile.save(sink, "PNG", compress_level=3)
    return sink.getvalue()


def kept(found: np.ndarray) -> list[int]:
    return np.flatnonzero(found["reason"] == KEPT).tolist()
