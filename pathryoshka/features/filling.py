"""What is to be filled, and how a part is written: one view id of some row groups of one shard, in the tiles' order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pathryoshka import config, storage
from pathryoshka.features.codec import Codec
from pathryoshka.features.table import as_lists, to_parquet, vector_schema
from pathryoshka.tiles.pairs import partner_groups
from pathryoshka.tiles.plan import Plan, Segment, first_tiles, paired_segment
from pathryoshka.tiles.shards import ShardEntry


@dataclass(frozen=True)
class Part:
    """`groups`: indices into the plan's row groups, all of one shard."""

    view_id: int
    groups: tuple[int, ...]


def parts_of(plan: Plan, missing: np.ndarray, part_rows: int) -> tuple[Part, ...]:
    """The missing views (bool [num_groups, per_tile]) as parts of at most `part_rows` tiles, the first view of every
    tile before the second of any: a filling that is cut short is of use."""
    parts = []
    for view_id in range(missing.shape[1]):
        open_groups: list[int] = []
        rows = 0
        for group in np.flatnonzero(missing[:, view_id]).tolist():
            more = plan.group_rows[group]
            other_shard = open_groups and plan.group_shard[open_groups[0]] != plan.group_shard[group]
            if open_groups and (other_shard or rows + more > part_rows):
                parts.append(Part(view_id, tuple(open_groups)))
                open_groups, rows = [], 0
            open_groups.append(group)
            rows += more
        if open_groups:
            parts.append(Part(view_id, tuple(open_groups)))
    return tuple(parts)


def segment_of(plan: Plan, part: Part) -> Segment:
    """The views of a part, `seq` counting its tiles; those of weight 0 are left out."""
    rows = [plan.group_rows[group] for group in part.groups]
    which, row = np.repeat(part.groups, rows), np.concatenate([np.arange(n) for n in rows])
    keep = np.ones(len(which), bool)
    if plan.weights is not None:
        keep = plan.weights.per_tile[first_tiles(plan)[which] + row] > 0
    return paired_segment(plan, 0, np.arange(len(which)), which, row, np.full(len(which), part.view_id), keep)


@dataclass(frozen=True)
class Shelving:
    """Where a teacher's features go and in which form.

    Attributes:
        missing: bool [num_groups, per_tile], what of the plan this teacher lacks.
    """

    name: str
    uri: str
    codec: Codec
    missing: np.ndarray


def write_part(
    to: Shelving, plan: Plan, shards: Sequence[ShardEntry], part: Part, row: dict[str, Any], cfg: config.Storage
) -> list[dict[str, Any]]:
    """Writes one teacher's features of a part; returns the journal's rows, which make them count.

    Args:
        row: the micro-batch, without its leading 1: `seq`, `weight`, `pixels`, `partner_id`, `tile_id`,
            `<teacher>.summary`, `<teacher>.tokens`.
    """
    assert plan.pairing is not None
    rows = [plan.group_rows[group] for group in part.groups]
    real = np.flatnonzero((row["seq"] >= 0) & (row["weight"] > 0))
    at = row["seq"][real]
    tile_id, partner_id = (laid(sum(rows), at, row[name][real], "") for name in ("tile_id", "partner_id"))
    pixels = laid(sum(rows), at, row["pixels"][real], np.uint64(0))
    summary = row[f"{to.name}.summary"]
    columns: list[pa.Array] = [
        pa.array(tile_id.tolist(), pa.string()),
        pa.array(np.full(sum(rows), part.view_id, np.int32)),
        pa.array([p or None for p in partner_id.tolist()], pa.string()),
        pa.array(pixels, mask=pixels == 0),
        as_lists(laid(sum(rows), at, summary[real], np.float16(0)), pa.float16()),
    ]
    tokens, kept = row[f"{to.name}.tokens"], None
    if to.codec.format != "none":
        encoded = to.codec.encode(tokens[real])
        columns.append(as_lists(laid(sum(rows), at, encoded, encoded.dtype.type(0)), to.codec.item))
        kept = (encoded.shape[1], to.codec.item)
    schema = vector_schema(to.name, summary.shape[1], kept)
    data = to_parquet(pa.Table.from_arrays(columns, schema=schema), rows)
    digest = hashlib.sha256(data).hexdigest()
    first, last = (plan.group_index[part.groups[i]] for i in (0, -1))
    sha256 = shards[plan.group_shard[part.groups[0]]].sha256
    # Named by content as well: a part that is made anew, with other partners, never stands where an old one is read.
    path = f"parts/{sha256[:16]}/v{part.view_id:04d}-g{first:06d}-{last:06d}-{digest[:8]}.parquet"
    storage.write_bytes(storage.join(to.uri, path), data, cfg)
    partners = plan.pairing.keys[partner_groups(plan.pairing, part.view_id)] if plan.mix_share else None
    return [
        {
            "shard": sha256,
            "group": plan.group_index[group],
            "view_id": part.view_id,
            "partner": 0 if partners is None else int(partners[group]),
            "path": path,
            "row_group": i,
            "rows": plan.group_rows[group],
            "bytes": len(data),
            "sha256": digest,
        }
        for i, group in enumerate(part.groups)
    ]


def laid(num: int, at: np.ndarray, values: np.ndarray, empty: Any) -> np.ndarray:
    """`values` at the places `at` of `num` rows, `empty` elsewhere."""
    out = np.full((num, *values.shape[1:]), empty, object if isinstance(empty, str) else values.dtype)
    out[at] = values
    return out
