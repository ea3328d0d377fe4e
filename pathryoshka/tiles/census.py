"""What a data set is made of: exact counts out of its manifest, and a look at some of its tiles.

Counts cost nothing, they stand in the manifest. Resolution, tissue and colour are read from a sample: row groups drawn
in turn from the sites, so that a small site is looked at too, and of each the first tiles, which are a fair draw since
tiles inside a shard are shuffled.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pathryoshka import config
from pathryoshka.tiles.shards import Manifest, ShardEntry, read_row_group
from pathryoshka.tiles.views import TileError, decode

MAX_GROUPS = 128
DECODED = 8
"""Tiles of a row group whose pixels are looked at."""
READERS = 4


@dataclass(frozen=True)
class Spread:
    """How `total` tiles are shared out among `num` patients, sites or labels.

    `effective` is the exponential of the entropy of their shares (Hill 1973): as many of equal size would be as mixed.
    """

    num: int
    smallest: int
    median: float
    largest: int
    total: int
    effective: float


@dataclass(frozen=True)
class Census:
    """The sample: float32 [N] with NaN where a tile has no mpp; mean RGB (0 ... 255) and tiles looked at, a site."""

    mpp: np.ndarray
    tissue: np.ndarray
    colours: dict[str, tuple[np.ndarray, int]]


def spread(counts: Mapping[str, int]) -> Spread:
    sizes = np.array(sorted(counts.values()), np.float64)
    shares = sizes / sizes.sum()
    effective = math.exp(-float((shares * np.log(shares)).sum()))
    return Spread(len(sizes), int(sizes[0]), float(np.median(sizes)), int(sizes[-1]), int(sizes.sum()), effective)


def take_census(uri: str, cfg: config.Storage, manifest: Manifest, seed: int = 0) -> Census:
    """Raises ShardError when a shard is not what the manifest says."""
    groups = draw_groups(manifest, seed)
    mpp: list[float | None] = []
    tissue: list[float] = []
    sums: dict[str, list[np.ndarray]] = defaultdict(list)

    def read(item: tuple[ShardEntry, int]) -> tuple[list[float | None], list[float], list[tuple[str, np.ndarray]]]:
        table = read_row_group(uri, cfg, *item, ("mpp", "tissue", "site", "image"))
        colours = []
        for row in table.slice(0, DECODED).select(["site", "image"]).to_pylist():
            try:
                colours.append((row["site"], decode(row["image"]).reshape(-1, 3).mean(0)))
            except TileError:
                continue  # `tiles verify` and the run itself report it
        return table["mpp"].to_pylist(), table["tissue"].to_pylist(), colours

    with ThreadPoolExecutor(READERS) as pool:
        for some_mpp, some_tissue, colours in pool.map(read, groups):
            mpp += some_mpp
            tissue += some_tissue
            for site, colour in colours:
                sums[site].append(colour)
    means = {site: (np.mean(found, axis=0), len(found)) for site, found in sorted(sums.items())}
    return Census(np.array(mpp, np.float32), np.array(tissue, np.float32), means)


def draw_groups(manifest: Manifest, seed: int) -> list[tuple[ShardEntry, int]]:
    """At most MAX_GROUPS row groups, one of each site in turn as long as it has any."""
    rng = np.random.default_rng(seed)
    everything = [(shard, group) for shard in manifest.shards for group in range(len(shard.row_groups))]
    turns: dict[tuple[str, ...], int] = defaultdict(int)
    placed = []
    for index in rng.permutation(len(everything)):
        sites = everything[index][0].sites
        placed.append((turns[sites], sites, int(index)))
        turns[sites] += 1
    return [everything[index] for _, _, index in sorted(placed)[:MAX_GROUPS]]
