"""The table of embeddings: the one table for vectors, and beside each vector whose tile it is and where it lies."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pathryoshka.embedding.recipe import Recipe
from pathryoshka.features.table import as_lists, to_parquet, vector_schema

ENCODER = "student"
VECTOR = f"{ENCODER}.summary"
IDENTITY = -1
ROWS_PER_GROUP = 4096
FACTS = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("pixels", pa.uint64()),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("site", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("x", pa.int32()),
        pa.field("y", pa.int32()),
        pa.field("side", pa.float32()),
        pa.field("mpp", pa.float32()),
    ]
)
"""What a reader says of a tile: `x`, `y`, `side` in pixels of level 0, null where they are not known; `mpp` of the
tile; `pixels` a hash of its view."""


@dataclass(frozen=True)
class Tiles:
    """Some tiles of a unit on their way to the student.

    Attributes:
        facts: table of FACTS, n rows. views: uint8 [n, S, S, 3]. failures: tile -> why it cannot be decoded.
    """

    facts: pa.Table
    views: np.ndarray
    failures: dict[str, str]


def facts_table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), FACTS)


def to_bytes(table: pa.Table) -> np.ndarray:
    """A table as uint8 [n], as a column of a Ray block may hold it."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return np.frombuffer(sink.getvalue(), np.uint8)


def from_bytes(data: np.ndarray) -> pa.Table:
    return pa.ipc.open_stream(pa.py_buffer(np.ascontiguousarray(data))).read_all()


def part_schema(recipe: Recipe) -> pa.Schema:
    """Columns of a part, whose metadata says which model made it."""
    vectors = vector_schema(ENCODER, recipe.width, item=pa.type_for_alias(recipe.dtype))
    more = [field for field in FACTS if field.name not in vectors.names]
    return pa.schema([*vectors, *more], {"pathryoshka.model_id": recipe.model_id})


def part_bytes(recipe: Recipe, facts: pa.Table, vectors_ND: np.ndarray) -> bytes:
    """The Parquet file of a unit: FACTS and fp32 [N, width] in one order; equal rows give equal bytes."""
    schema = part_schema(recipe)
    numbers = np.dtype(recipe.dtype)
    made = {
        "view_id": pa.array(np.full(len(facts), IDENTITY, np.int32)),
        "partner_id": pa.nulls(len(facts), pa.string()),
        VECTOR: as_lists(vectors_ND.astype(numbers), schema.field(VECTOR).type.value_type),
    }
    columns = [made[name] if name in made else facts[name] for name in schema.names]
    groups = [min(ROWS_PER_GROUP, len(facts) - start) for start in range(0, len(facts), ROWS_PER_GROUP)]
    return to_parquet(pa.Table.from_arrays(columns, schema=schema), groups)
