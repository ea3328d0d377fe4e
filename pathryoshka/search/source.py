"""What is added: a table of vectors, with what is known of its tiles from the table itself or from a tile data set.

A table is a Parquet file, or a folder of them, with `tile_id`, one column of vectors (`<encoder>.summary` as in the one
table for vectors, or `vector`), and `pathryoshka.model_id` in the metadata of its schema. `slide_id`, `patient_id`,
`site`, `label`, `x`, `y`, `side` (pixels of level 0) and `image` are taken where they are there. Where a manifest lies
beside the files, as in what `pathryoshka embed` writes, the table is what it names.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from pathryoshka import config, storage
from pathryoshka.features.table import as_matrix
from pathryoshka.search.manifest import SearchError
from pathryoshka.search.segment import CODED, SCHEMA
from pathryoshka.storage import parquet
from pathryoshka.tiles.shards import read_manifest, read_row_group

MODEL_ID = b"pathryoshka.model_id"
IDENTITY = -1
MANIFEST = "_manifest.json"
PLACE = {"x": "left", "y": "top"}
KNOWN = ("slide_id", "patient_id", "site", "label")


@dataclass(frozen=True)
class Source:
    """A table that was looked at.

    Attributes:
        model_id: None where the table does not say. width: numbers a vector. column: the vectors.
        files: (URI, bytes, row groups) of its files.
        tiles: facts by tile of the data sets that were named, or None.
    """

    uri: str
    model_id: str | None
    width: int
    column: str
    columns: tuple[str, ...]
    files: tuple[tuple[str, int, int], ...]
    cfg: config.Storage = field(repr=False)
    tiles: pa.Table | None = field(default=None, repr=False)

    def batches(self) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Facts and vectors fp32 [n, width] of length 1, by row group.

        Facts have the columns of SCHEMA, as strings and numbers, and `image` where the table has it.

        Raises:
            SearchError: a vector that is null, not finite or zero; a tile without slide, patient or site.
        """
        identity = uuid.uuid4().hex  # footers of an earlier reading may be of a file that was replaced
        for uri, size, groups in self.files:
            for group in range(groups):
                try:
                    table = parquet.read_row_group(uri, size, identity, group, self.columns, lambda f: None, self.cfg)
                except parquet.NotWhatWasWritten as error:
                    raise SearchError(f"{uri} is damaged ({error}); embed its tiles again") from None
                if "view_id" in table.column_names:  # the others are views of the same tiles
                    table = table.filter(pc.equal(table["view_id"], IDENTITY))
                if table.num_rows:
                    yield self.facts(table), self.vectors(table)

    def vectors(self, table: pa.Table) -> np.ndarray:
        if table[self.column].null_count:
            raise SearchError(f"{self.uri} has tiles without a vector in {self.column}; embed them again")
        x_ND = as_matrix(table[self.column]).astype(np.float32)
        lengths = np.linalg.norm(x_ND, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            row = int(np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))[0])
            raise SearchError(
                f"the vector of tile {table['tile_id'][row]} in {self.uri} is zero or not finite; embed it again"
            )
        return x_ND / lengths

    def facts(self, table: pa.Table) -> pa.Table:
        ids = table["tile_id"].cast(pa.string()).combine_chunks()
        table = table.rename_columns([PLACE.get(name, name) for name in table.column_names])
        columns = {name: table[name] for name in table.column_names if name in SCHEMA.names or name == "image"}
        if self.tiles is not None:
            rows = pc.index_in(ids, value_set=self.tiles["tile_id"])
            if rows.null_count:
                missing = ids.filter(rows.is_null())
                raise SearchError(f"tile {missing[0]} of {self.uri} is in none of the tile data sets that were named")
            known = self.tiles.take(rows)
            columns |= {n: known[n] for n in known.column_names if n not in columns or columns[n].null_count}
        columns["tile_id"] = ids
        for name in ("slide_id", "patient_id", "site"):
            if name not in columns or columns[name].null_count:
                raise SearchError(
                    f"{self.uri} does not say the {name} of its tiles; name the data set they are from with --tiles"
                )
        made = {f.name: as_kind(columns.get(f.name), KINDS[f.name], len(ids)) for f in SCHEMA}
        if "image" in columns:
            made["image"] = as_kind(columns["image"], pa.binary(), len(ids))
        return pa.table(made)


KINDS = {field.name: pa.string() if field.type == CODED else field.type for field in SCHEMA}


def as_kind(column: pa.ChunkedArray | pa.Array | None, kind: pa.DataType, rows: int) -> pa.Array:
    if column is None:
        return pa.nulls(rows, kind)
    return (column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column).cast(kind)


def open_source(uri: str, cfg: config.Storage, encoder: str | None = None, tiles: tuple[str, ...] = ()) -> Source:
    """The table at `uri`, looked at but not read.

    Args:
        encoder: whose vectors, where the table has several encoders'. tiles: data sets that know the rest.

    Raises:
        SearchError: no table, no column of vectors or several, files that do not agree.
    """
    found: list[tuple[str, int, int]] = []
    seen: set[tuple[str | None, int, str, tuple[str, ...]]] = set()
    for where, size in table_files(uri, cfg):
        try:
            fragment = parquet.fragment_of(where, size, cfg)
            schema, groups = storage.retrying(partial(footer, fragment), cfg, f"read {where}")
        except (pa.ArrowException, OSError) as error:
            raise SearchError(f"{where} is no Parquet table: {str(error).splitlines()[0]}") from None
        column = vector_column(where, schema, encoder)
        said = (schema.metadata or {}).get(MODEL_ID, b"").decode() or None
        wanted = {"tile_id", "view_id", column, "image", *PLACE, *SCHEMA.names[:8]}
        seen.add((said, schema.field(column).type.list_size, column, tuple(n for n in schema.names if n in wanted)))
        found.append((where, size, groups))
    if len(seen) > 1:
        raise SearchError(f"the files of {uri} are not of one table: their columns, widths or models differ")
    model_id, width, column, columns = next(iter(seen))
    return Source(uri, model_id, width, column, columns, tuple(found), cfg, tile_facts(tiles, cfg) if tiles else None)


def footer(fragment: pads.ParquetFileFragment) -> tuple[pa.Schema, int]:
    return fragment.physical_schema, fragment.metadata.num_row_groups


def table_files(uri: str, cfg: config.Storage) -> list[tuple[str, int]]:
    """(URI, bytes) of the Parquet files of a table: itself, or those below it."""
    filesystem, path = storage.filesystem(uri, cfg)
    info = storage.retrying(lambda: filesystem.get_file_info(path), cfg, f"look for {uri}")
    if info.is_file:
        return [(uri, info.size)]
    named = storage.join(uri, MANIFEST)
    if storage.exists(named, cfg):
        below = parts_of(named, cfg)
    else:
        below = {name: size for name, size in storage.list_files(uri, cfg).items() if name.endswith(".parquet")}
    if not below:
        raise SearchError(f"no table of vectors at {uri}; name a Parquet file or a folder of them")
    return [(storage.join(uri, name), size) for name, size in below.items()]


def parts_of(manifest: str, cfg: config.Storage) -> dict[str, int]:
    """Bytes of each part that the manifest of `pathryoshka embed` names: others are of a run that was cut short."""
    try:
        parts = [state["part"] for state in storage.read_json(manifest, cfg)["states"] if state["part"]]
        return {part["path"]: part["bytes"] for part in parts}
    except (KeyError, TypeError):
        raise SearchError(f"{manifest} is of no table of vectors; name what `pathryoshka embed` wrote") from None


def vector_column(where: str, schema: pa.Schema, encoder: str | None) -> str:
    if "tile_id" not in schema.names:
        raise SearchError(f"{where} has no column tile_id; is it a table of vectors?")
    vectors = [f.name for f in schema if pa.types.is_fixed_size_list(f.type)
               and (f.name == "vector" or f.name.endswith(".summary"))]  # fmt: skip
    if encoder is not None:
        vectors = [name for name in vectors if name in (encoder, f"{encoder}.summary")]
    if len(vectors) != 1:
        there = f"columns {', '.join(vectors)}: choose one with --encoder" if vectors else "no column of vectors"
        raise SearchError(f"{where} has {there}; an index is of one encoder (`<encoder>.summary` or `vector`)")
    return vectors[0]


def tile_facts(uris: tuple[str, ...], cfg: config.Storage) -> pa.Table:
    """What the tile data sets know of each tile, and where its picture is: set, shard, row group, row."""
    tables = []
    for uri in uris:
        manifest = read_manifest(uri, cfg)
        places = [(shard, group) for shard in manifest.shards for group in range(len(shard.row_groups))]

        def read(place, uri: str = uri) -> pa.Table:  # type: ignore[no-untyped-def]
            shard, group = place
            table = read_row_group(uri, cfg, shard, group, ("tile_id", *KNOWN, "x", "y"))
            num = len(table)
            made = {"tile_id": table["tile_id"], "left": table["x"].cast(pa.float32()),
                    "top": table["y"].cast(pa.float32()), "set": pa.array([storage.absolute(uri)] * num),
                    "shard": pa.array([shard.path] * num), "group": pa.array([group] * num, pa.int32()),
                    "row": pa.array(range(num), pa.int32())}  # fmt: skip
            return pa.table(made | {name: table[name] for name in KNOWN})

        with ThreadPoolExecutor(4) as pool:
            tables += list(pool.map(read, places))
    return pa.concat_tables(tables).combine_chunks()
