"""A service without Ray for tests of its HTTP side and its page: the same door, on a real socket, over a real model."""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn
from PIL import Image

from pathryoshka import config
from pathryoshka.export.load import Embedder
from pathryoshka.features.table import as_lists
from pathryoshka.search.source import MODEL_ID
from pathryoshka.search.writing import build
from pathryoshka.serve.door import House, make_door
from pathryoshka.serve.token import digest

TOKEN = "a-token-for-tests-only"


class InProcess:
    """The model itself, where a service has replicas."""

    def __init__(self, model: Embedder, pause_s: float = 0.0) -> None:
        self.model, self.pause_s = model, pause_s

    async def embed(self, views: np.ndarray) -> np.ndarray:
        await asyncio.sleep(self.pause_s)
        return (await asyncio.to_thread(self.model.embed, views)).numpy()

    async def tokens(self, view: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        rows, columns = self.model.facts["grid"]
        return self.model.tokens(view[None])[0].numpy(), (rows, columns)


def house_of(model: Embedder, **over: object) -> House:
    house = House(model.facts, InProcess(model), rate=1000.0, at_least=32, wanted=digest(TOKEN))
    return replace(house, **over)  # type: ignore[arg-type]


@contextlib.contextmanager
def listening(house: House) -> Iterator[str]:
    """The URL of a door on a free port of loopback."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(make_door(house), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server.started
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=30)


def write_index(
    path: Path, model: Embedder, tiles: Mapping[str, np.ndarray], slide: Path | None = None, side: int = 224
) -> None:
    """An index of single tiles (`label/name` -> uint8 [H, W, 3]) and of a grid of squares over a slide."""

    def row(
        tile_id: str, patient: str, label: str | None, place: tuple[int, int, int] | None, pixels: np.ndarray
    ) -> dict[str, Any]:
        left, top, wide = place or (None, None, None)
        return {
            "tile_id": tile_id,
            "slide_id": slide.stem if place and slide else "tiles",
            "patient_id": patient,
            "site": "here",
            "label": label,
            "left": left,
            "top": top,
            "side": wide,
            "pixels": pixels,
        }

    named = enumerate(tiles.items())
    rows = [row(name, f"patient {i % 3}", name.split("/")[0], None, pixels) for i, (name, pixels) in named]
    if slide is not None:
        with openslide.OpenSlide(str(slide)) as opened:
            width, height = opened.dimensions
            for left, top in itertools.product(range(0, width - side + 1, side), range(0, height - side + 1, side)):
                pixels = np.array(opened.read_region((left, top), 0, (side, side)).convert("RGB"))
                name = f"{slide.stem}/{left}_{top}_{side}"
                rows.append(row(name, slide.stem, None, (left, top, side), pixels))
    vectors = np.concatenate([model.embed(row["pixels"][None]).numpy() for row in rows])
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "pixels"}
    table = pa.table(
        {**columns, "image": pa.array([jpeg(row["pixels"]) for row in rows], pa.binary())},
    ).append_column("vector", as_lists(vectors, pa.float32()))
    table = table.replace_schema_metadata({MODEL_ID: model.model_id.encode()})
    pq.write_table(table, path.with_suffix(".parquet"), write_page_checksum=True)
    build(str(path.with_suffix(".parquet")), str(path), config.Storage(), dtype="float32")


def jpeg(pixels: np.ndarray) -> bytes:
    return saved(pixels, "JPEG", quality=90)


def saved(pixels: np.ndarray, form: str, **options: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, form, **options)
    return sink.getvalue()
