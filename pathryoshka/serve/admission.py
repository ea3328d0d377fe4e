"""How much may wait. A queue is bounded by the time it takes, not by its length: a slow student gets a short one.

What a request waits is what is before it, over what the students do a second. That rate is measured when they start;
whoever would wait longer than `Limits.wait_s` is told at once when to come back, so those who are let in are answered
in bounded time however many knock.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from pathryoshka.serve.tile import Refused


class Admission:
    """Tiles that are being worked on or wait, counted within one door; not shared between threads.

    Attributes:
        most: tiles that may be in at once. rate: tiles a second that the students make.
    """

    def __init__(self, rate: float, wait_s: float, at_least: int) -> None:
        """`at_least`: tiles that may be in whatever the rate: one batch for each student, which must not idle."""
        self.rate, self.most = rate, max(at_least, int(rate * wait_s))
        self.inside = 0

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
        try:
            yield
        finally:
            self.inside -= num_tiles
