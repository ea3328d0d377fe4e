"""A benchmark as a tile data set of ours, with its classes, splits and units.

Images larger than an encoder looks at are resized once, the shorter side to `SIDE` pixels; evaluation then resizes the
shorter side to the encoder's size and keeps the centre, which together is the ResizeAndCrop that kaiko eva applies.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
from PIL import Image

from pathryoshka import config, storage
from pathryoshka.benchmarks.check import samples_of
from pathryoshka.benchmarks.hest import ByHest
from pathryoshka.benchmarks.layouts import BenchmarkError, Sample
from pathryoshka.benchmarks.row import Benchmark
from pathryoshka.tiles.importing import READERS
from pathryoshka.tiles.importing import row as shard_row
from pathryoshka.tiles.measured import MEASURED, Measured, to_bytes
from pathryoshka.tiles.places import place_of
from pathryoshka.tiles.shards import MANIFEST, SCHEMA, Manifest, read_manifest, write_manifest, write_shard
from pathryoshka.tiles.sources import Tile, dealt
from pathryoshka.tiles.stats import TileStats
from pathryoshka.tiles.views import TileError, decode

SIDE = 512
ROWS = 2048


def convert(row: Benchmark, root: str, to: str, cfg: config.Storage, *, seed: int = 0) -> Manifest:
    """Writes the benchmark in folder `root` as the tile data set `to`; again does nothing where it is there already.

    Raises:
        BenchmarkError: an image that cannot be read, nothing to read, or another data set at `to`.
    """
    to = storage.absolute(to)
    samples = sorted(samples_of(row, root, cfg), key=partial(order, row, seed))
    if not samples:
        raise BenchmarkError(f"{root} holds no image of {row.name}; it must lie like this: {row.get}")
    listing = json.dumps([[s.path, s.label, s.split, s.patient, s.slide, s.site] for s in samples])
    made_by = {
        "kind": "benchmark",
        "benchmark": row.name,
        "task": row.task,
        "classes": list(row.classes),
        "unit": row.unit,
        "metric": row.metric,
        "licence": row.licence,
        "num_images": len(samples),
        "images_digest": hashlib.sha256(listing.encode()).hexdigest(),
        "seed": seed,
        "shorter_side": SIDE,
    }
    measured = b""
    if isinstance(row.layout, ByHest):
        measured = to_bytes(named(row, row.layout.measured(root, cfg)))
        made_by["measured_digest"] = hashlib.sha256(measured).hexdigest()
    if storage.exists(storage.join(to, MANIFEST), cfg):
        there = read_manifest(to, cfg)
        if there.made_by != made_by:
            raise BenchmarkError(f"{to} is another data set already; give this one a place of its own")
        return there
    entries = [write(row, chunk, to, number, cfg) for number, chunk in enumerate(chunks(samples))]
    if measured:
        storage.write_bytes(storage.join(to, MEASURED), measured, cfg)
    return write_manifest(to, entries, made_by, cfg)


def order(row: Benchmark, seed: int, sample: Sample) -> tuple[str, bytes, str]:
    """Shuffled inside a split; of pairs, the slides of a place stay together, as they are scored together."""
    key = place_of(sample.path) if row.task == "pairs" else sample.path
    return sample.split or "", dealt(seed, key), sample.path


def named(row: Benchmark, measured: Measured) -> Measured:
    """The same under the ids of our tiles."""
    return replace(measured, tile_ids=tuple(tile_id_of(row, path) for path in measured.tile_ids))


def tile_id_of(row: Benchmark, path: str) -> str:
    return f"{row.name}/{path}"


def chunks(samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """Samples of one split, at most `ROWS` together."""
    start = 0
    for i in range(1, len(samples) + 1):
        if i == len(samples) or i - start == ROWS or samples[i].split != samples[start].split:
            yield samples[start:i]
            start = i


def write(row: Benchmark, samples: Sequence[Sample], to: str, number: int, cfg: config.Storage):  # type: ignore[no-untyped-def]
    """One shard."""
    rows, stats = [], []
    with ThreadPoolExecutor(READERS) as pool:
        for sample, (data, pixels, scale) in zip(samples, pool.map(lambda s: smaller(row, s), samples), strict=True):
            mpp = None if row.mpp is None else row.mpp * scale
            facts = (
                tile_id_of(row, sample.path),
                sample.slide,
                sample.patient,
                sample.site,
                sample.label,
                mpp,
                sample.split,
            )
            rows.append(shard_row(Tile("", len(data), *facts), pixels, data, False))
            stats.append(TileStats.of([pixels]))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    return write_shard(to, f"tiles-{number:05d}.parquet", table, cfg, stats=TileStats.merged(stats))


def smaller(row: Benchmark, sample: Sample) -> tuple[bytes, np.ndarray, float]:
    """The encoded image, its pixels, and by how much it was reduced.

    Raises:
        BenchmarkError: it cannot be read.
    """
    try:
        data = sample.read()
        pixels = decode(data)
    except (TileError, OSError, ValueError) as error:
        raise BenchmarkError(
            f"{sample.path} of {row.name} cannot be read ({str(error).splitlines()[0]}); `pathryoshka datasets check "
            f"{row.name} --all` lists all such images"
        ) from None
    height, width = pixels.shape[:2]
    scale = min(height, width) / SIDE
    if scale <= 1:
        return data, pixels, 1.0
    size = (max(SIDE, round(width / scale)), max(SIDE, round(height / scale)))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue(), np.asarray(image), scale
