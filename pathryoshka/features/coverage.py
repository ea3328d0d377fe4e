"""What a store holds of a teacher: which views of which row groups, in which part of it, mixed with whom.

A part is a Parquet file with the features of one view id of some row groups of one shard, a row group for a row group.
It counts once it stands in the journal, files that are only ever added; where one says what an earlier one said, the
later one holds. So a filling may stop anywhere, and a store grows with its data set: a slide that is added voids
nothing but the views that are now mixed with it.
"""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathryoshka import config, storage
from pathryoshka.tiles.pairs import group_key, partner_groups, view_keys
from pathryoshka.tiles.plan import Plan, first_tiles

JOURNAL = "journal"
ENTRY = re.compile(r"(\d{6})-[0-9a-f]{8}\.parquet")
SCHEMA = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),  # SHA-256
        pa.field("group", pa.int32(), nullable=False),
        pa.field("view_id", pa.int32(), nullable=False),
        pa.field("partner", pa.uint64(), nullable=False),  # key of the group that is mixed in; 0 = none is
        pa.field("path", pa.string(), nullable=False),
        pa.field("row_group", pa.int32(), nullable=False),
        pa.field("rows", pa.int32(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("sha256", pa.string(), nullable=False),
    ]
)


class StoreError(RuntimeError):
    """A store that must not be used as it is; the sentence names what differs and says what to do."""


@dataclass(frozen=True)
class Coverage:
    """The journal, ready to be asked: arrays of length n, one entry a (row group, view id), sorted by `keys`."""

    table: pa.Table = field(repr=False)
    keys: np.ndarray = field(repr=False)
    partners: np.ndarray = field(repr=False)

    @classmethod
    def of(cls, table: pa.Table) -> Coverage:
        """Later rows of the journal hold against earlier ones."""
        shards, groups = table["shard"].to_pylist(), table["group"].to_pylist()
        named = np.array([group_key(s, g) for s, g in zip(shards, groups, strict=True)], np.uint64)
        views = table["view_id"].to_numpy()
        keys = np.empty(len(named), np.uint64)
        for view_id in np.unique(views):
            keys[views == view_id] = view_keys(named[views == view_id], int(view_id))
        _, last = np.unique(keys[::-1], return_index=True)
        rows = len(keys) - 1 - last
        table = table.take(pa.array(rows))
        return cls(table, keys[rows], table["partner"].to_numpy())

    def find(self, keys: np.ndarray) -> np.ndarray:
        """int64: the entry of each key, -1 where there is none."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)

    def missing(self, plan: Plan) -> np.ndarray:
        """bool [num_groups, per_tile]: the views of a plan that are not here, or are mixed with another group than the
        plan says."""
        pairing = plan.pairing
        assert pairing is not None
        needed = np.ones(len(plan.group_rows), bool)
        if plan.weights is not None:
            needed = np.add.reduceat((plan.weights.per_tile > 0).astype(np.int64), first_tiles(plan)) > 0
        out = np.empty((len(needed), pairing.per_tile), bool)
        for view_id in range(pairing.per_tile):
            at = self.find(view_keys(pairing.keys, view_id))
            there = at >= 0
            if plan.mix_share and len(self.keys):
                there &= self.partners[at] == pairing.keys[partner_groups(pairing, view_id)]
            out[:, view_id] = needed & ~there
        return out

    @property
    def num_views(self) -> int:
        return int(self.table["rows"].to_numpy().sum())

    @property
    def num_bytes(self) -> int:
        """Of all parts that are in use."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Path -> bytes."""
        return dict(zip(self.table["path"].to_pylist(), self.table["bytes"].to_pylist(), strict=True))


def read_coverage(uri: str, cfg: config.Storage) -> Coverage:
    """The journal of the teacher kept at `uri`; empty where there is none.

    Raises:
        StoreError: an entry is damaged.
    """
    where, tables = storage.join(uri, JOURNAL), [SCHEMA.empty_table()]
    for name in sorted(path for path in storage.list_files(where, cfg) if ENTRY.fullmatch(path)):
        data = storage.read_bytes(storage.join(where, name), cfg)
        try:
            table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
            tables.append(table.cast(SCHEMA))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StoreError(
                f"{storage.join(where, name)} is damaged ({str(error).splitlines()[0]}); delete it and run "
                "`pathryoshka store fill` again: what it listed is made anew"
            ) from None
    return Coverage.of(pa.concat_tables(tables))


def append(uri: str, rows: Sequence[dict[str, object]], cfg: config.Storage) -> None:
    """Adds one file to the journal."""
    where = storage.join(uri, JOURNAL)
    taken = [int(m[1]) for path in storage.list_files(where, cfg) if (m := ENTRY.fullmatch(path))]
    name = f"{max(taken, default=0) + 1:06d}-{uuid.uuid4().hex[:8]}.parquet"
    write(storage.join(where, name), pa.Table.from_pylist(list(rows), SCHEMA), cfg)


def replace(uri: str, table: pa.Table, cfg: config.Storage) -> None:
    """Makes `table` the whole journal. What is left by an interruption says the same twice."""
    where = storage.join(uri, JOURNAL)
    old = [path for path in storage.list_files(where, cfg) if ENTRY.fullmatch(path)]
    number = max((int(path[:6]) for path in old), default=0) + 1
    write(storage.join(where, f"{number:06d}-{uuid.uuid4().hex[:8]}.parquet"), table, cfg)
    for path in old:
        storage.delete(storage.join(where, path), cfg)


def write(uri: str, table: pa.Table, cfg: config.Storage) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, write_page_checksum=True)
    storage.write_bytes(uri, sink.getvalue(), cfg)
