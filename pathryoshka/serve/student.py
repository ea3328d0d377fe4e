"""The deployment that holds the model. Tiles of many requests become one batch; all widths are cut from one vector."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
from ray import serve

from pathryoshka import config
from pathryoshka.export.load import load

BATCH = 32
"""Tiles of one forward pass. On a CPU larger ones are no faster; on a GPU a ViT-B is within 10 % of its best."""
LINGER_S = 0.004
WARM_UPS = 3


def num_views(requests: list[np.ndarray]) -> int:
    return sum(len(views) for views in requests)


@serve.deployment(name="student")
class Student:
    """One replica: the model, on its device."""

    def __init__(self, path: str, device: str, threads: int, storage: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(threads)
        self.model = load(path, device=device, storage=config.Storage.model_validate(storage))
        blank = np.full((BATCH, self.model.size, self.model.size, 3), 255, np.uint8)
        spent = []
        for _ in range(WARM_UPS):  # the first one compiles, allocates, reads pages
            began = time.perf_counter()
            self.model.embed(blank)
            spent.append(time.perf_counter() - began)
        self.rate = BATCH / min(spent)

    async def about(self) -> tuple[str, float]:
        """(model id, tiles a second)."""
        return self.model.model_id, self.rate

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=LINGER_S, batch_size_fn=num_views)
    async def embed(self, requests: list[np.ndarray]) -> list[np.ndarray]:
        """Views of some requests, each uint8 [n, size, size, 3], to fp32 [n, all numbers], rows of length 1."""
        vectors = await asyncio.to_thread(self.model.embed, np.concatenate(requests))
        ends = np.cumsum([len(views) for views in requests])[:-1]
        return [np.ascontiguousarray(part) for part in np.split(vectors.numpy(), ends)]

    async def tokens(self, view: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        """uint8 [size, size, 3] -> fp32 [N, D], row by row over the grid that comes with it (rows, columns)."""
        tokens = await asyncio.to_thread(self.model.tokens, view[None])
        rows, columns = self.model.facts["grid"]
        return tokens[0].numpy(), (rows, columns)
