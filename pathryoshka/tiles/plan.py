"""What is read in which order: seed and manifest -> plan.

A plan is an endless stream of row groups, shuffled afresh each epoch so that neighbours come from different shards,
cut into segments of `window * ROWS` tiles that are permuted inside. Nothing is stored: any segment is computed from
(manifest, seed, window, mix_share) alone, a longer plan extends a shorter one, and epochs leave no bubble.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from pathryoshka.tiles.shards import ShardEntry

ROWS = 64
"""Tiles a row group has by convention; a segment is `window` times as many, whatever the groups really hold."""


class PlanError(ValueError):
    """A plan that cannot be made from this data set."""


@dataclass(frozen=True)
class Segment:
    """Plan entries with consecutive seqs; arrays of length n, in the order in which they are delivered.

    `partner` is the index, inside this segment, of the entry whose tile is mixed in, or -1. Entries past the plan's
    end (`seq >= num_views`) stay in as possible partners; `keep` is False for them.
    """

    index: int
    seq: np.ndarray
    shard: np.ndarray
    group: np.ndarray
    row: np.ndarray
    draw: np.ndarray
    partner: np.ndarray
    keep: np.ndarray


@dataclass(frozen=True)
class Plan:
    """`num_views` entries over the row groups of a data set.

    Args:
        group_shard: index of the shard in the manifest, one a row group.
        group_index: index of the row group in its shard.
        group_rows: tiles in the row group.
        seed: `plan.seed`.
        num_views: entries in the plan.
        window: row groups a segment.
        mix_share: share of entries that get a partner.
    """

    group_shard: tuple[int, ...]
    group_index: tuple[int, ...]
    group_rows: tuple[int, ...]
    seed: int
    num_views: int
    window: int
    mix_share: float

    @property
    def segment_rows(self) -> int:
        return self.window * ROWS

    @property
    def num_segments(self) -> int:
        return -(-self.num_views // self.segment_rows)

    @cached_property
    def num_tiles(self) -> int:
        """Tiles an epoch."""
        return sum(self.group_rows)

    def segment(self, index: int) -> Segment:
        """The `index`-th segment, computed afresh in O(groups touched) after an epoch's order is cached."""
        if not 0 <= index < self.num_segments:
            raise IndexError(f"segment {index} of a plan of {self.num_segments}")
        start = index * self.segment_rows
        position = np.arange(start, start + self.segment_rows, dtype=np.int64)
        draw, within = np.divmod(position, self.num_tiles)
        shard, group, row = (np.empty(len(position), np.int64) for _ in range(3))
        for epoch in np.unique(draw):
            here = draw == epoch
            order, ends = epoch_order(self, int(epoch))
            slot = np.searchsorted(ends, within[here], side="right")
            which = order[slot]
            group_rows = np.asarray(self.group_rows)[which]
            shard[here] = np.asarray(self.group_shard)[which]
            group[here] = np.asarray(self.group_index)[which]
            row[here] = within[here] - (ends[slot] - group_rows)
        rng = generator(self.seed, "segment", index)
        inside = rng.permutation(len(position))
        shard, group, row, draw = shard[inside], group[inside], row[inside], draw[inside]
        partner = draw_partners(rng, shard, group, row, self.mix_share)
        return Segment(index, position, shard, group, row, draw, partner, position < self.num_views)


def make_plan(
    shards: Sequence[ShardEntry], *, splits: Sequence[str], seed: int, num_views: int, window: int, mix_share: float
) -> Plan:
    """The plan over the shards of `splits` (every shard when empty).

    Raises:
        PlanError: no shard belongs to the splits.
    """
    groups = [
        (s, g, rows)
        for s, entry in enumerate(shards)
        if not splits or entry.split in splits
        for g, rows in enumerate(entry.row_groups)
    ]
    if not groups:
        known = sorted({str(entry.split) for entry in shards})
        raise PlanError(f"no tile has a split in {list(splits)}; the splits of the data are {known}")
    shard, index, rows = (tuple(column) for column in zip(*groups, strict=True))
    return Plan(shard, index, rows, seed, num_views, window, mix_share)


def generator(seed: int, *key: str | int) -> np.random.Generator:
    """A generator that depends on its key alone, not on what was drawn before."""
    words = [int.from_bytes(str(k).encode(), "little") if isinstance(k, str) else k for k in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *words])))


@lru_cache(maxsize=4)
def epoch_order(plan: Plan, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Row groups in the order of one epoch, and the running total of their rows.

    Each shard's groups are spread evenly over the epoch at a random offset, so that neighbours come from different
    shards as far as the shards allow.
    """
    rng = generator(plan.seed, "epoch", epoch)
    shard = np.asarray(plan.group_shard)
    shuffled = rng.permutation(len(shard))
    by_shard = shuffled[np.argsort(shard[shuffled], kind="stable")]
    _, first, inverse, count = np.unique(shard[by_shard], return_index=True, return_inverse=True, return_counts=True)
    rank = np.arange(len(by_shard)) - first[inverse]
    place = (rank + rng.random(len(first))[inverse]) / count[inverse]
    order = by_shard[np.argsort(place, kind="stable")]
    return order, np.cumsum(np.asarray(plan.group_rows)[order])


def draw_partners(
    rng: np.random.Generator, shard: np.ndarray, group: np.ndarray, row: np.ndarray, share: float
) -> np.ndarray:
    """For `share` of the entries another entry of the segment that is not the same tile, else -1."""
    n = len(shard)
    wanted = rng.random(n) < share
    partner = (np.arange(n) + rng.integers(1, max(n, 2), n)) % n
    same = (shard == shard[partner]) & (group == group[partner]) & (row == row[partner])
    return np.where(wanted & ~same, partner, -1)
