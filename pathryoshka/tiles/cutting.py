"""One slide: its tiles as shards, and beside them what was found where, its picture and its tissue.

Everything of a slide is written by one call of `cut_slide`; what it says of the slide, last and atomically, is written
by the caller. The same slide and cut give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pathryoshka import config, storage
from pathryoshka.tiles.grid import KEPT, REASONS, Cut, judge, positions
from pathryoshka.tiles.pixels import blurred, encoded, kept, tiles
from pathryoshka.tiles.readers import Opened, open_slide
from pathryoshka.tiles.shards import SCHEMA, ShardEntry, write_shard
from pathryoshka.tiles.sources import dealt
from pathryoshka.tiles.stats import Frozen, TileStats
from pathryoshka.tiles.tiff import SlideError
from pathryoshka.tiles.tissue import Picture, picture, tissue_mask, users_mask

FOLDER = "_slides"
ROWS_PER_SHARD = 2048
BYTES_PER_SHARD = 256 * 2**20
PREVIEW = 1024


@dataclass(frozen=True)
class Slide:
    """One slide to cut: where it is, and what its tiles are told about it."""

    uri: str
    slide_id: str
    patient_id: str
    site: str
    label: str | None = None
    split: str | None = None
    mpp: float | None = None
    """Micrometres a pixel of level 0, where the file is not to be asked."""
    mask: str | None = None
    """Where an image or GeoJSON of its tissue is."""


class SlideState(Frozen):
    """What became of a slide: a row of slides.parquet, and the entries of its shards."""

    slide_id: str
    patient_id: str
    site: str
    label: str | None
    split: str | None
    status: str
    """done, skipped (not a single tile to keep) or failed."""
    reason: str | None = None
    width: int | None = None
    height: int | None = None
    mpp: float | None = None
    format: str | None = None
    num_positions: int = 0
    num_kept: int = 0
    refused: dict[str, int] = {}
    """Tiles refused for each of REASONS."""
    shards: tuple[ShardEntry, ...] = ()
    asked: str = ""
    """Digest of what was asked for this slide."""


def cut_slide(
    path: str, mask: bytes | None, to: str, cfg: config.Storage, cut: Cut, slide_mpp: float | None, slide: Slide
) -> SlideState:
    """Cuts the slide at a local path.

    Raises:
        SlideError: it cannot be cut; shards of it may have been written.
        StorageError: what was cut cannot be written.
    """
    with open_slide(path) as opened:
        seen = survey(opened, mask, cut, slide_mpp, slide)
        shards = tuple(write_shards(opened, seen.found, to, cfg, cut, slide))
        write_beside(to, cfg, slide, seen.found, seen.small, seen.tissue)
        refused = {reason: int((seen.found["reason"] == i).sum()) for i, reason in enumerate(REASONS)}
        why = None if shards else nothing_kept(cut)
        return SlideState(
            **identity(slide),
            status="done" if shards else "skipped",
            reason=why,
            width=opened.sizes[0][0],
            height=opened.sizes[0][1],
            mpp=seen.mpp,
            format=opened.vendor,
            num_positions=len(seen.found),
            num_kept=len(kept(seen.found)),
            refused=refused,
            shards=shards,
        )


@dataclass(frozen=True)
class Survey:
    """What is known of an open slide before a tile of it is read.

    Attributes:
        mpp: micrometres a pixel of level 0.
        found: every position, POSITION [n], and why it is not kept.
        small, tissue: the slide small, and its mask as small.
    """

    mpp: float
    found: np.ndarray
    small: Picture
    tissue: np.ndarray


def survey(opened: Opened, mask: bytes | None, cut: Cut, slide_mpp: float | None, slide: Slide) -> Survey:
    """Where the tiles of a slide lie.

    Raises:
        SlideError: no resolution, a mask that is not its own, nothing to cut.
    """
    mpp = slide.mpp or opened.mpp or slide_mpp
    if mpp is None:
        raise SlideError("the file does not say its resolution; give it in column mpp of the CSV, or as slide_mpp")
    size = opened.sizes[0]
    found = positions(size, mpp, cut, slide.slide_id)
    small = picture(opened)
    tissue = tissue_mask(small, mpp) if mask is None else users_mask(mask, small, size)
    judge(found, small, tissue, cut, slide.slide_id)
    return Survey(mpp, found, small, tissue)


def nothing_kept(cut: Cut) -> str:
    """Why a slide has not a single tile."""
    return f"no tile has at least {cut.min_tissue:.0%} tissue and passes; lower min_tissue"


def worth_keeping(opened: Opened, found: np.ndarray, cut: Cut) -> Iterator[tuple[int, np.ndarray]]:
    """(index, uint8 [size, size, 3]) of the tiles that are kept, in reading order; others are marked in `found`."""
    for i, tile in tiles(opened, found, kept(found), cut):
        if tile is None:
            found["reason"][i] = REASONS.index("white")
        elif "blur" not in cut.keep and blurred(tile):
            found["reason"][i] = REASONS.index("blur")
        else:
            yield i, tile


def tile_id(slide: Slide, cut: Cut, x: int, y: int, mpp: float) -> str:
    return f"{slide.slide_id}/{x}_{y}_{cut.size}_{round(mpp * 1000)}"


def identity(slide: Slide) -> dict[str, Any]:
    return {name: getattr(slide, name) for name in ("slide_id", "patient_id", "site", "label", "split")}


def write_shards(
    opened: Opened, found: np.ndarray, to: str, cfg: config.Storage, cut: Cut, slide: Slide
) -> Iterator[ShardEntry]:
    """Reads, judges, encodes; a shard at a time is in memory. Refused tiles are marked in `found`."""
    images: dict[int, bytes] = {}
    levels = np.zeros((3, 256), np.int64)
    number, held = 0, 0

    def shard() -> ShardEntry:
        stats = TileStats.of_histogram(levels, {f"{cut.size}x{cut.size}": len(images)})
        table = shard_table(found, images, cut, slide)
        return write_shard(to, shard_name(slide.slide_id, number), table, cfg, stats=stats)

    for i, tile in worth_keeping(opened, found, cut):
        images[i] = encoded(tile, cut)
        levels += np.array(Image.fromarray(tile).histogram()).reshape(3, 256)
        held += len(images[i])
        if len(images) == ROWS_PER_SHARD or held > BYTES_PER_SHARD:
            yield shard()
            number, held = number + 1, 0
            images.clear()
            levels[:] = 0
    if images:
        yield shard()


def shard_table(found: np.ndarray, images: Mapping[int, bytes], cut: Cut, slide: Slide) -> pa.Table:
    """The rows of SCHEMA of tiles by index, in the order of the seed."""
    indices = list(images)
    x, y, mpp = (found[name][indices].tolist() for name in ("x", "y", "mpp"))
    ids = [tile_id(slide, cut, *place) for place in zip(x, y, mpp, strict=True)]
    order = sorted(range(len(ids)), key=lambda n: dealt(cut.seed, ids[n]))
    rows = found[[indices[n] for n in order]]
    columns = {
        "tile_id": [ids[n] for n in order],
        "image": [images[indices[n]] for n in order],
        **{name: np.ascontiguousarray(rows[name]) for name in ("x", "y", "tissue")},
        "mpp": rows["mpp"].astype(np.float32),
        **{name: np.full(len(ids), cut.size, np.int16) for name in ("width", "height")},
        **{name: [value] * len(ids) for name, value in identity(slide).items()},
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def write_beside(
    to: str, cfg: config.Storage, slide: Slide, found: np.ndarray, small: Picture, tissue: np.ndarray
) -> None:
    """What `tiles show` draws: every position and its fate, the slide small, the mask as small."""
    fates = pa.array([None if i == KEPT else REASONS[i] for i in range(KEPT, len(REASONS))], pa.string())
    table = pa.table(
        {
            "x": found["x"],
            "y": found["y"],
            "size": np.round(found["side"]).astype(np.int32),
            "mpp": found["mpp"].astype(np.float32),
            "tissue": found["tissue"],
            "kept": found["reason"] == KEPT,
            "reason": fates.take(pa.array(found["reason"].astype(np.int32) - KEPT)),
        }
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="ZSTD")
    base = beside(to, slide.slide_id)
    storage.write_bytes(f"{base}.parquet", sink.getvalue(), cfg)
    thumbnail = Image.fromarray(small.rgb)
    thumbnail.thumbnail((PREVIEW, PREVIEW))
    mask = Image.fromarray(tissue.astype(np.uint8) * 255).resize(thumbnail.size, Image.Resampling.NEAREST)
    for image, suffix, options in ((thumbnail, "jpg", {"quality": 85}), (mask.convert("1"), "mask.png", {})):
        sink = io.BytesIO()
        image.save(sink, "JPEG" if suffix == "jpg" else "PNG", **options)
        storage.write_bytes(f"{base}.{suffix}", sink.getvalue(), cfg)


def shard_name(slide_id: str, number: int) -> str:
    return f"{safe(slide_id)}-{number:03d}.parquet"


def beside(to: str, slide_id: str) -> str:
    """What stands beside the shards of a slide is called so, and a suffix."""
    return storage.join(to, FOLDER, safe(slide_id))


def safe(slide_id: str) -> str:
    """A slide id as part of a file name; a hash keeps apart those that differ only in characters left out."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", slide_id)
    return plain if plain == slide_id else f"{plain}-{hashlib.sha256(slide_id.encode()).hexdigest()[:8]}"
