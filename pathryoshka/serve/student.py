"""The deployment that holds the model. Tiles of many requests become one batch; all widths are cut from one vector."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
from ray import serve

from pathryoshka import config
from pathryoshka.embedding.engine import at_hand
from pathryoshka.export.facts import facts_at

LARGEST_BATCH = 32
"""Tiles of one forward pass, at most."""
PASS_S = 0.25
"""What a forward pass may take: a large batch on a slow machine would make everybody wait for its last tile."""
LINGER_S = 0.004
WARM_UPS = 3


def num_views(requests: list[np.ndarray]) -> int:
    return sum(len(views) for views in requests)


@serve.deployment(name="student")
class Student:
    """One replica: the model in its engine, on its device."""

    def __init__(self, path: str, device: str, threads: int, storage: dict[str, Any]) -> None:
        cfg = config.Storage.model_validate(storage)
        self.facts = facts_at(path, cfg)
        engine = at_hand(path, self.facts, device, threads, cfg)
        self.engine, self.model = engine.name, engine.student(**engine.arguments)
        size = self.facts["size"]
        blank = np.full((LARGEST_BATCH, size, size, 3), 255, np.uint8)
        spent = []
        for _ in range(WARM_UPS):  # the first one compiles, allocates, reads pages
            began = time.perf_counter()
            self.model.embed(blank)
            spent.append(time.perf_counter() - began)
        self.rate = LARGEST_BATCH / min(spent)
        self.batch = max(1, min(LARGEST_BATCH, int(self.rate * PASS_S)))
        self.forward.set_max_batch_size(self.batch)  # type: ignore[attr-defined]

    async def about(self) -> tuple[str, str, float, int]:
        """(model id, engine, tiles a second, tiles of one forward pass)."""
        return self.facts["model_id"], self.engine, self.rate, self.batch

    async def embed(self, views: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, 3] -> fp32 [n, all numbers], rows of length 1."""
        parts = [views[start : start + self.batch] for start in range(0, len(views), self.batch)]
        return np.concatenate(await asyncio.gather(*(self.forward(part) for part in parts)))

    @serve.batch(max_batch_size=LARGEST_BATCH, batch_wait_timeout_s=LINGER_S, batch_size_fn=num_views)
    async def forward(self, requests: list[np.ndarray]) -> list[np.ndarray]:
        """As `embed`, for parts of several requests that are one forward pass together."""
        vectors = await asyncio.to_thread(self.model.embed, np.concatenate(requests))
        ends = np.cumsum([len(views) for views in requests])[:-1]
        return list(np.split(vectors, ends))

    async def tokens(self, view: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """uint8 [size, size, 3] -> fp32 [N, D], row by row over the grid that comes with it (rows, columns)."""
        tokens = await asyncio.to_thread(self.model.tokens, view[None])
        rows, columns = self.facts["grid"]
        return tokens[0], (rows, columns)
