"""The pixels of tiles at exactly the resolution asked: read in strips, resampled one by one, judged and encoded.

A tile comes from the coarsest level that is still as fine as asked and is resampled with antialiasing (bicubic, in
integers: the same bytes on every processor) over its fractional side. Where its corner is a whole pixel of that level,
as on level 0 always, torch does it: within one grey level of Pillow (mean .0002 to .004) in a sixth of its time,
0.13 ms a tile. Corners between pixels are beyond torch, and Pillow's, which then sees a little of the surroundings.
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
from pathryoshka.tiles.tiff import simplejpeg

FINE_ENOUGH = 1.01
STRIP_PIXELS = 2**24
WHOLE = 1e-6
"""Pixels of which nothing is to be seen: differences of sides that are rounding of floats."""
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
) -> Iterator[tuple[int, np.ndarray | None]]:
    """(index, uint8 [cut.size, cut.size, 3]) of the positions `indices`, in reading order; None for glass, which is
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
            for i, left in zip(strip, lefts.tolist(), strict=True):
                # a level may be half a pixel short of the slide
                box = (left - x0, top - y0, min(left - x0 + side, x1 - x0), min(top - y0 + side, y1 - y0))
                yield i, None if "white" not in cut.keep and flat(read, box) else resampled(read, box, cut.size)


Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


def flat(pixels: np.ndarray, box: Box) -> bool:
    """Whether green of uint8 [h, w, 3] hardly varies in `box`, by every second pixel of it."""
    left, top, right, bottom = (int(v) for v in box)
    part = pixels[top:bottom:2, left:right:2, 1].astype(np.float32).ravel()
    part -= part.mean()
    return bool(part @ part < FLATTEST**2 * part.size)


def resampled(pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
    """The part of uint8 [h, w, 3] in `box` as uint8 [size, size, 3]."""
    left, top, right, bottom = box
    side = right - left
    if left == int(left) and top == int(top) and abs(bottom - top - side) < WHOLE:
        across = math.ceil(side - WHOLE)
        part = pixels[int(top) : int(top) + across, int(left) : int(left) + across]
        return np.ascontiguousarray(part) if abs(side - size) < WHOLE else from_corner(part, side, size)
    margin = SUPPORT * max(1.0, side / size)
    x0, y0 = (max(0, math.floor(corner - margin)) for corner in (left, top))
    part = pixels[y0 : math.ceil(bottom + margin), x0 : math.ceil(right + margin)]
    shifted = (left - x0, top - y0, right - x0, bottom - y0)
    return np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC, box=shifted))


def from_corner(part: np.ndarray, side: float, size: int) -> np.ndarray:
    """The upper left `side` x `side` pixels of uint8 [h, w, 3] as uint8 [size, size, 3]."""
    import torch  # seconds and 200 MB, which a process that cuts at another resolution's own pixels can do without

    out = np.empty((1, size, size, 3), np.uint8)
    planes, planes_out = (torch.from_numpy(array).permute(0, 3, 1, 2) for array in (part[None], out))
    scale = size / side
    # what `interpolate(antialias=True)` calls; only here does it take a fractional side and where to write the pixels
    torch.ops.aten._upsample_bicubic2d_aa.out(planes, [size, size], False, scale, scale, out=planes_out)
    return out[0]


def blurred(tile: np.ndarray) -> bool:
    """Whether uint8 [h, w, 3] is out of focus, by every second row of it."""
    green = tile[..., 1].astype(np.int16)
    around = green[:-2:2, 1:-1] + green[2::2, 1:-1] + green[1:-1:2, :-2] + green[1:-1:2, 2:]
    edges = (around - 4 * green[1:-1:2, 1:-1]).astype(np.float32).ravel()
    return bool(edges @ edges < BLURRED * edges.size)


def encoded(tile: np.ndarray, cut: Cut) -> bytes:
    """uint8 [h, w, 3] as a file: JPEG in full colour (stain lives in it), WebP, or PNG, which loses nothing."""
    if cut.image_format == "jpeg":
        return simplejpeg().encode_jpeg(tile, quality=cut.quality, colorsubsampling="444", fastdct=False)
    sink = io.BytesIO()
    if cut.image_format == "webp":
        Image.fromarray(tile).save(sink, "WEBP", quality=cut.quality, method=2)
    else:
        Image.fromarray(tile).save(sink, "PNG", compress_level=3)
    return sink.getvalue()


def kept(found: np.ndarray) -> list[int]:
    return np.flatnonzero(found["reason"] == KEPT).tolist()
