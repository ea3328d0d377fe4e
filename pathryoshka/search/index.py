"""An opened index: the nearest tiles of a vector, by any width, among those that a filter lets through.

A short-list by the first 64 numbers, re-ranked by as many as are asked for: a nested embedding carries most of what
tells tiles apart in its first numbers. Where few rows are in question all of them are looked at instead.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pathryoshka import config, storage
from pathryoshka.search.filters import COLUMNS, Filter
from pathryoshka.search.local import local_segment
from pathryoshka.search.manifest import SHORT, Manifest, SearchError, read_manifest
from pathryoshka.search.scan import head, short_list
from pathryoshka.search.segment import EXACT_ROWS, Opened
from pathryoshka.tiles.shards import read_manifest as read_tiles
from pathryoshka.tiles.shards import read_row_group

LISTED = 400
"""Rows of a short-list: recall@10 and time of others are in docs/search.md."""
FEW = 20_000
"""Rows among which a search is exact anyway."""


@dataclass(frozen=True)
class Neighbour:
    """A tile, and the cosine between the first `width` numbers of it and of the query."""

    score: float
    tile_id: str
    slide_id: str
    patient_id: str
    site: str
    label: str | None
    has_image: bool
    place: tuple[int, int] = field(repr=False, default=(0, 0))
    """Segment and row."""


@dataclass(frozen=True)
class Index:
    """`live`: for each segment bool [N] of rows that are not deleted, or None where all are there."""

    uri: str
    manifest: Manifest
    segments: tuple[Opened, ...]
    live: tuple[np.ndarray | None, ...]
    cfg: config.Storage = field(repr=False)

    @property
    def model_id(self) -> str:
        return self.manifest.model_id

    def __len__(self) -> int:
        return self.manifest.rows

    def search(
        self,
        query_D: np.ndarray,
        widths: Sequence[int] = (),
        k: int = 10,
        only: Filter | None = None,
        *,
        exact: bool = False,
        listed: int = LISTED,
    ) -> dict[int, list[Neighbour]]:
        """The k nearest for each width, falling; fewer only where fewer pass the filter.

        Args:
            query_D: as many numbers as the index has. widths: none = all numbers.
            exact: look at every number of every row. listed: rows of a short-list, at least k.

        Raises:
            SearchError: a width that the index does not have, a query that is not finite, rows that were damaged.
        """
        query = self.checked(query_D)
        widths = tuple(widths) or (self.manifest.width,)
        for width in widths:
            if not 1 <= width <= self.manifest.width:
                raise SearchError(f"the index at {self.uri} has {self.manifest.width} numbers a vector, not {width}")
        allowed = [both(live, (only or Filter()).allowed(one.columns)) for one, live in self.pairs()]
        pairs = zip(self.segments, allowed, strict=True)
        num = sum(len(one) if may is None else int(may.sum()) for one, may in pairs)
        if exact or num <= max(FEW, listed):
            found = self.everything(query, widths, k, allowed, whole=num > FEW)
        else:
            found = self.shortened(query, widths, k, max(k, listed), allowed)
        return {width: [self.neighbour(*hit) for hit in found[width]] for width in widths}

    def checked(self, query_D: np.ndarray) -> np.ndarray:
        query = np.asarray(query_D, np.float32).ravel()
        if len(query) != self.manifest.width:
            raise SearchError(
                f"the query has {len(query)} numbers and the index at {self.uri} has {self.manifest.width} a vector"
            )
        if not np.isfinite(query).all():
            raise SearchError("the query has numbers that are not finite")
        return query

    def shortened(
        self, query: np.ndarray, widths: Sequence[int], k: int, listed: int, allowed: list[np.ndarray | None]
    ) -> dict[int, list[tuple[float, int, int]]]:
        """One short-list serves every width of at least 64; a narrower one has its own, and a longer one, because a
        row's code is as long as its first 64 numbers are, not as those that count."""
        short = min(SHORT, self.manifest.width)
        scanners = [one.scanner for one in self.segments]
        found: dict[int, list[tuple[float, int, int]]] = {}
        lists: dict[int, list[tuple[int, np.ndarray, np.ndarray]]] = {}
        for width in widths:
            seen = min(width, short)
            if seen not in lists:
                first = head(query[None], short)[0]
                first[seen:] = 0
                rows = short_list(scanners, first, listed * max(1, short // seen), allowed)
                lists[seen] = [(i, some, self.segments[i].rows(some)) for i, some in enumerate(rows) if len(some)]
            found[width] = best_of(((i, r, cosines(x, query, width)) for i, r, x in lists[seen]), k)
        return found

    def everything(
        self, query: np.ndarray, widths: Sequence[int], k: int, allowed: list[np.ndarray | None], whole: bool
    ) -> dict[int, list[tuple[float, int, int]]]:
        """`whole`: compare whole files with what was written, once, rather than each row."""
        best: dict[int, list[tuple[float, int, int]]] = {width: [] for width in widths}
        for i, (one, may) in enumerate(zip(self.segments, allowed, strict=True)):
            rows = np.arange(len(one)) if may is None else np.flatnonzero(may)
            for start in range(0, len(rows), EXACT_ROWS):
                some = rows[start : start + EXACT_ROWS]
                x_ND = one.vectors[some].astype(np.float32) if whole and one.whole else one.rows(some)
                for width in widths:
                    scored = best_of([(i, some, cosines(x_ND, query, width))], k)
                    best[width] = sorted((*best[width], *scored), key=lambda hit: (-hit[0], *hit[1:]))[:k]
        return best

    def neighbour(self, score: float, segment: int, row: int) -> Neighbour:
        one = self.segments[segment]
        slide, patient, site, label = (one.columns[name].value(row) for name in COLUMNS)
        has_image = (one.images is not None and one.images[row].is_valid) or one.columns["shard"].codes[row] >= 0
        tile_id = one.facts["tile_id"][row].as_py()
        return Neighbour(score, tile_id, slide or "", patient or "", site or "", label, bool(has_image), (segment, row))

    # ---- tiles

    def pairs(self) -> Iterator[tuple[Opened, np.ndarray | None]]:
        return zip(self.segments, self.live, strict=True)

    def living(self) -> Iterator[tuple[Opened, np.ndarray]]:
        """Segments, and bool [N] of their rows that are not deleted."""
        for one, live in self.pairs():
            yield one, np.ones(len(one), bool) if live is None else live

    def which_of(self, tile_ids: pa.Array) -> set[str]:
        """Those that are in the index."""
        found: set[str] = set()
        for one, live in self.living():
            there = pc.is_in(one.facts["tile_id"], value_set=tile_ids).to_numpy()
            found |= set(one.facts["tile_id"].take(pa.array(np.flatnonzero(there & live))).to_pylist())
        return found

    def find(self, tile_id: str) -> tuple[int, int] | None:
        """Segment and row of a tile."""
        for i, (one, live) in enumerate(self.living()):
            rows = np.flatnonzero(pc.equal(one.facts["tile_id"], tile_id).to_numpy() & live)
            if len(rows):
                return i, int(rows[0])
        return None

    def image(self, place: tuple[int, int] | None) -> bytes | None:
        """The encoded picture of a tile, kept in the index or read from its data set; None where there is none.

        Raises:
            ShardError, StorageError: the data set is not where it was, or is another one.
        """
        if place is None:
            return None
        one, row = self.segments[place[0]], place[1]
        kept = one.image(row)
        shard, tiles = one.columns["shard"].value(row), one.columns["set"].value(row)
        if kept is not None or shard is None or tiles is None:
            return kept
        entry = next((s for s in read_tiles(tiles, self.cfg).shards if s.path == shard), None)
        if entry is None:
            return None
        table = read_row_group(tiles, self.cfg, entry, one.facts["group"][row].as_py(), ("tile_id", "image"))
        at = one.facts["row"][row].as_py()
        return table["image"][at].as_py() if table["tile_id"][at] == one.facts["tile_id"][row] else None

    def on_slide(self, slide_id: str) -> tuple[np.ndarray, np.ndarray]:
        """fp64 [N, 3] left, top, side and fp32 [N, D] of the tiles of a slide that have a place."""
        places, vectors = [np.empty((0, 3))], [np.empty((0, self.manifest.width), np.float32)]
        for one, live in self.living():
            placed = one.facts["side"].is_valid().to_numpy() & one.facts["left"].is_valid().to_numpy()
            rows = np.flatnonzero(one.columns["slide_id"].among((slide_id,)) & placed & live)
            if len(rows):
                some = one.facts.select(["left", "top", "side"]).take(pa.array(rows))
                places.append(np.stack([some[name].to_numpy() for name in some.column_names], 1).astype(np.float64))
                vectors.append(one.rows(rows))
        return np.concatenate(places), np.concatenate(vectors)


def cosines(vectors_ND: np.ndarray, query_D: np.ndarray, width: int) -> np.ndarray:
    """fp32 [N]: between the first `width` numbers of each row and of the query."""
    rows, query = vectors_ND[:, :width], query_D[:width]
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
    return np.clip((rows @ query) / np.maximum(lengths, 1e-12), -1, 1)


def best_of(scored, k: int) -> list[tuple[float, int, int]]:  # type: ignore[no-untyped-def]
    """(score, segment, row) of the k largest, falling, of (segment, rows [n], scores [n])."""
    best: list[tuple[float, int, int]] = []
    for segment, rows, scores in scored:
        some = np.argsort(-scores, kind="stable")[:k]
        best += [(float(scores[i]), segment, int(rows[i])) for i in some]
    return sorted(best, key=lambda hit: (-hit[0], *hit[1:]))[:k]


def both(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def open_index(uri: str, cfg: config.Storage) -> Index:
    """The index at `uri` as it is now; what comes after does not change it.

    From object storage, segments are copied once into a folder of this machine, see `local.py`.

    Raises:
        SearchError: no index there, or a corrupt one.
    """
    while True:
        manifest = read_manifest(uri, cfg)
        try:
            segments = tuple(
                Opened(uri, local_segment(uri, one, cfg), one, manifest.width, manifest.dtype)
                for one in manifest.segments
            )
            return Index(uri, manifest, segments, read_deleted(uri, manifest, cfg), cfg)
        except (SearchError, storage.NotFound):
            if read_manifest(uri, cfg).generation == manifest.generation:  # else it was compacted meanwhile
                raise


def read_deleted(uri: str, manifest: Manifest, cfg: config.Storage) -> tuple[np.ndarray | None, ...]:
    if manifest.deleted is None:
        return (None,) * len(manifest.segments)
    try:
        data = storage.read_bytes(storage.join(uri, manifest.deleted.name), cfg)
    except storage.NotFound:
        data = b""
    if hashlib.sha256(data).hexdigest() != manifest.deleted.file.sha256:
        raise SearchError(
            f"the index at {uri} is corrupt: {manifest.deleted.name} is not what was written, so deleted tiles would "
            "be found again; build it again from its tables"
        )
    table = pq.read_table(io.BytesIO(data))
    live: list[np.ndarray | None] = []
    for one in manifest.segments:
        rows = table.filter(pc.equal(table["segment"], one.name))["row"].to_numpy()
        mask = np.ones(one.rows, bool)
        mask[rows] = False
        live.append(mask if len(rows) else None)
    return tuple(live)
