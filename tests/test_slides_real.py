"""Tiles agree with an independent reading: OpenSlide's `read_region` and Pillow's resize, nothing of ours.

Both read the coarsest level that is fine enough. A slide's own coarser levels are other pictures than its level 0
shrunk: against that, tiles at 2.6 pixels of level 0 are 1.1 grey levels (her2st) off. On the TCGA slide OpenSlide takes
its second level, half the first, for 1/2.0005, so that at its far end tiles lie a pixel beside where they should; its
own reading of that level is 2.9 to 7.4 grey levels off level 0, ours 2.7 to 6.9. That slide is compared at level 0.

With PATHRYOSHKA_REAL_DATA, the folder of the development data, on every readable slide of it, too.
"""

from __future__ import annotations

import io
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pathryoshka import config
from pathryoshka.tiles import making
from pathryoshka.tiles.shards import iter_tiles
from pathryoshka.tiles.slides import cut_slides

openslide = pytest.importorskip("openslide", reason="SKIPPED: openslide is not installed, no slide was cut")

CFG = config.Storage(max_attempts=2)
CMU = Path(__file__).parent / "data" / "slides" / "CMU-1-Small-Region.svs"
REAL = os.environ.get("PATHRYOSHKA_REAL_DATA")
MPP = {"TCGA-CR-7395-01A-01-TS1.svs": 0.25} | {f"her2st_{name}_pyramid.tif": 0.69 for name in ("B4", "C2", "C4")}
without = pytest.mark.skipif(not REAL, reason="SKIPPED: PATHRYOSHKA_REAL_DATA does not name the development data")
RELATIVE = (1.0, 1.37, 2.6)
"""Resolutions asked for, in pixels of level 0."""


def errors(slide: Path, level_0: float, scale: float, to: Path, size: int = 256) -> tuple[float, float, int]:
    """Mean error in grey levels over all tiles and over those at the far borders, and how many those are."""
    options: dict[str, Any] = {"min_tissue": 0.0, "keep": ("pen", "black", "white", "blur"), "image_format": "png"}
    cut_slides([slide], str(to), CFG, size=size, mpp=level_0 * scale, slide_mpp=level_0, cap=160, **options)
    rows = pa.concat_tables(iter_tiles(str(to), CFG)).to_pylist()
    side, found, border = size * scale, [], []
    with openslide.OpenSlide(slide) as opened:
        for row in rows:
            level = opened.get_best_level_for_downsample(scale)
            part = side / opened.level_downsamples[level]
            region = opened.read_region((row["x"], row["y"]), level, (math.ceil(part), math.ceil(part)))
            opaque = Image.alpha_composite(Image.new("RGBA", region.size, "white"), region).convert("RGB")
            there = opaque.resize((size, size), Image.Resampling.BICUBIC, box=(0, 0, part, part))
            tile = np.asarray(Image.open(io.BytesIO(row["image"])))
            found.append(np.abs(np.subtract(tile, there, dtype=np.int16)).mean())
            if row["x"] + 2 * side > opened.dimensions[0] or row["y"] + 2 * side > opened.dimensions[1]:
                border.append(found[-1])
    return float(np.mean(found)), float(np.max(border, initial=0)), len(border)


@pytest.fixture(autouse=True)
def in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "run_tasks", lambda function, items: [function(item) for item in items])


@pytest.mark.parametrize("scale", RELATIVE)
def test_the_slide_that_ships(tmp_path: Path, scale: float) -> None:
    mean, border, num_border = errors(CMU, 0.499, scale, tmp_path / "to")
    assert mean <= (1e-9 if scale == 1 else 0.5) and border <= 1 and num_border >= 3, (mean, border, num_border)


@without
@pytest.mark.slow
@pytest.mark.parametrize("scale", RELATIVE)
@pytest.mark.parametrize("name", MPP)
def test_real_slides(tmp_path: Path, name: str, scale: float) -> None:
    scale = min(scale, 1.9) if name.startswith("TCGA") else scale
    mean, border, num_border = errors(Path(str(REAL), "slides", name), MPP[name], scale, tmp_path / "to")
    print(f"{name} x {scale}: {mean:.3f}, worst at a border {border:.3f}")
    assert mean <= 1 and num_border, (mean, border)
