"""What is read in which order: seed and manifest -> plan.

A plan is an endless stream of row groups, shuffled afresh each epoch so that neighbours come from different shards,
cut into segments of `window * ROWS` tiles that are permuted inside. Nothing is stored: any segment is computed from
(manifest, seed, window, mix_share) alone, a longer plan extends a shorter one, and epochs leave no bubble.

With weights a tile comes up in proportion to its weight, never at weight 0. Nothing is drawn by lot for that: of a
group that is visited R times a round the v-th visit has been reached after v / R rounds, and holds a tile q times, so
that both counts are the floor of a line with a phase of its own (systematic sampling). Hence any segment is still
computed alone, and after any number of rounds a tile has come up as often as it should, to within a visit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from pathryoshka.tiles.pairs import Pairing, partner_groups, partner_rows
from pathryoshka.tiles.shards import ShardEntry

REPEATS = 4
"""Times a tile comes up in one visit to its row group at most: more would look alike in a batch, fewer would read whole
groups for a few rare tiles."""
PHASES = 2**20
"""Phases are multiples of 1 / PHASES, so that counts of weight 1 are exact in floating point."""
ROWS = 64
"""Tiles a row group has by convention; a segment is `window` times as many, whatever the groups really hold."""


class PlanError(ValueError):
    """A plan that cannot be made from this data set."""


@dataclass(frozen=True)
class Segment:
    """Plan entries with consecutive seqs; arrays of length n, in the order in which they are delivered.

    `partner` is the index, inside this segment, of the entry whose tile is mixed in, or -1. Entries that are only there
    as partners have `keep` False: those past the plan's end (`seq >= num_views`), and those with seq -1.
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
class Weights:
    """How often tiles come up against each other; `digest` names them and stands for them where plans are compared.

    `per_tile` is float64 [num_tiles], >= 0, in the order of the plan's row groups.
    """

    digest: str
    per_tile: np.ndarray = field(compare=False, repr=False)

    @classmethod
    def of(cls, per_tile: np.ndarray) -> Weights:
        values = np.ascontiguousarray(per_tile, np.float64)
        return cls(hashlib.sha256(values.tobytes()).hexdigest(), values)


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
        weights: of the tiles; none = each comes up once an epoch.
        pairing: who is mixed with whom where views a tile are limited; none = any two tiles of a segment.
    """

    group_shard: tuple[int, ...]
    group_index: tuple[int, ...]
    group_rows: tuple[int, ...]
    seed: int
    num_views: int
    window: int
    mix_share: float
    weights: Weights | None = None
    pairing: Pairing | None = None

    @property
    def segment_rows(self) -> int:
        return self.window * ROWS

    @property
    def num_segments(self) -> int:
        return -(-self.num_views // self.segment_rows)

    @cached_property
    def num_tiles(self) -> int:
        """Tiles that come up, and about as many entries in a round; without weights exactly: an epoch."""
        return sum(self.group_rows) if self.weights is None else int((self.weights.per_tile > 0).sum())

    def segment(self, index: int) -> Segment:
        """The `index`-th segment, computed afresh in O(groups touched) after an epoch's order is cached."""
        if not 0 <= index < self.num_segments:
            raise IndexError(f"segment {index} of a plan of {self.num_segments}")
        start = index * self.segment_rows
        position = np.arange(start, start + self.segment_rows, dtype=np.int64)
        which, row, draw = (np.empty(len(position), np.int64) for _ in range(3))
        here = 0
        while here < len(position):
            number, begin = round_of(self, int(position[here]))
            visits = round_visits(self, number)
            stop = min(len(position), int(begin + visits.ends[-1] - start))
            within = position[here:stop] - begin
            slot = np.searchsorted(visits.ends, within, side="right")
            which[here:stop] = visits.group[slot]
            inside = within - np.where(slot > 0, visits.ends[slot - 1], 0)
            row[here:stop], draw[here:stop] = entries(self, which[here:stop], visits.number[slot], inside)
            here = stop
        rng = generator(self.seed, "segment", index)
        inside = rng.permutation(len(position))
        which, row, draw = which[inside], row[inside], draw[inside]
        keep = position < self.num_views
        if self.pairing is not None:
            return paired_segment(self, index, position, which, row, draw, keep)
        shard, group = np.asarray(self.group_shard)[which], np.asarray(self.group_index)[which]
        partner = draw_partners(rng, shard, group, row, self.mix_share)
        return Segment(index, position, shard, group, row, draw, partner, keep)


def make_plan(
    shards: Sequence[ShardEntry],
    *,
    splits: Sequence[str],
    seed: int,
    num_views: int,
    window: int,
    mix_share: float,
    weights: Weights | None = None,
    views_seed: int = 0,
    views_per_tile: int = 0,
) -> Plan:
    """The plan over the shards of `splits` (every shard when empty); `weights` are those of their tiles.

    Args:
        views_per_tile: distinct views of a tile, 0 = no limit; where there is one, a view keeps its partner.

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
    if weights is not None and not weights.per_tile.any():
        raise PlanError("every tile of the splits was dropped; delete the list of what is dropped beside the tiles")
    pairing = Pairing.of([(shards[s], g) for s, g, _ in groups], views_seed, views_per_tile) if views_per_tile else None
    return Plan(shard, index, rows, seed, num_views, window, mix_share, weights, pairing)


def generator(seed: int, *key: str | int) -> np.random.Generator:
    """A generator that depends on its key alone, not on what was drawn before."""
    words = [int.from_bytes(str(k).encode(), "little") if isinstance(k, str) else k for k in key]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *words])))


@dataclass(frozen=True)
class Visits:
    """The visits to row groups of one round, in order: which group, its how-manieth visit, running total of entries."""

    group: np.ndarray
    number: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class Rates:
    """What weights make of a plan: per group visits a round and their phase, per tile times a visit and their phase."""

    visits: np.ndarray
    visit_phase: np.ndarray
    times: np.ndarray
    phase: np.ndarray
    first: np.ndarray
    """Index of the first tile of each group."""


@lru_cache(maxsize=2)
def rates(plan: Plan) -> Rates:
    """A visit gives as many entries as the group has tiles to show, or fewer where a tile would repeat too often."""
    assert plan.weights is not None
    weight, rows, first = plan.weights.per_tile, np.asarray(plan.group_rows), first_tiles(plan)
    total, most = np.add.reduceat(weight, first), np.maximum.reduceat(weight, first)
    shown = np.add.reduceat((weight > 0).astype(np.int64), first)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(total > 0, np.minimum(shown / total, REPEATS / most), 0.0)
        visits = np.where(total > 0, shown.sum() / weight.sum() / scale, 0.0)
    rng = generator(plan.seed, "phases")
    visit_phase = rng.integers(0, PHASES, len(rows)) / PHASES
    return Rates(
        visits, visit_phase, weight * np.repeat(scale, rows), rng.integers(0, PHASES, len(weight)) / PHASES, first
    )


def so_far(rate: np.ndarray, phase: np.ndarray, times: np.ndarray | int) -> np.ndarray:
    """How often something with `rate` has come up after `times`, int64; 0 after none."""
    return np.floor(times * rate + phase).astype(np.int64)


@lru_cache(maxsize=64)
def entries_before(plan: Plan, number: int) -> int:
    """Entries of the plan before round `number`."""
    if plan.weights is None:
        return number * plan.num_tiles
    found = rates(plan)
    visits = np.repeat(so_far(found.visits, found.visit_phase, number), plan.group_rows)
    return int(so_far(found.times, found.phase, visits).sum())


def round_of(plan: Plan, position: int) -> tuple[int, int]:
    """The round in which an entry lies, and the first entry of that round."""
    number = position // plan.num_tiles
    while entries_before(plan, number) > position:
        number -= 1
    while entries_before(plan, number + 1) <= position:
        number += 1
    return number, entries_before(plan, number)


@lru_cache(maxsize=4)
def round_visits(plan: Plan, number: int) -> Visits:
    """The visits of one round.

    Each shard's visits are spread evenly over the round at a random offset, so that neighbours come from different
    shards as far as the shards allow.
    """
    which, nth = np.arange(len(plan.group_shard)), np.full(len(plan.group_shard), number)
    if plan.weights is not None:
        found = rates(plan)
        before = so_far(found.visits, found.visit_phase, number)
        count = so_far(found.visits, found.visit_phase, number + 1) - before
        which = np.repeat(which, count)
        nth = np.arange(len(which)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(before, count)
    rng = generator(plan.seed, "epoch", number)
    shard = np.asarray(plan.group_shard)[which]
    shuffled = rng.permutation(len(shard))
    by_shard = shuffled[np.argsort(shard[shuffled], kind="stable")]
    _, first, inverse, count = np.unique(shard[by_shard], return_index=True, return_inverse=True, return_counts=True)
    rank = np.arange(len(by_shard)) - first[inverse]
    place = (rank + rng.random(len(first))[inverse]) / count[inverse]
    order = by_shard[np.argsort(place, kind="stable")]
    which, nth = which[order], nth[order]
    return Visits(which, nth, np.cumsum(visit_sizes(plan, which, nth)))


def visit_sizes(plan: Plan, group: np.ndarray, nth: np.ndarray) -> np.ndarray:
    """Entries of each visit."""
    rows = np.asarray(plan.group_rows)[group]
    if plan.weights is None:
        return rows
    starts = np.cumsum(rows) - rows
    _, count = counts_of(plan, group, nth)
    return np.add.reduceat(count, starts) if len(starts) else rows


def counts_of(plan: Plan, group: np.ndarray, nth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every tile of the groups, one after the other: draws before the group's `nth` visit, and in it."""
    found, rows = rates(plan), np.asarray(plan.group_rows)[group]
    tile = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows - found.first[group], rows)
    visit = np.repeat(nth, rows)
    before = so_far(found.times[tile], found.phase[tile], visit)
    return before, so_far(found.times[tile], found.phase[tile], visit + 1) - before


def entries(plan: Plan, group: np.ndarray, nth: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and draw of the `inside`-th entry of the `nth` visit to a group, for each of n entries in plan order."""
    if plan.weights is None:
        return inside, nth
    row, draw = np.empty(len(group), np.int64), np.empty(len(group), np.int64)
    changes = np.flatnonzero(np.diff(group, prepend=-1) | np.diff(nth, prepend=-1))
    for start, stop in zip(changes, [*changes[1:], len(group)], strict=True):
        before, count = counts_of(plan, group[start : start + 1], nth[start : start + 1])
        rows = np.repeat(np.arange(len(count)), count)
        copy = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        here = inside[start:stop]
        row[start:stop], draw[start:stop] = rows[here], before[rows[here]] + copy[here]
    return row, draw


def paired_segment(
    plan: Plan, index: int, seq: np.ndarray, which: np.ndarray, row: np.ndarray, draw: np.ndarray, keep: np.ndarray
) -> Segment:
    """Entries (`which` group of the plan, row, draw) with the partners of their views, which are appended."""
    pairing = plan.pairing
    assert pairing is not None
    view_id = draw % pairing.per_tile
    other, other_row = np.full(len(which), -1), np.full(len(which), -1)
    for group, view in np.unique(np.stack([which, view_id]), axis=1).T.tolist():
        here = np.flatnonzero((which == group) & (view_id == view))
        theirs = int(partner_groups(pairing, view)[group])
        num_rows = plan.group_rows[group], plan.group_rows[theirs]
        rows = partner_rows(pairing, group, view, *num_rows, plan.mix_share)[row[here]]
        if plan.weights is not None:  # a tile of weight 0 is not to be seen
            rows = np.where(plan.weights.per_tile[first_tiles(plan)[theirs] + rows] > 0, rows, -1)
        other[here] = theirs
        other_row[here] = np.where((theirs == group) & (rows == row[here]), -1, rows)
    has = np.flatnonzero(other_row >= 0)
    partner, alone = np.full(len(which), -1), np.full(len(has), -1)
    partner[has] = len(which) + np.arange(len(has))
    which, row = np.concatenate([which, other[has]]), np.concatenate([row, other_row[has]])
    return Segment(
        index,
        np.concatenate([seq, alone]),
        np.asarray(plan.group_shard)[which],
        np.asarray(plan.group_index)[which],
        row,
        np.concatenate([draw, np.zeros(len(has), np.int64)]),
        np.concatenate([partner, alone]),
        np.concatenate([keep, np.zeros(len(has), bool)]),
    )


@lru_cache(maxsize=2)
def first_tiles(plan: Plan) -> np.ndarray:
    """Index of the first tile of each group."""
    rows = np.asarray(plan.group_rows)
    return np.cumsum(rows) - rows


def draw_partners(
    rng: np.random.Generator, shard: np.ndarray, group: np.ndarray, row: np.ndarray, share: float
) -> np.ndarray:
    """For `share` of the entries another entry of the segment that is not the same tile, else -1."""
    n = len(shard)
    wanted = rng.random(n) < share
    partner = (np.arange(n) + rng.integers(1, max(n, 2), n)) % n
    same = (shard == shard[partner]) & (group == group[partner]) & (row == row[partner])
    return np.where(wanted & ~same, partner, -1)
