"""One micro-batch to every teacher at once, and the answers joined: the stage between views and the student.

A thin asynchronous actor of the Ray Data graph. It writes the views to the object store once, asks the least loaded
replica of each teacher in parallel, and repeats what was lost with a replica. Who the replicas are comes from the
pool's `Directory`, so one that joins later is used and one that left is not.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from pathryoshka.features.codec import Codec
from pathryoshka.observability.gauges import FLIGHT, Gauges

Answer = tuple[np.ndarray, np.ndarray, float]
"""Summary, tokens, seconds: what a replica's `embed` returns."""
RETRY_S = 0.5
REFRESH_S = 2.0


class TeacherGone(RuntimeError):
    """The pool gave a teacher up; the message is the pool's."""


class FanOut:
    """Callable class for `Dataset.map_batches(batch_size=1)`: adds `<teacher>.summary`, `<teacher>.tokens` and
    `seconds.<teacher>` to a row, which is one micro-batch; where a store had features of some rows, of the others.

    Args:
        directory: name of the pool's directory actor.
        teachers: names, in the order in which their columns are added.
        codecs: of teachers whose tokens a store keeps coarser; what they say goes the same way, for a student must not
            be shown two kinds of targets.
    """

    def __init__(self, directory: str, teachers: tuple[str, ...], codecs: Mapping[str, Codec]):
        self.directory = ray.get_actor(directory)
        self.teachers, self.codecs = teachers, codecs
        self.members: dict[str, list[ActorHandle]] = {}
        self.version, self.refreshed = -1, 0.0
        self.load: Counter[Any] = Counter()
        self.asked: Counter[str] = Counter()
        self.owner = {"run": directory.removesuffix("/directory")}
        self.gauges = Gauges("pathryoshka_teacher_in_flight", FLIGHT, ("run",))

    async def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        views, token_pos = batch["views"][0], batch["token_pos"][0]
        everything = ray.put(views)
        answers = await asyncio.gather(
            *(self.ask_what_lacks(name, batch, views, everything, token_pos) for name in self.teachers)
        )
        out = dict(batch)
        for name, (summary, tokens, seconds) in zip(self.teachers, answers, strict=True):
            out[f"{name}.summary"], out[f"{name}.tokens"] = summary[None], tokens[None]
            out[f"seconds.{name}"] = np.array([seconds], np.float32)
        return out

    async def ask_what_lacks(
        self,
        teacher: str,
        batch: dict[str, np.ndarray],
        views: np.ndarray,
        everything: ray.ObjectRef,
        token_pos: np.ndarray,
    ) -> Answer:
        """A teacher's features of a micro-batch: of all rows, or of those that a store did not have."""
        if f"{teacher}.stored" not in batch:
            return await self.ask(teacher, everything, token_pos)
        summary, tokens = batch[f"{teacher}.summary"][0].copy(), batch[f"{teacher}.tokens"][0].copy()
        lacks = np.flatnonzero(batch[f"{teacher}.stored"][0] == 0)
        if not len(lacks):
            return summary, tokens, 0.0
        summary[lacks], tokens[lacks], seconds = await self.ask(teacher, ray.put(views[lacks]), token_pos[lacks])
        return summary, tokens, seconds

    async def ask(self, teacher: str, views: ray.ObjectRef, token_pos: np.ndarray) -> Answer:
        self.count(teacher, len(token_pos))
        try:
            summary, tokens, seconds = await self.ask_until_answered(teacher, views, token_pos)
        finally:
            self.count(teacher, -len(token_pos))
        if teacher in self.codecs and tokens.size:
            tokens = await asyncio.to_thread(self.codecs[teacher].again, tokens)
        return summary, tokens, seconds

    def count(self, teacher: str, views: int) -> None:
        self.asked[teacher] += views
        self.gauges.show(self.owner, {f"views/{teacher}": float(self.asked[teacher])})

    async def ask_until_answered(self, teacher: str, views: ray.ObjectRef, token_pos: np.ndarray) -> Answer:
        while True:
            replica = await self.pick(teacher)
            self.load[replica] += 1
            try:
                return await replica.embed.remote(views, token_pos)
            except RayActorError:
                # Dead or restarting. Leave the name to the directory; come back for whoever is alive then.
                await asyncio.sleep(RETRY_S)
                self.refreshed = 0.0
            finally:
                self.load[replica] -= 1

    async def pick(self, teacher: str) -> ActorHandle:
        """The replica with the fewest calls of ours in flight; waits while there is none.

        Raises:
            TeacherGone: the pool gave up.
        """
        while True:
            if time.monotonic() - self.refreshed > REFRESH_S:
                self.refreshed = time.monotonic()
                version, members, failure = await self.directory.read.remote(self.version)
                if failure:
                    raise TeacherGone(failure)
                if members is not None:
                    self.version, self.members = version, members
            alive = self.members.get(teacher, [])
            if alive:
                return min(alive, key=lambda replica: self.load[replica])
            await asyncio.sleep(RETRY_S)
