"""A plan's segment as micro-batches of shared views: read row groups, decode, crop, mix.

This is all the CPU work between object storage and the teachers, as a plain generator; `distill/stream.py` runs it in
Ray tasks. A tile that cannot be decoded becomes a row of weight zero, and its reason is returned beside the batch.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pathryoshka import config
from pathryoshka.tiles.ledger import Ledger, undone
from pathryoshka.tiles.plan import Plan, Segment
from pathryoshka.tiles.shards import ShardEntry, read_row_group
from pathryoshka.tiles.views import TileError, ViewKey, decode, shared_view

COLUMNS = ("tile_id", "image")


@dataclass(frozen=True)
class Source:
    """Where a segment's tiles come from and how they become views; picklable, sent once to each reader."""

    bases: tuple[str, ...]
    """URI of the data set of each shard."""
    shards: tuple[ShardEntry, ...]
    plan: Plan
    views: config.Views
    storage: config.Storage
    micro_batch: int
    num_tokens: int
    """Of the student's grid."""
    kept_tokens: int
    """Of them, how many a view has; 0 = no loss looks at tokens."""


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B rows.

    Attributes:
        views: uint8 [B, S, S, 3], the shared views.
        seq: int64 [B], -1 for padding.
        weight: float32 [B], 0 for padding and for tiles that failed.
        token_pos: int32 [B, K], ascending positions on the student's grid, row-major.
        digest: uint64 [B], a hash of (seq, bytes of the view); 0 for padding.
        pixels: uint64 [B], a hash of the view's bytes; 0 for padding.
        entry: int64 [B], the index of the row in its segment, -1 for padding.
        view_id: int64 [B].
        tile_id, partner_id: [B] strings, "" for padding and where there is no partner.
        seconds: time spent making it, reading not included when it was overlapped.
        failures: (tile id, reason) of each tile that failed.
    """

    views: np.ndarray
    seq: np.ndarray
    weight: np.ndarray
    token_pos: np.ndarray
    digest: np.ndarray
    pixels: np.ndarray
    entry: np.ndarray
    view_id: np.ndarray
    tile_id: np.ndarray
    partner_id: np.ndarray
    seconds: float = 0.0
    failures: tuple[tuple[str, str], ...] = ()


def padding_batch(source: Source) -> Batch:
    """A micro-batch of nothing: every row has seq -1 and weight 0."""
    b, size, k = source.micro_batch, source.views.size, source.kept_tokens
    return Batch(
        views=np.zeros((b, size, size, 3), np.uint8),
        seq=np.full(b, -1),
        weight=np.zeros(b, np.float32),
        token_pos=np.broadcast_to(np.arange(k, dtype=np.int32), (b, k)).copy(),
        digest=np.zeros(b, np.uint64),
        pixels=np.zeros(b, np.uint64),
        entry=np.full(b, -1),
        view_id=np.full(b, -1),
        tile_id=np.full(b, "", object),
        partner_id=np.full(b, "", object),
    )


def segment_batches(source: Source, segment: Segment, ledger: Ledger) -> Iterator[Batch]:
    """What is left of a segment after `ledger`, in order; the last batch is padded with rows of weight zero.

    Raises:
        ShardError, StorageError: the segment cannot be read.
    """
    started = time.perf_counter()
    todo = undone(segment, ledger)
    rows = np.union1d(todo, segment.partner[todo][segment.partner[todo] >= 0])
    tables = read_groups(source, segment.shard[rows], segment.group[rows])
    for start in range(0, len(todo), source.micro_batch):
        empty = padding_batch(source)
        failures = []
        for b, i in enumerate(todo[start : start + source.micro_batch]):
            tile_id, image = tile_of(tables, segment.shard[i], segment.group[i], segment.row[i])
            j = segment.partner[i]
            partner_id, partner = None, None
            if j >= 0:
                partner_id, partner = tile_of(tables, segment.shard[j], segment.group[j], segment.row[j])
            empty.seq[b], empty.entry[b] = segment.seq[i], i
            view_id = int(segment.draw[i]) % source.views.per_tile if source.views.per_tile else int(segment.draw[i])
            key = ViewKey(source.views.seed, tile_id, partner_id, view_id)
            try:
                view = shared_view(decode(image), key, source.views, decode(partner) if partner is not None else None)
            except TileError as error:
                failures.append((tile_id, str(error)))
                continue
            empty.views[b], empty.weight[b] = view, 1.0
            empty.pixels[b] = hashed(view.data)
            empty.digest[b] = hashed(
                int(segment.seq[i]).to_bytes(8, "little") + int(empty.pixels[b]).to_bytes(8, "little")
            )
            empty.view_id[b], empty.tile_id[b], empty.partner_id[b] = view_id, tile_id, partner_id or ""
            if 0 < source.kept_tokens < source.num_tokens:
                empty.token_pos[b] = token_positions(key, source.num_tokens, source.kept_tokens)
        real = np.flatnonzero(empty.weight)
        if len(real):  # rows of weight zero show real pixels too: batch norms of a convolutional student see them
            blank = np.flatnonzero(empty.weight == 0)
            empty.views[blank] = empty.views[np.resize(real, len(blank))]
        yield replace(empty, seconds=time.perf_counter() - started, failures=tuple(failures))
        started = time.perf_counter()


def read_groups(source: Source, shard: np.ndarray, group: np.ndarray) -> dict[tuple[int, int], pa.Table]:
    """The row groups named, read side by side because object storage answers late but often."""
    wanted = sorted({(int(s), int(g)) for s, g in zip(shard, group, strict=True)})

    def read(key: tuple[int, int]) -> pa.Table:
        return read_row_group(source.bases[key[0]], source.storage, source.shards[key[0]], key[1], COLUMNS)

    with ThreadPoolExecutor(max_workers=min(8, len(wanted) or 1)) as threads:
        return dict(zip(wanted, threads.map(read, wanted), strict=True))


def tile_of(tables: dict[tuple[int, int], pa.Table], shard: int, group: int, row: int) -> tuple[str, bytes]:
    table = tables[int(shard), int(group)]
    return table["tile_id"][int(row)].as_py(), table["image"][int(row)].as_py()


def hashed(data: bytes | memoryview) -> int:
    """64 bits of blake2b."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def token_positions(key: ViewKey, num_tokens: int, k: int) -> np.ndarray:
    """`k` of `num_tokens` positions, ascending, drawn by the view's key on a stream of their own."""
    bits = key.generator().bit_generator
    rng = np.random.Generator(bits.jumped())  # type: ignore[attr-defined]
    return np.sort(rng.choice(num_tokens, size=k, replace=False)).astype(np.int32)
