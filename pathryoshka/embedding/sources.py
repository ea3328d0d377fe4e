"""What is to be embedded: slides, or the shards of tile data sets, as units that are finished or not, each with a part
of the table of its own; a unit is read in pieces, side by side."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pathryoshka import config, storage
from pathryoshka.embedding.recipe import EmbedRefused, tiles_of_data_set, tiles_of_slides
from pathryoshka.tiles.cutting import Slide, safe
from pathryoshka.tiles.finding import find_slides
from pathryoshka.tiles.grid import Cut
from pathryoshka.tiles.shards import MANIFEST, Manifest, ShardEntry, read_dropped, read_manifest
from pathryoshka.tiles.slides import READERS, TABLE, digest, read_mask, read_slides
from pathryoshka.tiles.sources import pseudonymiser
from pathryoshka.tiles.stats import TileStats

GROUPS_PER_PIECE = 8
"""Row groups of a shard, about 512 tiles, that one reader takes: small enough for readers to end together."""


@dataclass(frozen=True)
class Shard:
    """A shard of a tile data set.

    Attributes:
        base: URI of the data set. dropped: row group -> rows that are left out.
        level_0: slide -> micrometres a pixel of its level 0, where the data set says it.
    """

    base: str
    entry: ShardEntry
    dropped: dict[int, tuple[int, ...]] = field(default_factory=dict)
    level_0: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Unit:
    """A slide or a shard.

    Attributes:
        key: names its part and its state. name: what a user calls it. source: the data set it is of, "" for slides.
        asked: digest of what its vectors depend on beside the recipe.
        pieces: row groups of a shard for each piece; a slide is one piece.
        rows: tiles, where they are known beforehand.
    """

    key: str
    name: str
    source: str
    asked: str
    what: Slide | Shard
    pieces: tuple[tuple[int, ...], ...] = ((),)
    rows: int | None = None

    @property
    def slide_ids(self) -> tuple[str, ...]:
        return self.what.entry.slide_ids if isinstance(self.what, Shard) else (self.what.slide_id,)


@dataclass(frozen=True)
class Asked:
    """All units, and what the recipe says of their tiles."""

    units: tuple[Unit, ...]
    tiles: dict[str, Any]


def find_units(
    places: Sequence[str],
    cfg: config.Storage,
    *,
    cut: Cut | None,
    csv: str | None = None,
    slide_mpp: float | None = None,
    pseudonymise: bool = False,
) -> Asked:
    """The units at `places`: tile data sets, or else slides.

    Args:
        cut: how slides are cut; none = as `tiles cut` does unless told otherwise.

    Raises:
        EmbedRefused: both kinds at once, options for slides with a data set, data sets that do not go together.
        ImportRefused, ShardError: as the rooms that find slides and read manifests say.
    """
    places = [storage.absolute(place) for place in places]
    with ThreadPoolExecutor(READERS) as pool:
        are_sets = list(pool.map(lambda place: storage.exists(storage.join(place, MANIFEST), cfg), places))
    if not any(are_sets):
        cut = cut or Cut()
        slides = find_slides(places, cfg, csv=csv, split=None, secret=pseudonymiser(pseudonymise))
        with ThreadPoolExecutor(READERS) as pool:  # masks are read
            asked = list(pool.map(lambda slide: digest(slide, read_mask(slide, cfg)), slides))
        units = tuple(
            Unit(safe(slide.slide_id), slide.slide_id, "", one, slide) for slide, one in zip(slides, asked, strict=True)
        )
        return Asked(units, tiles_of_slides(cut, slide_mpp, pseudonymise))
    if not all(are_sets):
        raise EmbedRefused("slides and tile data sets do not go into one table; embed them to two places")
    if cut or csv or slide_mpp or pseudonymise:
        raise EmbedRefused(
            "the tiles of a tile data set are cut already: leave out the options that say how slides are cut"
        )
    return of_data_sets(places, cfg)


def of_data_sets(places: Sequence[str], cfg: config.Storage) -> Asked:
    units: list[Unit] = []
    kinds: dict[str, dict[str, Any]] = {}
    for place in places:
        manifest, source = read_manifest(place, cfg), posixpath.basename(place)
        if source in kinds:
            raise EmbedRefused(f"two data sets are called {source}; rename one, or embed them to two places")
        kinds[source] = tiles_of_data_set(manifest.made_by)
        units += shards_of(place, source, manifest, cfg)
    first, *others = kinds.items()
    for name, kind in others:
        different = next((key for key in kind if kind[key] != first[1][key]), None)
        if different:
            raise EmbedRefused(
                f"{first[0]} has tiles of {different} = {first[1][different]!r} and {name} of {kind[different]!r}; "
                "embed them to two places"
            )
    return Asked(tuple(units), first[1])


def shards_of(base: str, source: str, manifest: Manifest, cfg: config.Storage) -> list[Unit]:
    """The shards of a data set, without the tiles that it leaves out."""
    dropped: dict[str, dict[int, tuple[int, ...]]] = {}
    for (path, group), rows in read_dropped(base, cfg, manifest).items():
        dropped.setdefault(path, {})[group] = tuple(rows)
    level_0: dict[str, float] = {}
    if storage.exists(storage.join(base, TABLE), cfg):
        level_0 = {row["slide_id"]: row["mpp"] for row in read_slides(base, cfg) if row["mpp"]}
    units = []
    for entry in manifest.shards:
        gone = dropped.get(entry.path, {})
        groups = range(len(entry.row_groups))
        pieces = tuple(tuple(groups[i : i + GROUPS_PER_PIECE]) for i in range(0, len(groups), GROUPS_PER_PIECE))
        here = {slide: level_0[slide] for slide in entry.slide_ids if slide in level_0}
        name = f"{source}/{entry.path}"
        # what was dropped since is part of what is asked
        asked = entry.sha256 if not gone else f"{entry.sha256}-{sorted(gone.items())}"
        num_rows = entry.rows - sum(map(len, gone.values()))
        shard = Shard(base, entry.model_copy(update={"stats": TileStats()}), gone, here)  # it travels with each piece
        units.append(Unit(safe(name.removesuffix(".parquet")), name, source, asked, shard, pieces, num_rows))
    return units
