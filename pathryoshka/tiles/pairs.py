"""Which tile is mixed into which where views are limited: a function of the view, not of when it is presented.

A view that comes up again must have the same partner again, or no feature of it could be kept. So row groups are put on
a ring, in the order of a hash of (their shard's bytes, the view id), and each is mixed with the next one: every group
is a partner once a view id, and a slide that is added changes the partner of as many groups as it has itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from pathryoshka.tiles.shards import ShardEntry


@dataclass(frozen=True)
class Pairing:
    """The ring of a data set; `digest` stands for it where plans are compared.

    Attributes:
        seed: `views.seed`; per_tile: `views.per_tile`, > 0.
        keys: uint64 [num_groups], what names a row group wherever its shard lies, in the order of the plan's groups.
    """

    seed: int
    per_tile: int
    digest: str
    keys: np.ndarray = field(compare=False, repr=False)

    @classmethod
    def of(cls, shards: Sequence[tuple[ShardEntry, int]], seed: int, per_tile: int) -> Pairing:
        """Of (shard, row group) pairs."""
        keys = np.array([group_key(shard.sha256, group) for shard, group in shards], np.uint64)
        return cls(seed, per_tile, hashlib.sha256(keys.tobytes()).hexdigest(), keys)


@lru_cache(maxsize=2**20)
def group_key(sha256: str, group: int) -> int:
    """64 bits that name a row group of a shard."""
    return int.from_bytes(hashlib.blake2b(f"{sha256}:{group}".encode(), digest_size=8).digest(), "little")


def scrambled(x: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, one to one, every bit a function of all (the finalizer of splitmix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=16)
def partner_groups(pairing: Pairing, view_id: int) -> np.ndarray:
    """int64 [num_groups]: the group that is mixed into each, at one view id; itself where there is no other."""
    salt = hashlib.blake2b(f"{pairing.seed}:{view_id}".encode(), digest_size=8).digest()
    order = np.argsort(scrambled(pairing.keys ^ np.uint64(int.from_bytes(salt, "little"))), kind="stable")
    partner = np.empty(len(order), np.int64)
    partner[order] = np.roll(order, -1)
    return partner


def partner_rows(pairing: Pairing, group: int, view_id: int, rows: int, other_rows: int, share: float) -> np.ndarray:
    """int64 [rows]: the row of the partner group that is mixed into each row, or -1; about `share` of them have one."""
    words = [pairing.seed, int(pairing.keys[group]), view_id]
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
    wanted = rng.random(rows) < share
    return np.where(wanted, rng.permutation(other_rows)[np.arange(rows) % other_rows], -1)


def view_keys(group_keys: np.ndarray, view_id: int) -> np.ndarray:
    """uint64 of the shape of `group_keys`: what names the views of a row group's tiles with one view id."""
    return scrambled(group_keys + np.uint64((view_id + 1) * 0x9E3779B97F4A7C15 % 2**64))
