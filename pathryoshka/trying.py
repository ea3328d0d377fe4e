"""Teachers tried before a run: fetched, embedded with, and tuned to the machine they will run on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from pathryoshka import config
from pathryoshka.doctor import memory_bytes
from pathryoshka.teachers import hub, weights
from pathryoshka.teachers.check import Check, check
from pathryoshka.teachers.encoder import load_encoder
from pathryoshka.teachers.tune import MIB, Tuned, tune
from pathryoshka.teachers.zoo import row_by_name
from pathryoshka.tiles.phantom import LABELS, phantom_tile
from pathryoshka.tiles.shards import iter_tiles
from pathryoshka.tiles.views import decode, identity_view

SHARE = 0.8
"""Of the memory that is free, what a teacher may take on the CPU unless told."""


def fetch_teacher(name: str, to: Path | None) -> str:
    """Brings the weights of a teacher here; returns where they are and what they are, in words."""
    row = row_by_name(name)
    if not row.source.startswith("hf:"):
        return f"{weights.from_source(row, download=True)}: here already, it comes with a package"
    path, fetched = hub.fetch(row, to)
    return f"{path}: {fetched.size:,} bytes, SHA-256 {fetched.sha256}"


def check_teacher(teacher: config.Teacher, storage: config.Storage, tiles: str | None, num_tiles: int) -> Check:
    """Loads a teacher strictly and embeds the first tiles of a data set, or phantom tissue, on its own grid.

    Raises:
        EncoderError, ShardError: what is wrong with the teacher or the tiles.
    """
    row = row_by_name(teacher.model)
    size = row.input_size or 224
    side = max(1, round(size / row.stride)) if row.stride else 16
    encoder = load_encoder(teacher.model, teacher, (side, side), device_of(teacher), storage)
    return check(encoder, views_of(tiles, storage, num_tiles, size))


def views_of(tiles: str | None, storage: config.Storage, num: int, size: int) -> np.ndarray:
    """uint8 [num, size, size, 3]: the first tiles at a URI, or phantom ones."""
    if tiles is None:
        return np.stack([phantom_tile(LABELS[i % len(LABELS)], i, 0, i, 0, size) for i in range(num)])
    images = (image for table in iter_tiles(tiles, storage, columns=("image",)) for image in table["image"].to_pylist())
    return np.stack([identity_view(decode(image), size) for image in itertools.islice(images, num)])


def tune_teachers(run: config.Run, memory_mib: float | None, seconds: float) -> Iterator[Tuned]:
    """The best batch size of each teacher of a run, as each is found. One at a time: give teachers that will share a
    device a share of its memory each."""
    for name, teacher in run.teachers.models.items():
        device = device_of(teacher)
        budget = SHARE * memory_bytes()[1] / MIB if memory_mib is None and device == "cpu" else memory_mib
        yield tune(name, teacher, run.views.size, device, budget, seconds)


def device_of(teacher: config.Teacher) -> str:
    if teacher.device in ("cpu", "mock"):
        return "cpu"
    return "cuda" if teacher.device == "cuda" or torch.cuda.is_available() else "cpu"
