"""The one table for vectors: which tile, which view of it, what an encoder says.

Columns: `tile_id`; `view_id` (-1 is the identity view); `partner_id`, the tile mixed in, or null; `pixels`, a 64-bit
hash of the very view, null where it could not be made; `<encoder>.summary` and, where kept, `<encoder>.tokens`, lists
of a fixed length. Any Parquet reader takes it; every page carries a checksum.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SUMMARY = pa.float16()
"""Of a teacher's features; embeddings that are scored keep float32."""


def vector_schema(
    encoder: str, summary_dim: int, tokens: tuple[int, pa.DataType] | None = None, item: pa.DataType = SUMMARY
) -> pa.Schema:
    """Columns of one encoder's vectors; `tokens`: numbers a row and their type; `item`: type of a summary's numbers."""
    fields = [
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("view_id", pa.int32(), nullable=False),
        pa.field("partner_id", pa.string()),
        pa.field("pixels", pa.uint64()),
        pa.field(f"{encoder}.summary", pa.list_(item, summary_dim)),
    ]
    if tokens is not None:
        fields.append(pa.field(f"{encoder}.tokens", pa.list_(tokens[1], tokens[0])))
    return pa.schema(fields)


def as_lists(x_ND: np.ndarray, item: pa.DataType) -> pa.FixedSizeListArray:
    """[N, D] as a column of lists of D numbers."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(x_ND).ravel(), item), x_ND.shape[1])


def as_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """[N, D] of a column of lists; read-only where it need not be copied."""
    lists = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return lists.flatten().to_numpy(zero_copy_only=False).reshape(len(lists), -1)


def to_parquet(table: pa.Table, group_rows: Sequence[int]) -> bytes:
    """The table with row groups of the given sizes; equal tables give equal bytes."""
    sink = io.BytesIO()
    options = {"compression": "ZSTD", "compression_level": 1, "use_dictionary": False, "write_statistics": False}
    with pq.ParquetWriter(sink, table.schema, write_page_checksum=True, store_schema=True, **options) as writer:
        start = 0
        for rows in group_rows:
            writer.write_table(table.slice(start, rows), row_group_size=rows)
            start += rows
    return sink.getvalue()
