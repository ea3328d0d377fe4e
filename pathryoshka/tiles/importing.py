"""Folders of images become shards: classes as sub-folders, or a CSV that says what each tile is.

What is written is a function of the images, the CSV and the seed. Images are dealt to shards by a keyed hash of their
tile id, so each shard is a fair sample of its split and the order of a listing means nothing. JPEG, PNG and WebP are
stored byte for byte, with whatever they carry beside pixels unless names are to be hidden; anything else Pillow reads
becomes PNG.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pathryoshka import config, storage
from pathryoshka.tiles.making import Failure, Written, make_data_set
from pathryoshka.tiles.shards import ROWS_PER_GROUP, SCHEMA, Manifest, write_shard
from pathryoshka.tiles.sources import Tile, dealt, from_csv, from_folder, pseudonymiser, with_ids
from pathryoshka.tiles.stats import TileStats, tissue_share
from pathryoshka.tiles.strip import stripped
from pathryoshka.tiles.views import TileError, decode

KEPT_AS_IS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")
ROWS_PER_SHARD = 2048
BYTES_PER_SHARD = 256 * 2**20
"""A shard closes early at this many bytes of images, so that a task's memory does not grow with the size of tiles."""
READERS = 8
LONGEST_SIDE = 32767


def import_images(
    source: Path | str,
    to: str,
    cfg: config.Storage,
    *,
    seed: int = 0,
    csv: Path | str | None = None,
    split: str | None = None,
    max_failed_share: float = 0.01,
    rows_per_shard: int = ROWS_PER_SHARD,
    rows_per_group: int = ROWS_PER_GROUP,
    pseudonymise: bool = False,
) -> Manifest:
    """Imports a folder of images, or the tiles that a CSV names, as the tile data set `to`.

    Args:
        source: folder (sub-folders are labels), or a CSV file; local or in object storage.
        csv: a CSV for the images in folder `source`. Column `tile` is the path relative to that folder (or to the CSV,
            when the CSV is the source); beside it any of `slide`, `patient`, `site`, `label`, `mpp` (micrometres a
            pixel), `split`.
        split: of tiles whose split no CSV says.
        max_failed_share: unreadable images up to this share are left out and listed in `_failures.json`.
        pseudonymise: slide, patient, site and tile names become keyed hashes (HMAC-SHA-256, key in the environment
            variable PATHRYOSHKA_PSEUDONYM_KEY) before ids are made, and metadata inside images goes; the pixels stay.

    Returns:
        The manifest; also when the same import is there already, which is then left as it is.

    Raises:
        ImportRefused: nothing to import, a CSV that says what it cannot, too many unreadable images, or another data
            set at `to`. Nothing is left behind.
    """
    base = storage.absolute(str(source))
    if csv is None and base.lower().endswith(".csv"):
        csv, base = base, base.rpartition("/")[0]
    tiles = from_csv(storage.absolute(str(csv)), base, cfg) if csv else from_folder(base, cfg)
    secret = pseudonymiser(pseudonymise)
    folder = secret("folder", base.rpartition("/")[2])
    tiles = [with_ids(replace(tile, split=tile.split or split), folder, secret) for tile in tiles]
    listing = json.dumps([asdict(replace(tile, path="")) for tile in sorted(tiles, key=lambda t: t.tile_id)])
    made_by = {
        "kind": "import",
        "source": folder,
        "num_images": len(tiles),
        "images_digest": hashlib.sha256(listing.encode()).hexdigest(),
        "seed": seed,
        "rows_per_shard": rows_per_shard,
        "rows_per_group": rows_per_group,
        "pseudonymised": pseudonymise,
    }
    to = storage.absolute(to)
    task = partial(write_chunk, base, to, cfg, rows_per_group, pseudonymise)
    chunks = list(enumerate(chunked(tiles, seed, rows_per_shard)))
    return make_data_set(to, cfg, made_by, task, chunks, max_failed=max_failed_share * len(tiles), total=len(tiles))


def chunked(tiles: Sequence[Tile], seed: int, rows: int) -> Iterator[tuple[Tile, ...]]:
    """Tiles of one split, shuffled, in chunks of at most `rows` tiles and about BYTES_PER_SHARD."""
    chunk: list[Tile] = []
    size = 0
    for tile in sorted(tiles, key=lambda t: (t.split is not None, t.split or "", dealt(seed, t.tile_id))):
        if chunk and (tile.split != chunk[0].split or len(chunk) == rows or size + tile.bytes > BYTES_PER_SHARD):
            yield tuple(chunk)
            chunk, size = [], 0
        chunk.append(tile)
        size += tile.bytes
    if chunk:
        yield tuple(chunk)


def write_chunk(
    base: str, to: str, cfg: config.Storage, rows_per_group: int, hide: bool, item: tuple[int, Sequence[Tile]]
) -> Written:
    """Reads, checks and writes the tiles of a chunk as shard number `item[0]`; a plain function, run by Ray or not."""
    index, tiles = item
    rows, stats, failures = [], [], []

    def read(tile: Tile) -> bytes | storage.StorageError:
        try:
            return storage.read_bytes(storage.join(base, tile.path), cfg)
        except storage.StorageError as error:
            return error

    silent = 0
    pool = ThreadPoolExecutor(READERS)
    try:
        for tile, data in zip(tiles, pool.map(read, tiles), strict=True):
            if isinstance(data, storage.StorageError):
                silent = 0 if isinstance(data, storage.NotFound) else silent + 1
                if silent == READERS:
                    raise data  # it is not the images
                failures.append(Failure(tile.tile_id, why(data, base, tile, hide)))
                continue
            silent = 0
            try:
                pixels = decode(data)
                rows.append(row(tile, pixels, data, hide))
                stats.append(TileStats.of([pixels]))
            except TileError as error:
                # Pillow names the memory address of what it could not identify; the list is to be the same every time
                failures.append(Failure(tile.tile_id, re.sub(r" <_io[^>]*>", "", str(error))))
    finally:
        pool.shutdown(cancel_futures=True)
    if not rows:
        return Written((), tuple(failures))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    name, merged = f"tiles-{index:05d}.parquet", TileStats.merged(stats)
    return Written((write_shard(to, name, table, cfg, rows_per_group=rows_per_group, stats=merged),), tuple(failures))


def why(error: storage.StorageError, base: str, tile: Tile, hide: bool) -> str:
    """Why an image could not be read, without the place it was read from: failures are listed beside the tiles."""
    if isinstance(error, storage.NotFound):
        return "no such file"
    return "cannot be read" if hide else str(error).replace(storage.join(base, tile.path), tile.path)


def row(tile: Tile, pixels: np.ndarray, data: bytes, hide: bool) -> dict[str, Any]:
    """The row of `SCHEMA` for an imported tile; `hide`: without the metadata of the image."""
    height, width, _ = pixels.shape
    if max(height, width) > LONGEST_SIDE:
        raise TileError(f"{width} x {height} pixels, and a side holds at most {LONGEST_SIDE}; cut it as a slide")
    if hide:
        data = stripped(data)
    if not data.startswith(KEPT_AS_IS) or (hide and not np.array_equal(decode(data), pixels)):
        sink = io.BytesIO()
        Image.fromarray(pixels).save(sink, "PNG")
        data = sink.getvalue()
    facts = {k: v for k, v in asdict(tile).items() if k not in ("path", "bytes")}
    return {**facts, "image": data, "width": width, "height": height, "tissue": tissue_share(pixels)}
