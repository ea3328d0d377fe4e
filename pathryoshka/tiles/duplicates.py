"""Tiles that are there twice: the same pixels, or pictures so alike that their perceptual hashes are.

Twins across splits flatter every score, twins inside a split only cost time. Shards are immutable, so a twin that is
dropped stays where it is and is named in a list beside the manifest (`shards.DROPPED`), which plans and evaluations
honour. Of twins one is kept: of the splits named in `keep` first, then in the order of tile ids; a tile is a duplicate
of a tile that is kept, never of one that is itself dropped, so that chains of small changes do not end far away.
"""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathryoshka import config, storage
from pathryoshka.tiles import making
from pathryoshka.tiles.phash import near_pairs, perceptual_hash
from pathryoshka.tiles.shards import DROPPED, ShardEntry, read_manifest, read_row_group
from pathryoshka.tiles.views import TileError, decode

DUPLICATES = "_duplicates.parquet"
COLUMNS = ("tile_id", "slide_id", "split", "image")
SCOPES = ("within a slide", "across slides", "across splits")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("tile_id", "kind", "scope", "of", "shard", "sha256")),
        ("row_group", pa.int32()),
        ("row", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Found:
    """Duplicates by (kind: exact or near, scope: one of SCOPES), of how many tiles; where they are listed."""

    counts: dict[tuple[str, str], int]
    num_tiles: int
    listed: str
    dropped: bool


def find_duplicates(uri: str, cfg: config.Storage, *, drop: bool = False, keep: Sequence[str] = ()) -> Found:
    """Lists the duplicates of the data set at `uri` in DUPLICATES beside its manifest.

    Args:
        drop: also as the list of tiles that are left out from now on, in place of an earlier one.
        keep: splits whose tiles are kept before others', e.g. those that are published and compared.

    Raises:
        ShardError: no readable data set.
    """
    manifest = read_manifest(uri, cfg)
    tiles: list[dict[str, Any]] = []
    for result in making.run_tasks(partial(look, uri, cfg), manifest.shards):
        if isinstance(result, Exception):
            raise result
        tiles += result
    ranks = {split: i for i, split in enumerate(keep)}
    tiles.sort(key=lambda tile: (ranks.get(tile["split"], len(ranks)), tile["tile_id"]))
    rows = twins(tiles)
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), sink, compression="ZSTD")
    for name in (DUPLICATES, *([DROPPED] if drop else [])):
        storage.write_bytes(storage.join(uri, name), sink.getvalue(), cfg)
    counts = Counter((row["kind"], row["scope"]) for row in rows)
    return Found(dict(counts), len(tiles), storage.join(uri, DUPLICATES), drop)


def look(uri: str, cfg: config.Storage, shard: ShardEntry) -> list[dict[str, Any]]:
    """Place, digest of the pixels and perceptual hash of each tile of a shard; what cannot be decoded has no twin."""
    found = []
    for group in range(len(shard.row_groups)):
        table = read_row_group(uri, cfg, shard, group, COLUMNS)
        for row, tile in enumerate(table.to_pylist()):
            try:
                pixels = decode(tile.pop("image"))
            except TileError:
                continue
            digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
            place = {"shard": shard.path, "sha256": shard.sha256, "row_group": group, "row": row}
            found.append({**tile, **place, "pixels": digest, "hash": perceptual_hash(pixels)})
    return found


def twins(tiles: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of SCHEMA for tiles that repeat one that comes earlier and is kept."""
    values = np.unique(np.array([tile["hash"] for tile in tiles], np.uint64))
    alike: dict[int, list[int]] = defaultdict(list)
    for i, j in near_pairs(values).tolist():
        alike[int(values[i])].append(int(values[j]))
        alike[int(values[j])].append(int(values[i]))
    same: dict[bytes, dict[str, Any]] = {}
    near: dict[int, dict[str, Any]] = {}
    rows = []
    for tile in tiles:
        other, kind = same.get(tile["pixels"]), "exact"
        if other is None and tile["hash"]:
            kind = "near"
            other = next((near[h] for h in (tile["hash"], *alike[tile["hash"]]) if h in near), None)
        if other is None:
            same[tile["pixels"]] = tile
            if tile["hash"]:
                near[tile["hash"]] = tile
        else:
            rows.append({**tile, "kind": kind, "scope": scope(tile, other), "of": other["tile_id"]})
    return [{name: row[name] for name in SCHEMA.names} for row in rows]


def scope(tile: dict[str, Any], other: dict[str, Any]) -> str:
    if tile["split"] != other["split"]:
        return SCOPES[2]
    return SCOPES[0] if tile["slide_id"] == other["slide_id"] else SCOPES[1]


def as_lines(found: Found) -> list[str]:
    """What the command line says."""
    lines = [f"{found.num_tiles} tiles; exact and near duplicates are listed in {found.listed}"]
    for where in SCOPES:
        exact, near = (found.counts.get((kind, where), 0) for kind in ("exact", "near"))
        leak = ": what is trained on is also tested on" if where == SCOPES[2] and exact + near else ""
        lines.append(f"{where}: {exact} exact, {near} near{leak}")
    total = sum(found.counts.values())
    done = f"{total} tiles are left out of plans and evaluations from now on; delete {DROPPED} to have them back"
    return [*lines, done if found.dropped else "--drop leaves them out of plans and evaluations"] if total else lines
