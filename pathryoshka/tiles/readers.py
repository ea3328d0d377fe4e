"""Slides as they come, behind one small interface: sizes, resolution, and a rectangle of a level as RGB over white.

OpenSlide opens what it knows. Where a level is plain JPEG tiles in a TIFF, they are decoded here instead: OpenSlide's
compositing costs 26 ns a pixel even when everything is cached, decoding 5 ns (one EPYC core). Each level is compared
with OpenSlide, pixel for pixel, before it is trusted. OME-TIFF, and tiled TIFF that OpenSlide refuses, are read with
tifffile alone. Of a file's metadata nothing but sizes, resolution and the name of the format is ever looked at.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pathryoshka.tiles.tiff import SlideError, Tiff, open_tiff

CACHE_BYTES = 128 * 2**20
"""Decoded tiles kept while a slide is open: two rows of 256-pixel tiles across 250,000 pixels."""
BELIEVABLE_MPP = (0.05, 20.0)
MOST_PIXELS = 2**38
"""Of level 0; the largest scanners make 2^36. A header that claims more is damaged or made to hurt."""
LARGEST_TILE = 2**26
"""Pixels of one encoded tile, which must be decoded whole."""
SQUARE = 0.02
INTERPOLATED = 0.5
"""Mean difference, in grey levels, that OpenSlide's rounding of pixels between ours explains: at most .31 on the twelve
levels of three real slides, which are up to 3.7 off where nobody reckons with its interpolation."""
TRUSTED = ("aperio", "generic-tiff")
"""Vendors whose levels are one plain grid of tiles; others may let tiles overlap or leave some out."""


@dataclass(frozen=True)
class Opened:
    """An open slide. `read(level, x, y, width, height)` takes pixels of that level, uint8 [height, width, 3], white
    outside of the slide."""

    vendor: str
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each level, the finest first."""
    downsamples: tuple[float, ...]
    mpp: float | None
    """Micrometres a pixel of level 0, or None where the file is silent or says what no scanner makes."""
    read: Callable[[int, int, int, int, int], np.ndarray]


@contextlib.contextmanager
def open_slide(path: str) -> Iterator[Opened]:
    """The slide at a local path.

    Raises:
        SlideError: no reader knows it, it is damaged, or it claims a size that no slide has. So may `read`.
    """
    import openslide  # an extra: only cutting slides needs it

    with contextlib.ExitStack() as stack:
        tiff = stack.enter_context(open_tiff(path, CACHE_BYTES))
        try:
            if tiff is not None and tiff.ome:
                raise openslide.OpenSlideUnsupportedFormatError  # it would see one level of several, and no resolution
            slide = stack.enter_context(openslide.OpenSlide(path))
            slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
            opened = from_openslide(slide, tiff)
        except openslide.OpenSlideUnsupportedFormatError:
            if tiff is None or not tiff.levels:
                raise SlideError("no reader knows this format; convert it to a pyramidal TIFF") from None
            opened = from_tiff(tiff)
        except openslide.OpenSlideError as error:
            raise SlideError(without_paths(str(error), path)) from None
        width, height = opened.sizes[0]
        if min(width, height) < 1 or width * height > MOST_PIXELS:
            raise SlideError(f"it claims {width} x {height} pixels, which no slide has; the file is damaged")
        try:
            yield opened
        except openslide.OpenSlideError as error:
            raise SlideError(without_paths(str(error), path)) from None


def from_openslide(slide: Any, tiff: Tiff | None) -> Opened:
    facts = slide.properties
    for level in range(slide.level_count):
        sides = [facts.get(f"openslide.level[{level}].tile-{side}", "0") for side in ("width", "height")]
        if math.prod(int(side) for side in sides) > LARGEST_TILE:
            raise SlideError(f"it claims tiles of {sides[0]} x {sides[1]} pixels; the file is damaged")
    vendor, sizes = str(facts.get("openslide.vendor")), tuple(slide.level_dimensions)
    downsamples = tuple(
        snapped(sizes[0], size, said) for size, said in zip(sizes, slide.level_downsamples, strict=True)
    )

    def composed(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        said = slide.level_downsamples[level]
        region = slide.read_region((round(x * said), round(y * said)), level, (width, height))
        if region.getchannel("A").getextrema()[0] == 255:
            return np.array(region.convert("RGB"))
        return np.array(Image.alpha_composite(Image.new("RGBA", region.size, "white"), region).convert("RGB"))

    @cache
    def plain(level: int) -> bool:
        """Whether `tiff` reads what OpenSlide reads, tried in the middle of the level. Where the downsample that
        OpenSlide works out is not whole its pixels lie between ours, by known fractions."""
        if tiff is None or vendor not in TRUSTED or sizes[level] not in tiff.jpeg:
            return False
        side, said = tiff.jpeg[sizes[level]].tile_width, slide.level_downsamples[level]
        x, y = (extent // 2 for extent in sizes[level])
        mine = between(
            ours(level, x - 1, y - 1, side + 2, side + 2), round(x * said) / said - x, round(y * said) / said - y
        )
        difference = np.abs(mine - composed(level, x, y, side, side))
        return bool(difference.max() == 0 if level == 0 else difference.mean() < INTERPOLATED)

    def ours(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        assert tiff is not None
        return tiff.read(tiff.jpeg[sizes[level]], x, y, width, height)

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        return (ours if plain(level) else composed)(level, x, y, width, height)

    return Opened(vendor, sizes, downsamples, believable(*(facts.get(f"openslide.mpp-{axis}") for axis in "xy")), read)


def between(pixels: np.ndarray, right: float, down: float) -> np.ndarray:
    """uint8 [h + 2, w + 2, 3] moved by less than a pixel, bilinearly, without its margin: float32 [h, w, 3]."""
    moved = pixels.astype(np.float32)
    for axis, fraction in ((1, right), (0, down)):
        here, beyond = (np.delete(moved, ends, axis) for ends in ((0, -1), (0, 1) if fraction > 0 else (-2, -1)))
        moved = here + (beyond - here) * np.float32(abs(fraction))
    return moved


def from_tiff(tiff: Tiff) -> Opened:
    sizes = tuple((level.width, level.height) for level in tiff.levels)
    said = (math.sqrt(sizes[0][0] / w * sizes[0][1] / h) for w, h in sizes)
    downsamples = tuple(snapped(sizes[0], size, down) for size, down in zip(sizes, said, strict=True))

    def read(level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        return tiff.read(tiff.levels[level], x, y, width, height)

    return Opened("ome-tiff" if tiff.ome else "tiff", sizes, downsamples, believable(*tiff.mpp), read)


def snapped(whole: tuple[int, int], size: tuple[int, int], said: float) -> float:
    """The downsample of a level: whole where its sides are those of level 0 divided by it and rounded either way, as
    those who halve a picture again and again leave them; the quotient of the sides would be off by up to a pixel."""
    n = round(said)
    divided = all(side // n <= part <= -(-side // n) for side, part in zip(whole, size, strict=True)) if n else False
    return float(n) if divided else said


def believable(x: object, y: object) -> float | None:
    """Micrometres a pixel out of what a file says of its two axes.

    Raises:
        SlideError: pixels that are not square.
    """
    try:
        across, down = float(str(x)), float(str(y))
    except ValueError:
        return None
    low, high = BELIEVABLE_MPP
    if not (low <= across <= high and low <= down <= high):
        return None
    if abs(across - down) > SQUARE * max(across, down):
        raise SlideError(f"its pixels are not square ({across:.3g} x {down:.3g} micrometres); resample the slide first")
    return (across + down) / 2


def without_paths(text: str, path: str) -> str:
    """What a library says of a file, without its name and whatever else looks like a path: names may be patients'."""
    for known in (path, str(Path(path).parent), Path(path).name, Path(path).stem):
        text = text.replace(known, "")
    text = re.sub(r"\S*/\S*", "", text)
    said = " ".join(re.sub(r"^(Reading|Can't open|Opening)?\s*:", "", text).split()).strip(" :")
    return f"OpenSlide says: {said}" if said else "it cannot be read"
