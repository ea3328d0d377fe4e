"""Tiny labelled tile data sets whose classes are colours, and encoders that know them or do not: known answers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from pathryoshka import config
from pathryoshka.evaluate.contenders import Contender
from pathryoshka.tiles import shards

CFG = config.Storage()
SIZE = 32
COLOURS = {"blue": (90, 60, 160), "pink": (220, 120, 170), "white": (235, 225, 230)}


def tile(label: str, seed: int, size: int = 40) -> np.ndarray:
    """Noisy blotches about the colour of the class."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 45, (6, 6, 1)) + rng.normal(0, 10, (6, 6, 3))
    smooth = np.stack(
        [np.asarray(Image.fromarray(coarse[..., c].astype(np.float32)).resize((size, size))) for c in range(3)], -1
    )
    return np.clip(np.array(COLOURS[label]) + smooth, 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def rows(n: int, start: int = 0, split: str = "test", site: str = "north", **over: Any) -> list[dict[str, Any]]:
    """`n` tiles of n // 6 patients with two slides each."""
    out = []
    for i in range(start, start + n):
        label = list(COLOURS)[i % 3]
        out.append(
            {"tile_id": f"{split}/{i}", "slide_id": f"s{i // 3}", "patient_id": f"p{i // 6}", "site": site}
            | {"image": png(tile(label, i)), "x": None, "y": None, "width": 40, "height": 40, "mpp": None}
            | {"tissue": 1.0, "label": label, "split": split, **over}
        )
    return out


def write(to: Path, tiles: list[dict[str, Any]], made_by: dict[str, Any] | None = None) -> str:
    entries = []
    for split in dict.fromkeys(row["split"] for row in tiles):
        table = pa.Table.from_pylist([row for row in tiles if row["split"] == split], schema=shards.SCHEMA)
        entries.append(shards.write_shard(str(to), f"{split}.parquet", table, CFG, rows_per_group=16))
    shards.write_manifest(str(to), entries, made_by or {"kind": "test"}, CFG)
    return str(to)


def mean_colour(views: np.ndarray) -> np.ndarray:
    return views.reshape(len(views), -1, 3).mean(1) / 255 - 0.5


def good(views: np.ndarray) -> np.ndarray:
    """24 numbers that hold the colour three times over, the first 8 alone almost as well as all."""
    return np.repeat(mean_colour(views), 8, axis=1).reshape(len(views), 3, 8).transpose(0, 2, 1).reshape(len(views), 24)


def blind(views: np.ndarray) -> torch.Tensor:
    """24 numbers that know nothing of colour."""
    noise = views.reshape(len(views), -1).astype(np.int64).sum(1)
    return torch.stack([torch.from_numpy(np.random.default_rng(int(s)).standard_normal(24)) for s in noise])


def teacher(views: np.ndarray) -> dict[str, torch.Tensor]:
    """A teacher's features: the summary is what counts."""
    summary = torch.from_numpy(np.tile(mean_colour(views), (1, 12)))
    return {"summary": summary.half(), "tokens": torch.zeros(len(views), 4, 5)}


CONTENDERS = (
    Contender("student", "student", good, 1000, 0.5),
    Contender("start", "start", blind, 1000, 0.5),
    Contender("random weights", "random", blind, 1000, 0.5),
    Contender("t0", "teacher", teacher, 9000, 4.0),
    Contender("t1", "teacher", good, 7000, 2.0),
)
WIDTHS = (8, 24)
