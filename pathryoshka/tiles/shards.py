"""Shards: tiles as rows of immutable Parquet files, and the manifest that makes a folder of them a data set.

A shard is written once, as bytes that depend only on its rows (no times of day, no host names), and is known by its
SHA-256. Images stay in the encoding they came in, uncompressed by Parquet; everything else is zstd. Every page carries
a checksum, so that a reader of one row group notices a flipped byte without hashing the shard. The manifest is written
last: no manifest, no data set.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pathryoshka import config, storage
from pathryoshka.storage import parquet
from pathryoshka.tiles.stats import Frozen, TileStats
from pathryoshka.tiles.views import decode

SCHEMA_VERSION = 1
MANIFEST = "_manifest.json"
DROPPED = "_dropped.parquet"
"""Beside the manifest: tiles that are left out, by shard, row group and row. Shards stay as they are."""
ROWS_PER_GROUP = 64
GROUPS_AHEAD = 4

SCHEMA = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("image", pa.binary(), nullable=False),
        pa.field("x", pa.int32()),
        pa.field("y", pa.int32()),
        pa.field("width", pa.int16(), nullable=False),
        pa.field("height", pa.int16(), nullable=False),
        pa.field("mpp", pa.float32()),
        pa.field("tissue", pa.float32(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
    ]
)
SMALL_COLUMNS = tuple(name for name in SCHEMA.names if name != "image")


class ShardError(ValueError):
    """A data set or shard that cannot be read or written: the sentence names it and says what to do."""


class ShardEntry(Frozen):
    """What the manifest says of one shard."""

    path: str
    """Relative to the data set."""
    rows: int
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    bytes: int
    sha256: str
    slide_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    sites: tuple[str, ...]
    split: str | None = None
    slide_rows: tuple[int, ...] = ()
    """Rows of each of `slide_ids`, in their order; `patient_rows` and `site_rows` likewise."""
    patient_rows: tuple[int, ...] = ()
    site_rows: tuple[int, ...] = ()
    labels: dict[str, int] = {}
    """Rows of each label; rows without one are not counted."""
    stats: TileStats = TileStats()


class Manifest(Frozen):
    """Everything known of a data set without opening a shard."""

    schema_version: int = SCHEMA_VERSION
    shards: tuple[ShardEntry, ...]
    counts: dict[str, dict[str, int]] = {}
    """Rows of each `slide`, `patient`, `site` and `label`."""
    tile_stats: dict[str, Any] = {}
    """As `TileStats.summary`."""
    made_by: dict[str, Any] = {}
    """The config that made the data set."""

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def digest(self) -> str:
        """SHA-256, in hex, of the manifest as canonical JSON: the identity of the data set."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def read_manifest(uri: str, cfg: config.Storage) -> Manifest:
    """The manifest of the data set at `uri`.

    Raises:
        ShardError: nothing there, another schema version, a manifest that is damaged or lists no tile.
    """
    where = storage.join(uri, MANIFEST)
    try:
        tree = json.loads(storage.read_bytes(where, cfg))
        version = tree["schema_version"]
        if version != SCHEMA_VERSION:
            raise ShardError(
                f"the tile data set at {uri} has schema version {version} and this program reads {SCHEMA_VERSION}; "
                "import the tiles again"
            )
        manifest = Manifest.model_validate(tree)
    except storage.NotFound:
        raise ShardError(
            f"no tile data set at {uri}: {MANIFEST} is missing; make one with `pathryoshka tiles import`"
        ) from None
    except ShardError:
        raise
    except (ValueError, KeyError, TypeError):
        raise ShardError(f"{where} is damaged or is no tile manifest; import the tiles again") from None
    if not manifest.rows:
        raise ShardError(f"the tile data set at {uri} holds no tile; import some")
    return manifest


def write_manifest(
    uri: str, entries: Iterable[ShardEntry], made_by: Mapping[str, Any], cfg: config.Storage
) -> Manifest:
    """Writes the manifest, atomically, and with it makes the shards at `uri` a data set.

    Args:
        made_by: the config that made the shards, as JSON values; no absolute paths, no times.

    Raises:
        ShardError: no tile at all, or two entries of one path.
    """
    shards = tuple(sorted(entries, key=lambda entry: entry.path))
    if not sum(shard.rows for shard in shards):
        raise ShardError(f"no tile to write at {uri}; a data set holds at least one")
    if len({shard.path for shard in shards}) < len(shards):
        raise ShardError(f"two shards of the data set at {uri} have the same path")
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in ("slide", "patient", "site", "label")}
    for s in shards:
        counts["slide"].update(dict(zip(s.slide_ids, s.slide_rows, strict=True)))
        counts["patient"].update(dict(zip(s.patient_ids, s.patient_rows, strict=True)))
        counts["site"].update(dict(zip(s.sites, s.site_rows, strict=True)))
        counts["label"].update(s.labels)
    manifest = Manifest(
        shards=shards,
        counts={kind: dict(sorted(count.items())) for kind, count in counts.items()},
        tile_stats=TileStats.merged(s.stats for s in shards).summary(),
        made_by=dict(made_by),
    )
    storage.write_json(storage.join(uri, MANIFEST), manifest.model_dump(mode="json"), cfg)
    return manifest


def write_shard(
    uri: str,
    name: str,
    table: pa.Table,
    cfg: config.Storage,
    *,
    rows_per_group: int = ROWS_PER_GROUP,
    stats: TileStats | None = None,
) -> ShardEntry:
    """Writes one shard, in the order of the rows, and returns its entry for the manifest.

    Args:
        name: path relative to the data set, ending in `.parquet`.
        table: the columns of `SCHEMA` in any order; rows already shuffled; one split.
        stats: sums over the tiles, where the caller has them; otherwise every image is decoded here.

    Raises:
        ShardError: a column missing or of another type, a null where none may be, a tile_id twice, several splits.
    """
    table = checked_table(table, name)
    if stats is None:
        stats = TileStats.of(decode(image.as_py()) for image in table["image"])
    data = parquet_bytes(table, rows_per_group)
    storage.write_bytes(storage.join(uri, name), data, cfg)
    full, rest = divmod(table.num_rows, rows_per_group)
    slides, patients, sites, labels = (
        dict(sorted(Counter(table[column].drop_null().to_pylist()).items()))
        for column in ("slide_id", "patient_id", "site", "label")
    )
    return ShardEntry(
        path=name,
        rows=table.num_rows,
        row_groups=(rows_per_group,) * full + ((rest,) if rest else ()),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        slide_ids=tuple(slides),
        patient_ids=tuple(patients),
        sites=tuple(sites),
        split=table["split"][0].as_py(),
        slide_rows=tuple(slides.values()),
        patient_rows=tuple(patients.values()),
        site_rows=tuple(sites.values()),
        labels=labels,
        stats=stats,
    )


def checked_table(table: pa.Table, name: str) -> pa.Table:
    """`table` in the columns and types of `SCHEMA`, or a ShardError that says what is wrong with shard `name`."""
    missing = [column for column in SCHEMA.names if column not in table.column_names]
    if missing or not table.num_rows:
        raise ShardError(f"shard {name} has no {'column ' + ', '.join(missing) if missing else 'row'}")
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
    except (pa.ArrowInvalid, ValueError, TypeError) as error:
        raise ShardError(f"shard {name} does not fit the schema of tiles: {error}") from None
    for field in SCHEMA:
        if not field.nullable and table[field.name].null_count:
            raise ShardError(f"shard {name} has rows without {field.name}")
    ids = table["tile_id"].to_pylist()
    if len(set(ids)) < len(ids):
        twice = next(tile_id for tile_id, n in Counter(ids).items() if n > 1)
        raise ShardError(f"shard {name} holds the tile {twice!r} twice; tile ids must be unique")
    if len(set(table["split"].to_pylist())) > 1:
        raise ShardError(f"shard {name} mixes splits; a shard has one")
    return table


def parquet_bytes(table: pa.Table, rows_per_group: int) -> bytes:
    """The file of a checked table; the same rows give the same bytes with the same pyarrow."""
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=rows_per_group,
        compression={name: "NONE" if name == "image" else "ZSTD" for name in SCHEMA.names},
        use_dictionary=["slide_id", "patient_id", "site", "label", "split"],
        write_statistics=["slide_id", "patient_id", "site", "label", "split"],  # of images they would be images
        write_page_checksum=True,
        store_schema=False,  # Parquet's own types say it all
    )
    return sink.getvalue()


def read_row_group(
    uri: str, cfg: config.Storage, shard: ShardEntry, group: int, columns: Sequence[str] = tuple(SCHEMA.names)
) -> pa.Table:
    """The given columns of one row group: one request, after the first to this shard in this process.

    Raises:
        ShardError: the shard is missing, is not the one that the manifest describes, or its bytes are not what was
            written (page checksums); names the shard.
        StorageError: storage did not answer in `cfg.max_attempts` tries.
    """

    def refuse(fragment: pads.ParquetFileFragment) -> None:
        found = tuple(fragment.metadata.row_group(g).num_rows for g in range(fragment.metadata.num_row_groups))
        if found != shard.row_groups or not fragment.physical_schema.equals(SCHEMA):
            raise ShardError(
                f"shard {shard.path} of {uri} is not the one its manifest describes; import the tiles again"
            )

    where = storage.join(uri, shard.path)
    try:
        return parquet.read_row_group(where, shard.bytes, shard.sha256, group, columns, refuse, cfg)
    except parquet.NotWhatWasWritten as error:
        raise ShardError(
            f"shard {shard.path} of {uri} is corrupt ({error}); "
            "`pathryoshka tiles verify` checks the others, import the tiles again"
        ) from None
    except storage.NotFound:
        raise ShardError(
            f"shard {shard.path} is in the manifest of {uri} but not in storage; import the tiles again"
        ) from None


def read_dropped(uri: str, cfg: config.Storage, manifest: Manifest) -> dict[tuple[str, int], list[int]]:
    """(shard, row group) -> rows that are left out; empty where nothing was dropped.

    Raises:
        ShardError: the list is of shards that are not those of the manifest.
    """
    where = storage.join(uri, DROPPED)
    if not storage.exists(where, cfg):
        return {}
    known = {shard.path: shard.sha256 for shard in manifest.shards}
    dropped: dict[tuple[str, int], list[int]] = {}
    for row in pq.read_table(io.BytesIO(storage.read_bytes(where, cfg))).to_pylist():
        if known.get(row["shard"]) != row["sha256"]:
            raise ShardError(
                f"{where} names shard {row['shard']}, which is another now; run `pathryoshka tiles duplicates {uri} "
                "--drop` again, or delete the list"
            )
        dropped.setdefault((row["shard"], row["row_group"]), []).append(row["row"])
    return dropped


def iter_tiles(
    uri: str,
    cfg: config.Storage,
    splits: Sequence[str] = (),
    columns: Sequence[str] = tuple(SCHEMA.names),
    *,
    dropped: bool = False,
) -> Iterator[pa.Table]:
    """Every row of `splits` (all when empty), shard by shard, a table a row group; a few are read ahead.

    Args:
        dropped: with the rows that are left out otherwise; the column `kept`, if asked for, tells them apart.

    Raises:
        ShardError: as `read_manifest`, `read_dropped` and `read_row_group`; also when no shard has one of `splits`.
    """
    manifest = read_manifest(uri, cfg)
    chosen = [shard for shard in manifest.shards if not splits or shard.split in splits]
    if not chosen:
        known = ", ".join(sorted({str(shard.split) for shard in manifest.shards}))
        raise ShardError(f"no shard of {uri} has split {', '.join(splits)}; its splits are {known}")
    gone = read_dropped(uri, cfg, manifest)
    stored = [column for column in columns if column != "kept"]

    def read(shard: ShardEntry, group: int) -> pa.Table:
        table = read_row_group(uri, cfg, shard, group, stored)
        kept = np.ones(table.num_rows, bool)
        kept[gone.get((shard.path, group), [])] = False
        if "kept" in columns:
            table = table.append_column("kept", pa.array(kept))
        return table if dropped or kept.all() else table.filter(pa.array(kept))

    with ThreadPoolExecutor(GROUPS_AHEAD) as pool:
        ahead: deque[Future[pa.Table]] = deque()
        for shard in chosen:
            for group in range(len(shard.row_groups)):
                ahead.append(pool.submit(read, shard, group))
                if len(ahead) > GROUPS_AHEAD:
                    yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
