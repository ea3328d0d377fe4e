"""Stored features of a segment's views, laid beside them row by row.

Nothing is believed that can be checked for nothing: tile, partner and the hash of the pixels of each row must be those
of the view that was just made. Another partner means that the data set has grown, and the row is asked of the teacher;
another tile or other pixels mean that the store is of something else, and the run stops.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads

from pathryoshka import storage
from pathryoshka.features.cache import through_cache
from pathryoshka.features.coverage import StoreError
from pathryoshka.features.store import Stored
from pathryoshka.features.table import as_matrix, vector_schema
from pathryoshka.storage import parquet
from pathryoshka.tiles.pairs import group_key, view_keys
from pathryoshka.tiles.plan import Segment
from pathryoshka.tiles.segments import Batch, Source

Place = tuple[str, int]
"""A teacher, and an entry of its coverage."""


@dataclass(frozen=True)
class Kept:
    """Features of the views of one row group with one view id."""

    tile_id: np.ndarray
    partner_id: np.ndarray
    pixels: np.ndarray
    summary: np.ndarray
    tokens: np.ndarray | None


@dataclass(frozen=True)
class Shelf:
    """What the store has of one segment: read once, for all of its micro-batches.

    Attributes:
        entry: teacher -> int64 [n], per entry of the segment where its features are, -1 = nowhere.
        kept: what is there.
    """

    stored: Mapping[str, Stored]
    segment: Segment
    entry: Mapping[str, np.ndarray]
    kept: Mapping[Place, Kept]
    kept_tokens: int


def fetch(stored: Mapping[str, Stored], source: Source, segment: Segment, todo: np.ndarray) -> Shelf:
    """Reads what the store has of the entries `todo` of a segment.

    Raises:
        StoreError: a part is missing or not what was written.
        StorageError: storage does not answer.
    """
    per_tile = source.views.per_tile
    keys = np.zeros(len(segment.seq), np.uint64)
    places = np.stack([segment.shard[todo], segment.group[todo], segment.draw[todo] % per_tile], axis=1)
    for shard, group, view_id in np.unique(places, axis=0).tolist():
        here = todo[(places == [shard, group, view_id]).all(1)]
        key = np.array([group_key(source.shards[shard].sha256, group)], np.uint64)
        keys[here] = view_keys(key, view_id)[0]
    entry = {name: np.full(len(keys), -1) for name in stored}
    for name, one in stored.items():
        entry[name][todo] = one.coverage.find(keys[todo])
    wanted = [(name, int(at)) for name in stored for at in np.unique(entry[name][todo]) if at >= 0]
    with ThreadPoolExecutor(max_workers=min(8, len(wanted) or 1)) as threads:
        found = list(threads.map(lambda place: read_kept(stored[place[0]], place[1], source), wanted))
    return Shelf(stored, segment, entry, dict(zip(wanted, found, strict=True)), source.kept_tokens)


def read_kept(one: Stored, at: int, source: Source) -> Kept:
    """One row group of one part."""
    about = {name: one.coverage.table[name][at].as_py() for name in ("path", "row_group", "rows", "bytes", "sha256")}
    uri, cfg = storage.join(one.uri, about["path"]), source.storage
    schema = schema_of(one, source.kept_tokens)

    def refuse(fragment: pads.ParquetFileFragment) -> None:
        found = fragment.physical_schema
        if any(name not in found.names or found.field(name).type != schema.field(name).type for name in schema.names):
            raise parquet.NotWhatWasWritten("its columns are others")
        if about["row_group"] >= fragment.metadata.num_row_groups:
            raise parquet.NotWhatWasWritten("it has too few row groups")

    def read() -> pa.Table:
        return parquet.read_row_group(
            uri, about["bytes"], about["sha256"], about["row_group"], schema.names, refuse, cfg
        )

    try:
        name = f"{about['sha256']}-{about['row_group']}-{int(source.kept_tokens > 0)}"
        table = through_cache(one.cache_dir, one.cache_bytes, name, read) if one.cache_dir else read()
    except (parquet.NotWhatWasWritten, storage.NotFound) as error:
        what = "is missing" if isinstance(error, storage.NotFound) else f"is not what was written ({error})"
        raise StoreError(
            f"{uri} {what}; run `pathryoshka store verify --drop` and `pathryoshka store fill` with this config"
        ) from None
    if table.num_rows != about["rows"]:
        raise StoreError(f"{uri} holds {table.num_rows} rows where its journal says {about['rows']}")
    tokens = None
    if source.kept_tokens:
        tokens = one.codec.decode(as_matrix(table[f"{one.name}.tokens"]), source.kept_tokens)
    return Kept(
        np.array(table["tile_id"].to_pylist(), object),
        np.array([partner or "" for partner in table["partner_id"].to_pylist()], object),
        table["pixels"].fill_null(0).to_numpy(),
        as_matrix(table[f"{one.name}.summary"]),
        tokens,
    )


def schema_of(one: Stored, kept_tokens: int) -> pa.Schema:
    summary_dim, token_dim = one.dims
    tokens = (kept_tokens * one.codec.length(token_dim), one.codec.item) if kept_tokens else None
    return vector_schema(one.name, summary_dim, tokens)


def columns_of(shelf: Shelf, made: Batch) -> dict[str, np.ndarray]:
    """Of each stored teacher `<teacher>.summary` [B, Ds] and `<teacher>.tokens` [B, K, Dt], float16, zeros where it has
    none, and `<teacher>.stored`, 0 or 1 [B]; rows of weight zero count as stored, for nobody asks for them.

    Raises:
        StoreError: the store is of other tiles or other pixels.
    """
    out: dict[str, np.ndarray] = {}
    real = np.flatnonzero((made.weight > 0) & (made.entry >= 0))
    for name, one in shelf.stored.items():
        summary_dim, token_dim = one.dims
        summary = np.zeros((len(made.seq), summary_dim), np.float16)
        tokens = np.zeros((len(made.seq), shelf.kept_tokens, token_dim), np.float16)
        has = made.weight == 0
        at = shelf.entry[name][made.entry[real]]
        for index in np.unique(at[at >= 0]).tolist():
            kept = shelf.kept[name, index]
            here = real[at == index]
            row = shelf.segment.row[made.entry[here]]
            refuse_other_rows(one, kept, row, made, here)
            good = (kept.partner_id[row] == made.partner_id[here]) & (kept.pixels[row] != 0)
            here, row = here[good], row[good]
            refuse_other_pixels(one, kept, row, made, here)
            summary[here], has[here] = kept.summary[row], True
            if kept.tokens is not None:
                tokens[here] = kept.tokens[row]
        if one.complete and not has.all():
            lacking = made.tile_id[np.flatnonzero(~has)[0]]
            raise StoreError(
                f"the store at {one.uri} lacks the view of tile {lacking} that it should have: the tile could not be "
                "read when the store was filled; fill another store"
            )
        out[f"{name}.summary"], out[f"{name}.tokens"], out[f"{name}.stored"] = summary, tokens, has.astype(np.uint8)
    return out


def refuse_other_rows(one: Stored, kept: Kept, row: np.ndarray, made: Batch, here: np.ndarray) -> None:
    if (row >= len(kept.tile_id)).any() or (kept.tile_id[row] != made.tile_id[here]).any():
        raise StoreError(f"the store at {one.uri} is of other tiles under the same shards; fill another one")


def refuse_other_pixels(one: Stored, kept: Kept, row: np.ndarray, made: Batch, here: np.ndarray) -> None:
    other = np.flatnonzero(kept.pixels[row] != made.pixels[here])
    if len(other):
        tile = made.tile_id[here[other[0]]]
        raise StoreError(
            f"the view of tile {tile} has other pixels than the one whose features are stored at {one.uri}: this "
            "program or a library now makes views otherwise; fill another store, or go back to the versions of then"
        )
