"""What keeps a store in order: what it holds, whether that is still what was written, what nobody refers to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pathryoshka import config, storage
from pathryoshka.features.budget import in_words
from pathryoshka.features.coverage import JOURNAL, Coverage, StoreError, read_coverage, replace
from pathryoshka.features.recipe import Recipe, read_recipe
from pathryoshka.features.store import TEACHERS, teacher_uri

SIDE_BY_SIDE = 8


@dataclass(frozen=True)
class Holding:
    """One teacher's part of a store; views are counted once a teacher."""

    name: str
    recipe: Recipe
    coverage: Coverage

    @property
    def line(self) -> str:
        tokens, views = self.recipe.tokens, self.coverage.table["view_id"].to_numpy()
        kept = (
            f"{tokens['per_view']} of {tokens['of']} tokens, {tokens['format']}" if tokens["per_view"] else "no tokens"
        )
        lost = f" ({self.recipe.lost:.2%} of their variance lost)" if self.recipe.lost else ""
        shards = len(pc.unique(self.coverage.table["shard"]))
        return (
            f"{self.name}: {self.recipe.teacher['row']}, weights {self.recipe.teacher['weights_sha256'][:12]}, "
            f"{self.coverage.num_views:,} views of {shards:,} shards, up to {len(np.unique(views))} a tile, "
            f"{kept}{lost}, {in_words(self.coverage.num_bytes)}"
        )


def holdings(uri: str, cfg: config.Storage) -> list[Holding]:
    """Every teacher of the store at `uri`.

    Raises:
        StoreError: there is no store.
    """
    names = sorted({path.split("/")[0] for path in storage.list_files(storage.join(uri, TEACHERS), cfg)})
    if not names:
        raise StoreError(f"no feature store at {uri}; fill one with `pathryoshka store fill`")
    out = []
    for name in names:
        kept = read_recipe(teacher_uri(uri, name), cfg)
        if kept is None:
            raise StoreError(
                f"{teacher_uri(uri, name)} has no recipe: delete it, nothing says what its features are of"
            )
        out.append(Holding(name, kept[0], read_coverage(teacher_uri(uri, name), cfg)))
    return out


def broken(uri: str, holding: Holding, cfg: config.Storage) -> Iterator[tuple[str, str]]:
    """(path, what is wrong) of each part that is not what was written; every byte is read."""
    table = holding.coverage.table
    parts = dict(zip(table["path"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    base = teacher_uri(uri, holding.name)

    def look(part: tuple[str, str]) -> str | None:
        path, sha256 = part
        try:
            data = storage.read_bytes(storage.join(base, path), cfg)
        except storage.NotFound:
            return "is missing"
        return None if hashlib.sha256(data).hexdigest() == sha256 else "is damaged: its bytes are not those written"

    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        for (path, _), what in zip(parts.items(), threads.map(look, parts.items()), strict=True):
            if what:
                yield path, what


def drop(uri: str, holding: Holding, paths: set[str], cfg: config.Storage) -> None:
    """Takes parts out of the journal, so that the next filling makes them anew."""
    table = holding.coverage.table
    replace(
        teacher_uri(uri, holding.name),
        table.filter(pc.invert(pc.is_in(table["path"], pa.array(sorted(paths), pa.string())))),
        cfg,
    )


def collect(uri: str, holding: Holding, cfg: config.Storage) -> tuple[int, int]:
    """Deletes parts that no journal names, and writes the journal as one file; (files, bytes) that are gone."""
    base = teacher_uri(uri, holding.name)
    named = set(holding.coverage.parts())
    stray = {
        path: size
        for path, size in storage.list_files(base, cfg).items()
        if path.startswith("parts/") and path not in named
    }
    for path in stray:
        storage.delete(storage.join(base, path), cfg)
    if len(storage.list_files(storage.join(base, JOURNAL), cfg)) > 1:
        replace(base, holding.coverage.table, cfg)
    return len(stray), sum(stray.values())
