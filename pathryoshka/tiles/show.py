"""A contact sheet: some tiles of a data set with what they are called, to look at before training on them."""

from __future__ import annotations

import io
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pathryoshka import config, storage
from pathryoshka.tiles.shards import Manifest, read_manifest, read_row_group
from pathryoshka.tiles.views import TileError, decode

CELL, GAP, LINE, COLUMNS = 160, 8, 14, 8
SHOWN = ("tile_id", "patient_id", "site", "label", "image")


def show(uri: str, cfg: config.Storage, to: Path, n: int = 48, seed: int = 0) -> None:
    """Writes `n` tiles (all when there are fewer), drawn evenly without repeats, as a PNG with label and patient below.

    Raises:
        ShardError: no readable data set at `uri`.
    """
    manifest = read_manifest(uri, cfg)
    rows = sample(uri, cfg, manifest, n, seed)
    columns = min(COLUMNS, len(rows))
    width = GAP + columns * (CELL + GAP)
    height = LINE + 2 * GAP + -(-len(rows) // columns) * (CELL + 2 * LINE + GAP)
    sheet = Image.new("RGB", (max(width, 480), height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    kinds = [f"{len(manifest.counts.get(kind, ()))} {kind}s" for kind in ("patient", "site", "label")]
    title = f"{len(rows)} of {manifest.rows} tiles, {', '.join(kinds)}, {manifest.made_by.get('kind', 'tiles')}"
    draw.text((GAP, GAP), title, "black", font)
    for i, row in enumerate(rows):
        x, y = GAP + i % columns * (CELL + GAP), LINE + 2 * GAP + i // columns * (CELL + 2 * LINE + GAP)
        sheet.paste(thumbnail(row["image"]), (x, y))
        for line, text in enumerate((row["label"] or "no label", f"{row['patient_id']}, {row['site']}")):
            draw.text((x, y + CELL + line * LINE), fitting(text, font), "black", font)
    sink = io.BytesIO()
    sheet.save(sink, "PNG")
    storage.write_bytes(str(to), sink.getvalue(), cfg)


def sample(uri: str, cfg: config.Storage, manifest: Manifest, n: int, seed: int) -> list[dict[str, Any]]:
    """`n` rows drawn evenly, those of one label side by side; only the row groups they lie in are read."""
    groups = [(shard, group) for shard in manifest.shards for group in range(len(shard.row_groups))]
    ends = np.cumsum([shard.row_groups[group] for shard, group in groups])
    drawn = np.sort(np.random.default_rng(seed).choice(manifest.rows, min(n, manifest.rows), replace=False))
    wanted: dict[int, list[int]] = defaultdict(list)
    for index in drawn:
        group = int(np.searchsorted(ends, index, side="right"))
        wanted[group].append(int(index - (ends[group - 1] if group else 0)))

    def read(group: int) -> list[dict[str, Any]]:
        return read_row_group(uri, cfg, *groups[group], SHOWN).take(wanted[group]).to_pylist()

    with ThreadPoolExecutor(4) as pool:
        rows = [row for part in pool.map(read, wanted) for row in part]
    return sorted(rows, key=lambda row: (row["label"] or "", row["tile_id"]))


def thumbnail(image: bytes) -> Image.Image:
    """The tile inside CELL x CELL; a red cell when it cannot be decoded."""
    cell = Image.new("RGB", (CELL, CELL), (240, 240, 240))
    try:
        tile = Image.fromarray(decode(image))
    except TileError:
        return Image.new("RGB", (CELL, CELL), (200, 30, 30))
    scale = CELL / max(tile.size)
    width, height = (max(1, round(side * scale)) for side in tile.size)
    small = tile.resize((width, height), Image.Resampling.LANCZOS)
    cell.paste(small, ((CELL - width) // 2, (CELL - height) // 2))
    return cell


def fitting(text: str, font: Any) -> str:
    """`text`, its start left out where it is wider than a cell: the ends of names tell them apart."""
    if font.getlength(text) <= CELL:
        return text
    while text and font.getlength("..." + text) > CELL:
        text = text[1:]
    return "..." + text
