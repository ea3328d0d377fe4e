"""Word from outside that a checkpoint is wanted before its turn.

Two things are announced some seconds ahead: the driver was told to end (SIGTERM: a stopped job, a time limit), and a
node will be taken away (a spot instance; Ray calls it draining). In both cases what was trained since the last
checkpoint is worth keeping. All ranks have to agree on the step at which they do: they look at the same steps, about
every `EVERY_S` seconds, and rank 0's answer counts.
"""

from __future__ import annotations

import time
from typing import Literal

import ray
import ray.train
from ray.exceptions import RayError

from pathryoshka.distill.learner import agree

EVERY_S = 2.0
Wish = Literal["none", "keep", "stop"]
"""Nothing; a checkpoint now, and on; a checkpoint now, and the end."""


class Notice:
    """Asked by every rank after every step; the same answer everywhere.

    Args:
        console: name of the driver's `Console` actor, none = nobody can tell us to end.
        step: where the workers start.
    """

    def __init__(self, console: str | None, rank: int, step: int):
        self.console = ray.get_actor(console) if console and rank == 0 else None
        self.rank, self.since, self.last, self.next = rank, time.monotonic(), step, step + 1
        self.kept_for: tuple[str, ...] = ()

    def at(self, step: int) -> Wish:
        """What is wanted after `step`; talks to other processes only every few seconds."""
        if step < self.next:
            return "none"
        now = time.monotonic()
        stride = max(1, int(EVERY_S * (step - self.last) / max(now - self.since, 1e-6)))
        wish, stride = agree((self.ask() if self.rank == 0 else "none", stride))
        self.since, self.last, self.next = now, step, step + stride
        info = ray.train.get_preemption_info()  # a barrier of its own: the same on every rank
        going = tuple(info.preempted_node_ids) if info else ()
        if wish == "none" and going != self.kept_for:
            wish = "keep"
        self.kept_for = going
        return wish

    def ask(self) -> Wish:
        try:
            return "stop" if self.console and ray.get(self.console.ending.remote(), timeout=EVERY_S) else "none"
        except (RayError, TimeoutError):
            return "none"  # the driver is busy, or gone: then Ray ends us anyway
