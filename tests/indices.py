"""Tables of vectors with known neighbours, for tests of search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pathryoshka import config
from pathryoshka.features.table import as_lists
from pathryoshka.search import Index, writing
from pathryoshka.search.filters import Filter
from pathryoshka.search.source import MODEL_ID

MODEL = "a1" * 32
WIDTH = 96
NUM = 3000
CFG = config.Storage(lease_ttl_s=1)


def vectors(num: int, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    """fp32 [num, width] of length 1, in clusters, the first numbers the largest."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, width + 1) ** -0.7
    centres = np.random.default_rng(99).standard_normal((max(1, num // 40), width))
    x = (centres[rng.integers(0, len(centres), num)] + 0.7 * rng.standard_normal((num, width))) * spectrum
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def facts(num: int, name: str = "t") -> dict[str, list[str | None]]:
    """Ten tiles a slide, three slides a patient, two sites, a label for most."""
    return {
        "tile_id": [f"{name}{i // 10}/{i}" for i in range(num)],
        "slide_id": [f"{name}{i // 10}" for i in range(num)],
        "patient_id": [f"{name}p{i // 30}" for i in range(num)],
        "site": ["north" if i // 30 % 2 else "south" for i in range(num)],
        "label": [None if i % 7 == 0 else f"l{i % 3}" for i in range(num)],
    }


def write_table(
    path: Path, x_ND: np.ndarray, columns: dict[str, list[str | None]], model: str | None = MODEL,
    column: str = "student.summary", **more: pa.Array,
) -> str:  # fmt: skip
    table = pa.table({**columns, **more, column: as_lists(x_ND, pa.float32())})
    table = table.replace_schema_metadata({MODEL_ID: model.encode()} if model else {})
    pq.write_table(table, path, row_group_size=1000, write_page_checksum=True)
    return str(path)


def brute(x_ND: np.ndarray, query: np.ndarray, width: int, allowed: np.ndarray | None = None) -> np.ndarray:
    """Row numbers, falling by cosine in float64: the judge, which shares no code with what it judges."""
    x, q = x_ND[:, :width].astype(np.float64), query[:width].astype(np.float64)
    scores = x @ q / np.sqrt((x * x).sum(1) * (q @ q))
    if allowed is not None:
        scores[~allowed] = -np.inf
    order = np.argsort(-scores, kind="stable")
    return order[: len(order) if allowed is None else int(allowed.sum())]


NAMES = np.array(facts(NUM)["tile_id"])


def index_of(folder: Path) -> tuple[str, Path]:
    """A table of NUM vectors and its index, of three segments."""
    table = write_table(folder / "t.parquet", vectors(NUM), facts(NUM))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "SEGMENT_ROWS", 1300)
        writing.build(table, str(folder / "index"), CFG)
    return table, folder / "index"


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "remove":
        file.unlink()
        return
    data[len(data) // 2] ^= 4
    file.write_bytes(data if how == "flip" else data[:-1])


def ids(
    index: Index, query: np.ndarray, width: int = WIDTH, k: int = 10, only: Filter | None = None, **options: Any
) -> list[str]:
    return [hit.tile_id for hit in index.search(query, [width], k, only, **options)[width]]
