"""How much may wait. A queue is bounded by the time it takes, not by its length: a slow student gets a short one.

What a request waits is what is before it, over what the students do a second. That rate is measured when they start,
and again on every request that met a long queue (Little's law: tiles inside over seconds inside); whoever would wait
longer than `Limits.wait_s` is told at once when to come back, so those who are let in are answered in bounded time
however many knock and however slow the machine has become.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

from pathryoshka.serve.tile import Refused

LEARN = 0.05
"""Weight of one request in the rate; some dozens of them are a second of a busy service."""


class Admission:
    """Tiles that are being worked on or wait, counted within one door; not shared between threads.

    Attributes:
        rate: tiles a second that the students make, as far as is known. inside: tiles that are in.
    """

    def __init__(self, rate: float, wait_s: float, at_least: int) -> None:
        """`at_least`: tiles that may be in whatever the rate, so that students never idle between two batches."""
        self.rate, self.wait_s, self.at_least = rate, wait_s, at_least
        self.inside = 0

    @property
    def most(self) -> int:
        """Tiles that may be in at once."""
        return max(self.at_least, int(self.rate * self.wait_s))

    @property
    def full(self) -> bool:
        return self.inside >= self.most

    def busy(self) -> Refused:
        seconds = max(1, math.ceil(self.inside / self.rate))
        return Refused(429, f"all students are busy; come back in {seconds} s", seconds)

    @contextlib.contextmanager
    def admit(self, num_tiles: int) -> Iterator[None]:
        """Holds a place for `num_tiles`; a request larger than the whole queue is let in when nothing else is.

        Raises:
            Refused: 429.
        """
        if self.inside and self.inside + num_tiles > self.most:
            raise self.busy()
        self.inside += num_tiles
        met, began = self.inside, time.perf_counter()
        try:
            yield
            if met >= self.most / 2:  # in a short queue it is the door, not the students, that takes the time
                seen = met / max(time.perf_counter() - began, 1e-3)
                self.rate += LEARN * (seen - self.rate)
        finally:
            self.inside -= num_tiles
