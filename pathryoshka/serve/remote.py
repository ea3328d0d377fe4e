"""A door's way to the students. What is asked is asked again where the replica that had it died.

An embedding is a pure function of pixels, so asking twice is harmless; that is why a request that was let in is not
lost with a replica.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from pathryoshka.serve.tile import Refused

AT_ONCE = 32
"""Tiles sent to one replica; more of them are shared out."""
NUM_TRIES = 5
PAUSE_S = 0.2


class Students:
    """The student deployment of an application, as an `Encoder` of `door`."""

    def __init__(self, application: str) -> None:
        self.handle = serve.get_deployment_handle("student", app_name=application)

    async def embed(self, views: np.ndarray) -> np.ndarray:
        parts = [views[start : start + AT_ONCE] for start in range(0, len(views), AT_ONCE)]
        return np.concatenate(await asyncio.gather(*(again(self.handle.embed.remote, part) for part in parts)))

    async def tokens(self, view: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        tokens, grid = await again(self.handle.tokens.remote, view)
        return tokens, grid


async def again(ask: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """The answer of a replica; of another one where the first died.

    Raises:
        Refused: 429 where Ray's own queue is full, 503 where no replica lives long enough to answer.
    """
    for _ in range(NUM_TRIES):
        try:
            return await ask(*args)
        except BackPressureError:
            raise Refused(429, "all students are busy; come back in 1 s", 1) from None
        except (RayActorError, DeploymentUnavailableError):
            await asyncio.sleep(PAUSE_S)
    raise Refused(503, "the students die as soon as they are asked; look at the log of the service", 5)
