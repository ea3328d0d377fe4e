"""One pass over labelled tiles: every encoder sees the same pixels, and every width is cut from the same vectors."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from pathryoshka import config
from pathryoshka.export.seen import choose_tiles
from pathryoshka.tiles.phash import perceptual_hash
from pathryoshka.tiles.shards import iter_tiles
from pathryoshka.tiles.views import TileError, decode, identity_view

Encode = Callable[[np.ndarray], Any]
"""uint8 [B, H, W, 3] -> [B, D] as array or tensor, or a teacher's features, of which the summary is taken."""
THUMBNAIL = 112
COLUMNS = ("tile_id", "slide_id", "patient_id", "site", "label", "image")


class EmbedError(ValueError):
    """Tiles or vectors that cannot be scored: the sentence says which."""


@dataclass(frozen=True)
class Embedded:
    """The labelled tiles of one data set and what each encoder says of them; rows in the order of the shards.

    Attributes:
        tile_ids, slides, patients, sites, labels: [N] strings.
        hashes: [N] uint64, perceptual hash of the tile, 0 where it has none.
        thumbs: N small JPEGs for pictures of neighbours.
        vectors: encoder -> fp32 [N, D].
        num_unlabelled: tiles left out because they have no label; `num_rows` counts what the splits hold in all.
        failures: tile -> why it could not be decoded.
    """

    tile_ids: np.ndarray
    slides: np.ndarray
    patients: np.ndarray
    sites: np.ndarray
    labels: np.ndarray
    hashes: np.ndarray
    thumbs: tuple[bytes, ...]
    vectors: dict[str, np.ndarray]
    num_rows: int
    num_unlabelled: int
    failures: dict[str, str]

    def __len__(self) -> int:
        return len(self.tile_ids)

    def keep(self, rows: np.ndarray) -> Embedded:
        """The rows where bool [N] is true."""
        columns = ("tile_ids", "slides", "patients", "sites", "labels", "hashes")
        return replace(
            self,
            thumbs=tuple(thumb for thumb, kept in zip(self.thumbs, rows, strict=True) if kept),
            vectors={name: x_ND[rows] for name, x_ND in self.vectors.items()},
            **{name: getattr(self, name)[rows] for name in columns},
        )


def embed_tiles(
    encoders: Mapping[str, Encode],
    uri: str,
    storage: config.Storage,
    *,
    splits: Sequence[str] = (),
    size: int,
    max_tiles: int = 20_000,
    batch: int = 64,
) -> Embedded:
    """Embeds the identity views of the labelled tiles of `splits`.

    Encoders of a batch run side by side in threads (torch and Ray let go of the interpreter). Of more than `max_tiles`
    labelled tiles as many are taken by the order of their hashes: the same ones wherever the shards lie.

    Args:
        size: side of the views in pixels, as in distillation; teachers resize further as they like.

    Raises:
        ShardError: no data set, no such split.
        EmbedError: no labelled tile that can be read, or vectors that are not finite or not one a tile.
    """
    ids, num_rows = labelled_ids(uri, storage, splits)
    if not ids:
        raise EmbedError(f"no tile of {uri} has a label; import the tiles in folders named by class or with a CSV")
    chosen = choose_tiles(ids, max_tiles)
    failures: dict[str, str] = {}
    rows: list[tuple[Any, ...]] = []
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    with ThreadPoolExecutor(min(len(encoders) or 1, os.cpu_count() or 1)) as pool:
        for facts, views in batches(uri, storage, splits, chosen, size, batch, failures):
            rows += facts
            work = {name: pool.submit(to_numpy, name, encode, views) for name, encode in encoders.items()}
            for name, future in work.items():
                vectors[name].append(future.result())
    if not rows:
        reason = next(iter(failures.values()))
        raise EmbedError(f"none of the {len(chosen)} labelled tiles of {uri} can be read, e.g. {reason}")
    columns = tuple(zip(*rows, strict=True))
    return Embedded(
        tile_ids=np.array(columns[0]),
        slides=np.array(columns[1]),
        patients=np.array(columns[2]),
        sites=np.array(columns[3]),
        labels=np.array(columns[4]),
        hashes=np.array(columns[5], np.uint64),
        thumbs=columns[6],
        vectors={name: np.concatenate(parts) for name, parts in vectors.items()},
        num_rows=num_rows,
        num_unlabelled=num_rows - len(ids),
        failures=failures,
    )


def labelled_ids(uri: str, storage: config.Storage, splits: Sequence[str]) -> tuple[list[str], int]:
    """Ids of the tiles with a label, and the number of all tiles."""
    ids: list[str] = []
    num_rows = 0
    for table in iter_tiles(uri, storage, splits, ("tile_id", "label")):
        num_rows += table.num_rows
        ids += [row["tile_id"] for row in table.to_pylist() if row["label"]]
    return ids, num_rows


def batches(
    uri: str,
    storage: config.Storage,
    splits: Sequence[str],
    chosen: frozenset[str],
    size: int,
    batch: int,
    failures: dict[str, str],
) -> Iterator[tuple[list[tuple[Any, ...]], np.ndarray]]:
    """Facts and views uint8 [B, size, size, 3] of the chosen tiles; notes in `failures` what cannot be decoded."""
    facts: list[tuple[Any, ...]] = []
    views: list[np.ndarray] = []
    for table in iter_tiles(uri, storage, splits, COLUMNS):
        for row in table.to_pylist():
            if row["tile_id"] not in chosen:
                continue
            try:
                tile = decode(row["image"])
            except TileError as error:
                failures[row["tile_id"]] = str(error)
                continue
            names = tuple(row[name] for name in COLUMNS[:-1])
            facts.append((*names, perceptual_hash(tile), jpeg(identity_view(tile, THUMBNAIL))))
            views.append(identity_view(tile, size))
            if len(views) == batch:
                yield facts, np.stack(views)
                facts, views = [], []
    if views:
        yield facts, np.stack(views)


def jpeg(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=85)
    return out.getvalue()


def to_numpy(name: str, encode: Encode, views: np.ndarray) -> np.ndarray:
    """One batch through one encoder: fp32 [B, D], checked."""
    out = encode(views)
    out = out["summary"] if isinstance(out, Mapping) else out
    if hasattr(out, "detach"):
        out = out.detach().float().cpu().numpy()
    vectors = np.asarray(out, np.float32)
    if vectors.ndim != 2 or len(vectors) != len(views):
        raise EmbedError(f"{name} gave {vectors.shape} for {len(views)} tiles; an encoder gives one vector a tile")
    if not np.isfinite(vectors).all():
        raise EmbedError(f"{name} gives values that are not finite; look at its weights and precision")
    return vectors
