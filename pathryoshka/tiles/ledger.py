"""What was trained on: seqs as ranges, and an order-free digest of the very bytes.

A ledger lies on an optimizer-step boundary and is saved inside the checkpoint of that step. The plan minus the ledger
is what is left to do, which is how a run continues after any failure and with any number of workers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pathryoshka.tiles.plan import Plan, Segment


class LedgerError(RuntimeError):
    """A seq was trained on twice, or never: the promise of the stream is broken."""


@dataclass(frozen=True)
class Ledger:
    """Seqs trained on as disjoint ascending [start, stop) ranges.

    `content` is the sum, modulo 2**64, of a 64-bit hash of (seq, bytes of the view) over all of them, so that two
    runs which saw the same views in another order have the same value. `failed` counts tiles that could not be decoded
    (rows of weight zero).
    """

    ranges: tuple[tuple[int, int], ...] = ()
    content: int = 0
    failed: int = 0

    @property
    def count(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def add(self, seqs: np.ndarray, content: int = 0, failed: int = 0) -> Ledger:
        """The ledger with `seqs` (padding, -1, left out) added.

        Raises:
            LedgerError: one of them is in the ledger already, or twice in `seqs`.
        """
        new = np.sort(np.asarray(seqs, np.int64))
        new = new[new >= 0]
        if len(new) and (np.diff(new) == 0).any():
            raise LedgerError(f"seq {new[:-1][np.diff(new) == 0][0]} was delivered twice")
        twice = new[self.mask(new)]
        if len(twice):
            raise LedgerError(f"seq {twice[0]} was trained on before")
        breaks = np.flatnonzero(np.diff(new) != 1) + 1
        runs = [(int(r[0]), int(r[-1]) + 1) for r in np.split(new, breaks) if len(r)]
        total = (self.content + int(content)) % 2**64
        return Ledger(merge_ranges([*self.ranges, *runs]), total, self.failed + failed)

    def mask(self, seqs: np.ndarray) -> np.ndarray:
        """True where a seq is in the ledger."""
        if not self.ranges:
            return np.zeros(len(seqs), bool)
        starts, stops = np.asarray(self.ranges, np.int64).T
        slot = np.searchsorted(starts, seqs, side="right") - 1
        return (slot >= 0) & (np.asarray(seqs) < stops[np.maximum(slot, 0)])

    def count_between(self, start: int, stop: int) -> int:
        """Seqs of the ledger in [start, stop)."""
        return sum(max(0, min(b, stop) - max(a, start)) for a, b in self.ranges if a < stop and b > start)

    def digest(self) -> int:
        """A positive 63-bit number that names this ledger."""
        text = json.dumps(self.to_json(), sort_keys=True).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def to_json(self) -> dict[str, Any]:
        return {
            "ranges": [list(r) for r in self.ranges],
            "content": f"{self.content:016x}",
            "failed": self.failed,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Ledger:
        ranges = tuple((int(a), int(b)) for a, b in value["ranges"])
        return cls(ranges, int(value["content"], 16), int(value["failed"]))


def merge_ranges(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Disjoint ranges, sorted, with those that touch joined."""
    out: list[list[int]] = []
    for start, stop in sorted(ranges):
        if out and start == out[-1][1]:
            out[-1][1] = stop
        else:
            out.append([start, stop])
    return tuple((a, b) for a, b in out)


@dataclass(frozen=True)
class Work:
    """What is left of a plan: segments with something to do, and blocks of padding that even out the last step.

    `segments` are indices in plan order; `blocks` the micro-batches each of them makes (its last one padded with rows
    of weight zero); `padding` the micro-batches of nothing but weight zero at the end.
    """

    segments: tuple[int, ...]
    blocks: tuple[int, ...]
    padding: int

    @property
    def num_blocks(self) -> int:
        return sum(self.blocks) + self.padding


def remaining(plan: Plan, ledger: Ledger, *, micro_batch: int, global_batch: int) -> Work:
    """The plan minus the ledger as micro-batches, a whole number of global batches of them.

    Padding is decided here, before Ray sees the data, so that delivered = planned can be asserted whatever the number
    of workers: every allowed number divides `global_batch / micro_batch`.
    """
    rows, done = plan.segment_rows, np.zeros(plan.num_segments, np.int64)
    for start, stop in ledger.ranges:
        first, last = start // rows, (stop - 1) // rows
        done[first + 1 : last] += rows
        for k in {first, last}:
            done[k] += min(stop, (k + 1) * rows) - max(start, k * rows)
    total = np.full(plan.num_segments, rows, np.int64)
    total[-1] = plan.num_views - (plan.num_segments - 1) * rows
    blocks = -(-(total - done) // micro_batch)
    segments = np.flatnonzero(blocks)
    per_step = global_batch // micro_batch
    padding = -int(blocks.sum()) % per_step
    return Work(tuple(segments.tolist()), tuple(blocks[segments].tolist()), padding)


def undone(segment: Segment, ledger: Ledger) -> np.ndarray:
    """Positions inside a segment that are in the plan and not in the ledger, in delivery order."""
    return np.flatnonzero(segment.keep & ~ledger.mask(segment.seq))
