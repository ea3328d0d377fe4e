"""What was measured at each tile beside its class: numbers (gene expression) and who is tested on whom, by slide.

One Parquet file beside the shards of a data set, written before its manifest.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathryoshka import config, storage
from pathryoshka.tiles.shards import ShardError

MEASURED = "_measured.parquet"
FACTS = b"pathryoshka.measured"


@dataclass(frozen=True)
class Measured:
    """Attributes:
    tile_ids: [N] strings. values: fp32 [N, G]. names: G of what was measured.
    folds: (slides to learn from, slides to test) of each official fold.
    """

    tile_ids: tuple[str, ...]
    values: np.ndarray
    names: tuple[str, ...]
    folds: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]

    def of(self, tile_ids: Sequence[str]) -> np.ndarray:
        """[M, G] of some tiles, in their order.

        Raises:
            ShardError: a tile of which nothing was measured.
        """
        row_of = {tile_id: i for i, tile_id in enumerate(self.tile_ids)}
        lost = [tile_id for tile_id in tile_ids if tile_id not in row_of]
        if lost:
            raise ShardError(f"{MEASURED} says nothing of tile {lost[0]}; convert the benchmark again")
        return self.values[[row_of[tile_id] for tile_id in tile_ids]]


def to_bytes(measured: Measured) -> bytes:
    """The file; the same values give the same bytes."""
    flat = pa.array(np.ascontiguousarray(measured.values, np.float32).ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, len(measured.names))
    table = pa.table({"tile_id": pa.array(measured.tile_ids, pa.string()), "values": lists})
    facts = json.dumps({"names": measured.names, "folds": measured.folds})
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({FACTS: facts.encode()}), sink, compression="zstd")
    return sink.getvalue()


def read_measured(uri: str, cfg: config.Storage) -> Measured:
    """Of the data set at `uri`.

    Raises:
        ShardError: there is no such file, or a damaged one.
    """
    where = storage.join(uri, MEASURED)
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(where, cfg)))
        facts = json.loads((table.schema.metadata or {})[FACTS])
    except storage.NotFound:
        raise ShardError(f"there is no {MEASURED} beside the tiles of {uri}; convert the benchmark again") from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ShardError(f"{where} is damaged ({error}); convert the benchmark again") from None
    names = tuple(facts["names"])
    values = table["values"].combine_chunks().flatten().to_numpy().reshape(-1, len(names))
    folds = tuple((tuple(learn), tuple(test)) for learn, test in facts["folds"])
    return Measured(tuple(table["tile_id"].to_pylist()), values, names, folds)
