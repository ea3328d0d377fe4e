"""Encoders as actors: the same embedding pass over a cluster's GPUs, several batches of each encoder in flight.

Tiles are read and decoded once, by whoever evaluates; views go to the actors, vectors come back. In one process and
over actors the vectors are the same (tests/test_spread.py).
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle

from pathryoshka.evaluate.embed import Encode


@ray.remote(max_restarts=2, max_task_retries=2)
class Seat:
    """One replica of an encoder."""

    def __init__(self, load: Callable[[], Encode]) -> None:
        self.encoder = load()

    def encode(self, views: np.ndarray) -> Any:
        out = self.encoder(views)
        out = out["summary"] if isinstance(out, dict) else out
        return out.detach().float().cpu().numpy() if hasattr(out, "detach") else np.asarray(out, np.float32)


class Spread:
    """An encoder whose batches go to whichever of its actors is free."""

    def __init__(self, load: Callable[[], Encode], num_actors: int, num_gpus: float) -> None:
        self.load, self.num_actors, self.num_gpus = load, num_actors, num_gpus
        self.free: queue.Queue[ActorHandle] = queue.Queue()
        self.actors: list[ActorHandle] = []

    def start(self) -> None:
        seat = Seat.options(num_cpus=0 if self.num_gpus else 1, num_gpus=self.num_gpus)  # type: ignore[attr-defined]
        self.actors = [seat.remote(self.load) for _ in range(self.num_actors)]
        for actor in self.actors:
            self.free.put(actor)

    def __call__(self, views: np.ndarray) -> np.ndarray:
        actor = self.free.get()
        try:
            out: Any = ray.get(actor.encode.remote(views))
            return np.asarray(out)
        finally:
            self.free.put(actor)

    def stop(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


@contextlib.contextmanager
def spreading(num_actors: int, num_gpus: float) -> Iterator[Callable[[Callable[[], Encode]], Encode]]:
    """What makes an encoder of a loader; its actors end with the context."""
    started: list[Spread] = []

    def seat(load: Callable[[], Encode]) -> Encode:
        one = Spread(load, num_actors, num_gpus)
        one.start()
        started.append(one)
        return one

    try:
        yield seat
    finally:
        for one in started:
            one.stop()
