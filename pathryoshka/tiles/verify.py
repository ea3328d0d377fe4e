"""Is a data set still what was written? Every shard is hashed again, and what the manifest says of it is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pathryoshka import config, storage
from pathryoshka.storage import parquet
from pathryoshka.tiles.shards import SCHEMA, SMALL_COLUMNS, ShardEntry, read_manifest

CHUNK = 8 * 2**20
SIDE_BY_SIDE = 4
BESIDE = ("slides.parquet", "_slides")
"""What a cut of slides leaves beside its shards."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: `shard` is its path, or None for the data set as a whole."""

    shard: str | None
    what: str


def verify(uri: str, cfg: config.Storage) -> list[Problem]:
    """Everything that is wrong with the tile data set at `uri`; an empty list when nothing is.

    Reads every byte once, and the columns beside the images twice; memory is bounded by a few megabytes a shard read
    side by side and 16 bytes a tile.

    Raises:
        ShardError: there is no readable manifest.
        StorageError: storage does not answer.
    """
    manifest = read_manifest(uri, cfg)
    sizes = storage.list_files(uri, cfg)
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        checked = list(pool.map(lambda shard: check_shard(uri, cfg, shard, sizes.get(shard.path)), manifest.shards))
    problems = [problem for found, _ in checked for problem in found]
    listed = {shard.path for shard in manifest.shards}
    for path in sizes:
        if path.endswith(".parquet") and path not in listed and path.partition("/")[0] not in BESIDE:
            problems.append(Problem(path, "is not in the manifest: left by a broken import? delete it"))
    return problems + list(shared_tiles([(s.path, ids) for s, (_, ids) in zip(manifest.shards, checked, strict=True)]))


def check_shard(uri: str, cfg: config.Storage, shard: ShardEntry, size: int | None) -> tuple[list[Problem], np.ndarray]:
    """What is wrong with one shard, and a 128-bit hash a tile id (uint64 [rows, 2]) when it can be read.

    Args:
        size: bytes that are there; None = no such file.
    """
    nothing = np.empty((0, 2), np.uint64)
    if size is None:
        return [Problem(shard.path, "is missing")], nothing
    if size != shard.bytes:
        return [Problem(shard.path, f"has {size} bytes, the manifest says {shard.bytes}")], nothing
    digest, where = hashlib.sha256(), storage.join(uri, shard.path)
    for start in range(0, size, CHUNK):
        digest.update(storage.read_range(where, start, min(CHUNK, size - start), cfg))
    if digest.hexdigest() != shard.sha256:
        return [Problem(shard.path, "is damaged: its bytes are not those that were written (SHA-256 differs)")], nothing

    def small() -> tuple[pa.Table, pq.FileMetaData]:
        fragment = parquet.fragment_of(where, shard.bytes, cfg)
        if not fragment.physical_schema.equals(SCHEMA):
            raise ValueError
        return fragment.to_table(columns=list(SMALL_COLUMNS), use_threads=False), fragment.metadata

    try:
        table, metadata = storage.retrying(small, cfg, f"read {where}")
    except (ValueError, pa.ArrowException):
        return [Problem(shard.path, "is no shard of tiles of this schema version")], nothing
    return list(contradictions(shard, table, metadata)), hashes(table["tile_id"].to_pylist())


def contradictions(shard: ShardEntry, table: pa.Table, metadata: pq.FileMetaData) -> Iterator[Problem]:
    """Where the manifest's entry and the shard differ."""
    groups = tuple(metadata.row_group(g).num_rows for g in range(metadata.num_row_groups))
    if (table.num_rows, groups) != (shard.rows, shard.row_groups):
        yield Problem(shard.path, f"has {table.num_rows} rows in groups {groups}, the manifest says otherwise")
    for column, said in (("slide_id", shard.slide_ids), ("patient_id", shard.patient_ids), ("site", shard.sites)):
        if set(pc.unique(table[column]).to_pylist()) != set(said):
            yield Problem(shard.path, f"has other values of {column} than the manifest says")
    if set(pc.unique(table["split"]).to_pylist()) != {shard.split}:
        yield Problem(shard.path, f"is not all of split {shard.split}, as the manifest says")
    if len(pc.unique(table["tile_id"])) < table.num_rows:
        yield Problem(shard.path, "holds a tile twice")


def hashes(tile_ids: list[str]) -> np.ndarray:
    """uint64 [rows, 2]."""
    data = b"".join(hashlib.blake2b(tile_id.encode(), digest_size=16).digest() for tile_id in tile_ids)
    return np.frombuffer(data, np.uint64).reshape(-1, 2)


def shared_tiles(shards: list[tuple[str, np.ndarray]]) -> Iterator[Problem]:
    """Tiles that stand in more than one shard; tiles twice in one shard are its own problem."""
    each = [np.unique(ids, axis=0) for _, ids in shards]
    owner = np.repeat(np.arange(len(shards)), [len(ids) for ids in each])
    ids = np.concatenate([*each, np.empty((0, 2), np.uint64)])
    order = np.lexsort((owner, ids[:, 1], ids[:, 0]))
    again = order[1:][(ids[order][1:] == ids[order][:-1]).all(1)]
    for index, count in zip(*np.unique(owner[again], return_counts=True), strict=True):
        yield Problem(shards[index][0], f"holds {count} tiles that other shards hold too")
