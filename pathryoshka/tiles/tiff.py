"""Tiled TIFF, tile by tile: each is decoded alone and kept for a while. tifffile reads the structure, simplejpeg the
JPEGs, straight into arrays: in half the time that opening them as pictures takes.

Used where OpenSlide would give the same pixels more slowly, and for OME-TIFF, of whose levels it sees only one.
"""

from __future__ import annotations

import contextlib
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

JPEG, RGB, YCBCR, CONTIGUOUS = 7, 2, 6, 1
ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""APP14 with transform 0: three components that are red, green, blue; without it decoders assume YCbCr."""
UNITS = {"nm": 1e-3, "µm": 1.0, "\u03bcm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4}


class SlideError(ValueError):
    """A slide that cannot be cut as asked: one sentence that says why, without paths."""


@dataclass(frozen=True, eq=False)
class Level:
    """One level: a grid of tiles of one size."""

    page: Any
    width: int
    height: int
    tile_width: int
    tile_height: int

    @property
    def across(self) -> int:
        return -(-self.width // self.tile_width)


class Tiff:
    """An open tiled TIFF."""

    def __init__(self, file: Any, cache_bytes: int) -> None:
        """
        Args:
            file: a `tifffile.TiffFile`.
        """
        self.file, self.cache_bytes, self.cached = file, cache_bytes, 0
        self.tiles: OrderedDict[tuple[Level, int], np.ndarray] = OrderedDict()
        self.ome = bool(file.is_ome)
        plain = [level for page in file.pages if (level := plain_level(page))]
        sizes = [(level.width, level.height) for level in plain]
        self.jpeg = {
            size: level
            for size, level in zip(sizes, plain, strict=True)
            if sizes.count(size) == 1 and level.page.compression == JPEG and min(level.page.databytecounts) > 0
        }
        """Levels by size: those that are JPEG, without gaps, and the only ones of their size."""
        found = [plain_level(level.keyframe) for level in file.series[0].levels] if self.ome else plain
        self.levels = tuple(sorted((level for level in found if level), key=lambda level: -level.width))
        self.mpp = ome_mpp(file.ome_metadata or "") if self.ome else tag_mpp(file.pages[0])

    def read(self, level: Level, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A rectangle of the level, uint8 [height, width, 3]; white outside of it."""
        canvas = np.full((height, width, 3), 255, np.uint8)
        tw, th = level.tile_width, level.tile_height
        for row in range(max(y, 0) // th, -(-min(y + height, level.height) // th)):
            for column in range(max(x, 0) // tw, -(-min(x + width, level.width) // tw)):
                tile = self.tile(level, row * level.across + column)
                top, left = row * th - y, column * tw - x
                part = tile[max(-top, 0) : height - top, max(-left, 0) : width - left]
                top, left = max(top, 0), max(left, 0)
                canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
        return canvas

    def tile(self, level: Level, index: int) -> np.ndarray:
        """One tile, uint8 [h, w, 3], cut off where the level ends."""
        key = (level, index)
        if key in self.tiles:
            self.tiles.move_to_end(key)
            return self.tiles[key]
        row, column = divmod(index, level.across)
        right, bottom = level.width - column * level.tile_width, level.height - row * level.tile_height
        tile = self.decoded(level, index)[:bottom, :right]
        self.tiles[key] = tile
        self.cached += nbytes(tile)
        while self.cached > self.cache_bytes and len(self.tiles) > 1:
            self.cached -= nbytes(self.tiles.popitem(last=False)[1])
        return tile

    def encoded(self, level: Level, index: int) -> bytes:
        """The bytes of one tile as a file of its own where it is JPEG."""
        handle = self.file.filehandle
        handle.seek(level.page.dataoffsets[index])
        data = handle.read(level.page.databytecounts[index])
        if level.page.compression != JPEG:
            return data
        if level.page.jpegtables:
            data = level.page.jpegtables[:-2] + data[2:]
        return data[:2] + ADOBE_RGB + data[2:] if level.page.photometric == RGB else data

    def decoded(self, level: Level, index: int) -> np.ndarray:
        size = (level.tile_height, level.tile_width)
        try:
            data = self.encoded(level, index)
            if level.page.compression == JPEG:
                *claimed, colours, _ = simplejpeg().decode_jpeg_header(data)
                if tuple(claimed) != size or colours not in ("RGB", "YCbCr"):
                    raise ValueError
                return np.asarray(simplejpeg().decode_jpeg(data))
            pixels, _, shape = level.page.decode(data, index)
            full = np.full((*size, 3), 255, np.uint8)
            full[: shape[1], : shape[2]] = 255 if pixels is None else pixels[0, ..., :3]
            return full
        except Exception as error:  # decoders raise what they like: OSError, SyntaxError, struct.error, zlib.error ...
            raise SlideError(f"tile {index} of the level of {level.width} x {level.height} is damaged") from error


def nbytes(tile: np.ndarray) -> int:
    """What keeping a tile costs: all of it, also where it is cut off."""
    return int(tile.nbytes if tile.base is None else tile.base.nbytes)


def simplejpeg() -> Any:
    import simplejpeg  # an extra, as OpenSlide

    return simplejpeg


@contextlib.contextmanager
def open_tiff(path: str, cache_bytes: int) -> Iterator[Tiff | None]:
    """The file as `Tiff`, or None where it is no tiled TIFF that tifffile understands."""
    import tifffile  # an extra, as OpenSlide

    try:
        file = tifffile.TiffFile(path)
        tiff = Tiff(file, cache_bytes)
    except Exception:  # a damaged or other file: OpenSlide says what it is
        yield None
        return
    with file:
        yield tiff


def plain_level(page: Any) -> Level | None:
    """The page as a level of tiles, 8 bits, red, green and blue side by side, or None."""
    if not page.is_tiled or page.bitspersample != 8 or page.samplesperpixel < 3:
        return None
    if page.photometric not in (RGB, YCBCR) or page.planarconfig != CONTIGUOUS or page.imagedepth != 1:
        return None
    level = Level(page, page.imagewidth, page.imagelength, page.tilewidth, page.tilelength)
    rows = -(-level.height // level.tile_height)
    return level if len(page.dataoffsets) == len(page.databytecounts) == level.across * rows else None


def ome_mpp(xml: str) -> tuple[float | None, float | None]:
    """Micrometres a pixel across and down, as the first image of an OME description says."""
    pixels = re.search(r"<Pixels\b[^>]*>", xml)
    facts = dict(re.findall(r'(PhysicalSize\w+)="([^"]*)"', pixels[0])) if pixels else {}

    def size(axis: str) -> float | None:
        unit = UNITS.get(facts.get(f"PhysicalSize{axis}Unit", "µm"))
        try:
            return float(facts[f"PhysicalSize{axis}"]) * unit if unit else None
        except (KeyError, ValueError):
            return None

    return size("X"), size("Y")


def tag_mpp(page: Any) -> tuple[float | None, float | None]:
    """Micrometres a pixel across and down, as the resolution tags say."""
    unit = {2: 25_400.0, 3: 10_000.0}.get(page.tags.valueof("ResolutionUnit", 2))
    found = [page.tags.valueof(f"{axis}Resolution") for axis in "XY"]
    if unit is None or not all(isinstance(v, tuple) and v[0] and v[1] for v in found):
        return None, None
    return unit * found[0][1] / found[0][0], unit * found[1][1] / found[1][0]
