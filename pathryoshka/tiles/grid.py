"""The grid on one slide: where tiles with tissue lie, and their pixels at exactly the resolution asked.

A tile is read from the coarsest level that is still as fine as asked and resampled with Lanczos over its fractional
side, so antialiased. Tissue is told from glass by saturation, on a thumbnail.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pathryoshka.tiles.stats import saturation, tissue_threshold

JPEG_QUALITY = 92
THUMBNAIL = 2048
BELIEVABLE_MPP = (0.05, 20.0)
MOST_ENLARGED = 1.5
"""A slide may be this much coarser than asked; beyond it pixels would be made up."""


class GridError(ValueError):
    """A slide that cannot be cut as asked; the sentence names the option that helps."""


@dataclass(frozen=True)
class Grid:
    """How slides are cut: tiles of `size` pixels every `stride` pixels, both at `mpp`."""

    size: int
    stride: int
    mpp: float
    min_tissue: float
    seed: int


def resolution(opened: Any) -> float | None:
    """Micrometres a pixel of level 0, or None where the file is silent or says what no scanner makes."""
    try:
        x, y = (float(opened.properties[f"openslide.mpp-{axis}"]) for axis in "xy")
    except (KeyError, ValueError):
        return None
    mean = (x + y) / 2
    return mean if BELIEVABLE_MPP[0] <= mean <= BELIEVABLE_MPP[1] else None


def tissue_grid(opened: Any, level_0: float, grid: Grid) -> np.ndarray:
    """(x, y, tissue share) of the tiles with enough tissue, float64 [n, 3] in reading order; x, y in level-0 pixels."""
    scale = grid.mpp / level_0
    if scale * MOST_ENLARGED < 1:
        raise GridError(f"the slide is {level_0:.3g} mpp, too coarse for mpp={grid.mpp}; ask for mpp={level_0:.3g}")
    width, height = opened.dimensions
    side = grid.size * scale
    across, down = (math.floor((extent - side) / (grid.stride * scale) + 1 + 1e-6) for extent in (width, height))
    saturations = saturation(np.asarray(opened.get_thumbnail((THUMBNAIL, THUMBNAIL)).convert("RGB")))
    mask = saturations > tissue_threshold(saturations)
    shrink = np.array([mask.shape[1] / width, mask.shape[0] / height])
    corners = [(i * grid.stride * scale, j * grid.stride * scale) for j in range(down) for i in range(across)]
    found = []
    for corner in corners:
        left, top = np.floor(np.array(corner) * shrink).astype(int)
        right, bottom = np.ceil((np.array(corner) + side) * shrink).astype(int)
        share = mask[top:bottom, left:right].mean()
        if share >= grid.min_tissue:
            found.append((math.floor(corner[0] + 1e-6), math.floor(corner[1] + 1e-6), share))  # never past the edge
    return np.array(found).reshape(-1, 3)


def pixels(opened: Any, level_0: float, x: int, y: int, grid: Grid) -> bytes:
    """The tile whose corner is at level-0 pixel (x, y), as JPEG of `grid.size` pixels at `grid.mpp`."""
    scale = grid.mpp / level_0
    fine_enough = [k for k, down in enumerate(opened.level_downsamples) if down <= scale * 1.01]
    level = fine_enough[-1] if fine_enough else 0
    side = grid.size * scale / opened.level_downsamples[level]
    region = opened.read_region((x, y), level, (math.ceil(side), math.ceil(side)))
    opaque = Image.alpha_composite(Image.new("RGBA", region.size, "white"), region).convert("RGB")
    tile = opaque.resize((grid.size, grid.size), Image.Resampling.LANCZOS, box=(0, 0, side, side))
    sink = io.BytesIO()
    tile.save(sink, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # full colour: stain lives in it
    return sink.getvalue()
