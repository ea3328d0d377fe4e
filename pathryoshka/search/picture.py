"""The query and its neighbours side by side, as one PNG."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pathryoshka.search.index import Index
from pathryoshka.search.query import Answer
from pathryoshka.tiles.views import decode, identity_view

SIDE, GAP, LINE, ACROSS = 160, 12, 15, 6
INK, FAINT, PAPER = "#1b1b1b", "#5f5f5f", "#ffffff"


def write_picture(index: Index, answer: Answer, to: Path) -> int:
    """Writes the picture; returns how many neighbours had none to show.

    Raises:
        ShardError, StorageError: the data set that the tiles are from cannot be read.
    """
    cells: list[tuple[str, str, str, np.ndarray | None]] = [("query", f"{answer.width} numbers", "", answer.pixels)]
    missing = 0
    for hit in answer.hits:
        image = index.image(hit.place)
        missing += image is None
        pixels = None if image is None else decode(image)
        cells.append((f"{hit.score:.3f}  {hit.label or ''}", hit.tile_id, f"{hit.patient_id}, {hit.site}", pixels))
    tall = SIDE + 3 * LINE + GAP
    rows = -(-len(cells) // ACROSS)
    sheet = Image.new("RGB", (GAP + min(ACROSS, len(cells)) * (SIDE + GAP), GAP + rows * tall), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for number, (first, second, third, pixels) in enumerate(cells):
        left, top = GAP + number % ACROSS * (SIDE + GAP), GAP + number // ACROSS * tall
        if pixels is None:
            draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline=FAINT)
            draw.text((left + 8, top + SIDE // 2), "no picture", FAINT, font)
        else:
            sheet.paste(Image.fromarray(identity_view(np.ascontiguousarray(pixels), SIDE)), (left, top))
        if not number:
            draw.rectangle((left - 3, top - 3, left + SIDE + 2, top + SIDE + 2), outline=INK, width=3)
        for line, (text, ink) in enumerate(((first, INK), (second, FAINT), (third, FAINT))):
            draw.text((left, top + SIDE + 2 + line * LINE), shortened(text, draw, font), ink, font)
    sink = io.BytesIO()
    sheet.save(sink, "PNG")
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(sink.getvalue())
    return missing


def shortened(text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much as fits below a tile; the end of a tile's name says more than its beginning."""
    if draw.textlength(text, font) <= SIDE:
        return text
    while text and draw.textlength("…" + text, font) > SIDE:
        text = text[1:]
    return "…" + text
