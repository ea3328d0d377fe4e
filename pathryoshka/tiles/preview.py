"""A slide as pictures: where its tissue was found, and what became of each tile.

Drawn from what `tiles cut` leaves beside the shards (`cutting.py`): every position with its fate, the slide small, the
mask as small. The slide itself is not opened again, and never its label.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from pathryoshka import config, storage
from pathryoshka.tiles.cutting import beside

SIDE = 560
"""Longest side of a picture in pixels."""
KEPT = "kept"
# Okabe and Ito's colours (2008) as far as they stand out from stained tissue; "no_tissue" is most of a slide: faint.
FATES = {
    KEPT: (0, 114, 178),
    "no_tissue": (150, 150, 150),
    "black": (0, 0, 0),
    "pen": (213, 94, 0),
    "cap": (86, 180, 233),
    "white": (240, 228, 66),
    "blur": (0, 158, 115),
}
OTHER = (120, 60, 0)
VEILS = {KEPT: (45, 170), "no_tissue": (0, 50)}
"""Opacity (0 ... 255) of fill and outline where it is not that of a refused tile: tissue is to be seen through."""
OUTLINE = (20, 60, 20)
FEW = 8
"""Up to so many resolutions are taken for separate grids, of which one is drawn; more are one range, drawn together."""


@dataclass(frozen=True)
class Preview:
    """Two JPEGs of one slide, how many of the drawn tiles met each fate, and their resolution (none: a range)."""

    tissue: bytes
    tiles: bytes
    fates: dict[str, int]
    mpp: float | None


def preview(uri: str, slide: dict[str, Any], cfg: config.Storage) -> Preview | None:
    """Pictures of a slide, a row of slides.parquet; None where the cut left nothing to draw."""
    base = beside(uri, slide["slide_id"])
    try:
        found, thumbnail, mask = (storage.read_bytes(f"{base}.{end}", cfg) for end in ("parquet", "jpg", "mask.png"))
    except storage.NotFound:
        return None
    small = Image.open(io.BytesIO(thumbnail)).convert("RGB")
    tissue = Image.open(io.BytesIO(mask)).convert("L")
    small.thumbnail((SIDE, SIDE))
    positions = pq.read_table(io.BytesIO(found)).to_pydict()
    mpp = np.array(positions["mpp"], np.float32)
    several = np.unique(mpp)
    one = float(several[0]) if 0 < len(several) <= FEW else None
    drawn = np.ones(len(mpp), bool) if one is None else mpp == several[0]
    fates = [reason or KEPT for reason in positions["reason"]]
    places = np.array([positions["x"], positions["y"], positions["size"]], np.float64).T * small.width / slide["width"]
    shown = [(fate, *place) for fate, place, here in zip(fates, places.tolist(), drawn, strict=True) if here]
    return Preview(
        jpeg(outlined(small, tissue.resize(small.size, Image.Resampling.NEAREST))),
        jpeg(tinted(small, shown)),
        dict(Counter(fate for fate, *_ in shown)),
        one,
    )


def outlined(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """The picture with the border of the mask drawn in, and what is no tissue paler."""
    edge = ImageChops.difference(mask.filter(ImageFilter.MaxFilter(3)), mask.filter(ImageFilter.MinFilter(3)))
    pale = Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.55)
    out = Image.composite(picture, pale, mask)
    out.paste(OUTLINE, mask=edge)
    return out


def tinted(picture: Image.Image, tiles: list[tuple[Any, ...]]) -> Image.Image:
    """The picture with a veil in the colour of its fate over each (fate, left, top, side)."""
    veil = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(veil)
    for fate, left, top, side in tiles:
        colour = FATES.get(fate, OTHER)
        fill, line = VEILS.get(fate, (130, 230))
        box = (left, top, max(left + side - 1, left + 1), max(top + side - 1, top + 1))
        draw.rectangle(box, fill=(*colour, fill), outline=(*colour, line))
    return Image.alpha_composite(picture.convert("RGBA"), veil).convert("RGB")


def jpeg(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "JPEG", quality=82)
    return sink.getvalue()
