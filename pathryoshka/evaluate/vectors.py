"""Embeddings kept for the next evaluation: one file an encoder and data set, in the one table for vectors, float32.

A vector is taken again only for the same tile and the very same pixels of its view (both are at hand whenever tiles are
scored, and are compared), and only under the same key, a digest of all that the encoder computes from. So a data set
that grows costs its new tiles, and twins that are scored beside the same teachers cost these once.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathryoshka import config, storage
from pathryoshka.features.table import as_lists, as_matrix, to_parquet, vector_schema

IDENTITY = -1
FACTS = b"pathryoshka.encoder"


@dataclass
class Kept:
    """What is kept of one encoder on one data set.

    Attributes:
        rows: tile -> (hash of its view's bytes, vector fp32 [D]).
        facts: what else is known of the encoder, e.g. its `gflop`.
    """

    rows: dict[str, tuple[int, np.ndarray]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def vector(self, tile_id: str, pixels: int) -> np.ndarray | None:
        there = self.rows.get(tile_id)
        return there[1] if there and there[0] == pixels else None


def place(root: str, key: str, dataset: str) -> str:
    """Where the vectors of an encoder lie.

    Args:
        root: folder or URI of all that is kept. key: digest of the encoder. dataset: URI of the tiles.
    """
    name = hashlib.sha256(dataset.rstrip("/").encode()).hexdigest()[:16]
    return storage.join(root, key[:32], f"{name}.parquet")


def read_kept(where: str, cfg: config.Storage) -> Kept:
    """What is kept at `where`; nothing where there is no file, or none that can be read: then it is made anew."""
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(where, cfg)), page_checksum_verification=True)
        column = next(name for name in table.column_names if name.endswith(".summary"))
        pairs = zip(table["pixels"].to_pylist(), as_matrix(table[column]), strict=True)
        rows = dict(zip(table["tile_id"].to_pylist(), pairs, strict=True))
        return Kept(rows, json.loads((table.schema.metadata or {})[FACTS]))
    except (storage.NotFound, pa.ArrowException, OSError, StopIteration, KeyError, ValueError):
        return Kept()


def write_kept(where: str, encoder: str, kept: Kept, cfg: config.Storage) -> None:
    """Replaces what is at `where`, as one file that is whole or not there."""
    ids = sorted(kept.rows)
    vectors = np.stack([kept.rows[tile_id][1] for tile_id in ids])
    schema = vector_schema(encoder, vectors.shape[1], item=pa.float32())
    columns = [
        pa.array(ids, pa.string()),
        pa.array(np.full(len(ids), IDENTITY, np.int32)),
        pa.nulls(len(ids), pa.string()),
        pa.array([kept.rows[tile_id][0] for tile_id in ids], pa.uint64()),
        as_lists(vectors, pa.float32()),
    ]
    table = pa.Table.from_arrays(columns, schema=schema.with_metadata({FACTS: json.dumps(kept.facts).encode()}))
    groups = [min(4096, len(ids) - start) for start in range(0, len(ids), 4096)]
    storage.write_bytes(where, to_parquet(table, groups), cfg)
