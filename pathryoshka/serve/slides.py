"""Slides for the page: their pyramids in Deep Zoom's numbering, and squares of them. Only what was named at the start.

A slide is known by its id and looked up among the files that the service was started with; no path is ever made of
what a request says.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pathryoshka.serve.schema import SlideInfo
from pathryoshka.serve.tile import Refused

TILE, OVERLAP = 254, 1
QUALITY = 85
MOST_OPEN = 8
LARGEST_SIDE = 8192
MPP = 0.5
"""Of a student, where the index does not say how large its tiles are: what encoders of pathology are made for."""


@dataclass(frozen=True)
class Slides:
    """Slide id -> file."""

    paths: Mapping[str, str]

    def info(self, slide_id: str, num_tiles: int, side: float | None, size: int) -> SlideInfo:
        """Facts of a slide. `side`: of its tiles in the index, if any; else what a student of `size` pixels sees."""
        _, _, (width, height), mpp = opened(self.path(slide_id))
        side = side or size * (MPP / mpp if mpp else 1)
        return SlideInfo(slide_id=slide_id, width=width, height=height, mpp=mpp, side=side, num_tiles=num_tiles)

    def path(self, slide_id: str) -> str:
        if slide_id not in self.paths:
            raise Refused(404, "there is no such slide; GET /v1/slides lists them")
        return self.paths[slide_id]

    def tile(self, slide_id: str, level: int, column: int, row: int) -> bytes:
        """JPEG of a tile of the pyramid. Raises Refused 404 where it has none."""
        _, pyramid, _, _ = opened(self.path(slide_id))
        try:
            tile = pyramid.get_tile(level, (column, row))
        except ValueError:
            raise Refused(404, "the slide has no such tile") from None
        sink = io.BytesIO()
        tile.convert("RGB").save(sink, "JPEG", quality=QUALITY)
        return sink.getvalue()

    def region(self, slide_id: str, x: float, y: float, side: float, size: int) -> np.ndarray:
        """The square with its middle at (x, y), in pixels of level 0, as uint8 [size, size, 3], white outside."""
        slide, _, (width, height), _ = opened(self.path(slide_id))
        if not (math.isfinite(x) and math.isfinite(y) and 0 <= x <= width and 0 <= y <= height):
            raise Refused(422, f"x and y lie within the slide, 0 to {width} and 0 to {height}")
        if not 1 <= side <= LARGEST_SIDE:
            raise Refused(422, f"a side is 1 to {LARGEST_SIDE} pixels of level 0")
        level = slide.get_best_level_for_downsample(side / size)
        pixels = max(1, round(side / slide.level_downsamples[level]))
        corner = (round(x - side / 2), round(y - side / 2))
        found = slide.read_region(corner, level, (pixels, pixels))
        over = Image.alpha_composite(Image.new("RGBA", found.size, "white"), found).convert("RGB")
        return np.array(over.resize((size, size), Image.Resampling.BILINEAR))


@lru_cache(MOST_OPEN)
def opened(path: str) -> tuple[Any, Any, tuple[int, int], float | None]:
    """(OpenSlide, its pyramid, size of level 0, micrometres a pixel)."""
    import openslide  # an extra
    from openslide.deepzoom import DeepZoomGenerator

    from pathryoshka.tiles.readers import believable

    slide = openslide.OpenSlide(path)
    mpp = believable(*(slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"))
    return slide, DeepZoomGenerator(slide, TILE, OVERLAP, limit_bounds=False), slide.dimensions, mpp


def find_slides(folder: str | Path | None) -> Slides:
    """The slides directly in `folder`, by their names without suffix.

    Raises:
        ValueError: no folder, none in it, or openslide is missing.
    """
    if folder is None:
        return Slides({})
    try:
        import openslide
    except ImportError:
        raise ValueError(
            "slides are read with openslide, which is not installed; pip install 'pathryoshka[slides]'"
        ) from None
    files = sorted(file for file in Path(folder).iterdir() if file.is_file()) if Path(folder).is_dir() else []
    found = {file.stem: str(file.resolve()) for file in files if openslide.OpenSlide.detect_format(str(file))}
    if not found:
        raise ValueError(f"{folder} is no folder with slides that OpenSlide reads")
    return Slides(found)
