"""A piece of a shard, or a slide, as batches of views: what readers do beside the student, in Ray tasks.

A slide is read by the process for slides (`tiles/child.py`), batch by batch, so that a damaged file ends neither the
reader nor the run, and no more than a batch of its pixels is anywhere at a time. Whatever cannot be read is this unit's
failure, with its reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pathryoshka import config, storage
from pathryoshka.embedding import slide
from pathryoshka.embedding.rows import Tiles, facts_table
from pathryoshka.embedding.sources import Shard
from pathryoshka.tiles.child import in_child
from pathryoshka.tiles.cutting import Slide
from pathryoshka.tiles.finding import local_file, remove_stale
from pathryoshka.tiles.grid import Cut
from pathryoshka.tiles.segments import hashed
from pathryoshka.tiles.shards import SCHEMA, ShardError, read_row_group
from pathryoshka.tiles.slides import read_mask
from pathryoshka.tiles.tiff import SlideError
from pathryoshka.tiles.views import TileError, decode, identity_view

GROUPS_AHEAD = 2
OWN_FAILURES = (SlideError, ShardError, storage.StorageError)
"""What is one unit's failure and does not end the run."""
COLUMNS = tuple(name for name in SCHEMA.names if name not in ("height", "tissue"))


@dataclass(frozen=True)
class Reading:
    """How readers read; picklable.

    Attributes:
        size: side of the views in pixels. batch: tiles of a batch.
        cut, slide_mpp, time_limit_s, cache_bytes: of slides; the last for a copy of one out of object storage.
    """

    size: int
    batch: int
    storage: config.Storage
    cut: Cut | None = None
    slide_mpp: float | None = None
    time_limit_s: float = 3600
    cache_bytes: float = 50e9


def shard_tiles(shard: Shard, groups: tuple[int, ...], how: Reading) -> Iterator[Tiles]:
    """Batches of the tiles of some row groups; the next groups are fetched meanwhile.

    Raises:
        ShardError, StorageError: the shard cannot be read, or is not the one of its manifest.
    """

    def read(group: int) -> pa.Table:
        table = read_row_group(shard.base, how.storage, shard.entry, group, COLUMNS)
        kept = np.ones(len(table), bool)
        kept[list(shard.dropped.get(group, ()))] = False
        return table if kept.all() else table.filter(pa.array(kept))

    rows: list[dict[str, Any]] = []
    views: list[np.ndarray] = []
    failures: dict[str, str] = {}
    with ThreadPoolExecutor(GROUPS_AHEAD) as pool:
        for table in pool.map(read, groups):
            for row in table.to_pylist():
                image = row.pop("image")
                try:
                    view = identity_view(decode(image), how.size)
                except TileError as error:
                    failures[row["tile_id"]] = str(error)
                    continue
                width, level_0 = row.pop("width"), shard.level_0.get(row["slide_id"])
                side = width * row["mpp"] / level_0 if level_0 and row["mpp"] else None
                rows.append(row | {"side": side, "pixels": hashed(view.data)})
                views.append(view)
                if len(views) == how.batch:
                    yield Tiles(facts_table(rows), np.stack(views), failures)
                    rows, views, failures = [], [], {}
    if views or failures:
        yield Tiles(facts_table(rows), stacked(views, how.size), failures)


def stacked(views: list[np.ndarray], size: int) -> np.ndarray:
    return np.stack(views) if views else np.zeros((0, size, size, 3), np.uint8)


@dataclass(frozen=True)
class Found:
    """What is told of a slide once its tissue is found: about how many tiles there will be."""

    num_tiles: int


def slide_tiles(what: Slide, how: Reading) -> Iterator[Found | Tiles]:
    """Slide -> tissue -> tiles, in reading order: first what was found, then batches.

    Raises:
        SlideError: it cannot be read, or took longer than `time_limit_s`. StorageError: object storage did not answer.
    """
    assert how.cut is not None
    remove_stale()
    mask = read_mask(what, how.storage)
    if what.mask and mask is None:
        raise SlideError("its mask does not exist; check column mask of the CSV")
    deadline = time.monotonic() + how.time_limit_s
    with local_file(what.uri, how.storage, how.cache_bytes) as path:
        call = (slide.begin, path, mask, how.cut, how.slide_mpp, what, how.size)
        yield Found(in_child(*call, limit_s=how.time_limit_s))
        while deadline > time.monotonic():
            batch = in_child(slide.more, how.batch, limit_s=deadline - time.monotonic())
            if batch is None:
                return
            yield batch
    raise SlideError(f"it took longer than {how.time_limit_s:.0f} s; raise the time limit, or ask for a coarser mpp")
