"""Neighbours of a vector, by width, and the pictures of the tiles they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathryoshka.features.table import as_matrix
from pathryoshka.serve.schema import Hit

MODEL_ID = b"pathryoshka.model_id"
FACTS = ("tile_id", "slide_id", "patient_id", "site", "label")


class Index(Protocol):
    """What a door needs of an index."""

    @property
    def model_id(self) -> str: ...

    def __len__(self) -> int: ...

    def search(
        self, vector_D: np.ndarray, widths: list[int], k: int, not_patient: str | None, not_slide: str | None
    ) -> dict[int, list[Hit]]: ...

    def image(self, tile_id: str) -> bytes | None: ...

    def on_slide(self, slide_id: str) -> tuple[np.ndarray, np.ndarray]: ...


@dataclass(frozen=True)
class TableIndex:
    """Embedded tiles in one Parquet table, searched exactly: for as many as fit in memory.

    Columns: those of FACTS; `left`, `top`, `side` in pixels of level 0, or null; `image`, encoded, or null; `vector`.
    """

    model_id: str
    table: pa.Table
    vectors_ND: np.ndarray

    def __len__(self) -> int:
        return len(self.table)

    def search(
        self, vector_D: np.ndarray, widths: list[int], k: int, not_patient: str | None, not_slide: str | None
    ) -> dict[int, list[Hit]]:
        """The k nearest for each width, by cosine over that many leading numbers."""
        allowed = np.ones(len(self), bool)
        for column, name in (("patient_id", not_patient), ("slide_id", not_slide)):
            if name is not None:
                allowed &= np.array(self.table[column].to_pylist(), object) != name
        rows = np.flatnonzero(allowed)
        found = {}
        for width in widths:
            score = cosines(self.vectors_ND[rows], vector_D, width)
            best = np.argsort(-score, kind="stable")[:k]
            found[width] = [self.hit(int(rows[i]), float(score[i])) for i in best]
        return found

    def hit(self, row: int, score: float) -> Hit:
        facts = {name: self.table[name][row].as_py() for name in FACTS}
        return Hit(score=score, has_image=self.table["image"][row].is_valid, **facts)

    def image(self, tile_id: str) -> bytes | None:
        at = pa.compute.index(self.table["tile_id"], tile_id).as_py()
        return self.table["image"][at].as_py() if at >= 0 else None

    def on_slide(self, slide_id: str) -> tuple[np.ndarray, np.ndarray]:
        """fp64 [N, 3] left, top, side and fp32 [N, D] of the tiles of a slide that have a place."""
        here = pa.compute.and_(pa.compute.equal(self.table["slide_id"], slide_id), self.table["left"].is_valid())
        rows = np.flatnonzero(here.to_numpy(zero_copy_only=False))
        places = np.stack([self.table[name].take(rows).to_numpy() for name in ("left", "top", "side")], axis=1)
        return places.astype(np.float64), self.vectors_ND[rows]


def cosines(vectors_ND: np.ndarray, query_D: np.ndarray, width: int) -> np.ndarray:
    """fp32 [N]: between the first `width` numbers of each row and of the query."""
    rows, query = vectors_ND[:, :width], query_D[:width]
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
    return (rows @ query) / np.maximum(lengths, 1e-12)


def open_index(path: str | Path, model_id: str) -> TableIndex:
    """The table at `path`. Raises Refused-like ValueError where another model made it."""
    table = pq.read_table(path, page_checksum_verification=True)
    made_by = (table.schema.metadata or {}).get(MODEL_ID, b"").decode()
    if made_by != model_id:
        raise ValueError(
            f"{path} was made by model {made_by[:12] or 'unknown'}, not {model_id[:12]}; embed the tiles again"
        )
    return TableIndex(model_id, table, as_matrix(table["vector"]).astype(np.float32))
