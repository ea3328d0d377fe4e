"""One pass over labelled tiles: every encoder sees the same pixels, and every width is cut from the same vectors.

What an encoder said of a tile before is taken from where it was kept (`vectors.py`); an encoder that is not asked
anything is not loaded.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from pathryoshka import config
from pathryoshka.evaluate.vectors import Kept, place, read_kept, write_kept
from pathryoshka.export.seen import choose_tiles
from pathryoshka.tiles.phash import perceptual_hash
from pathryoshka.tiles.segments import hashed
from pathryoshka.tiles.shards import iter_tiles
from pathryoshka.tiles.views import TileError, decode, identity_view, keyed_generator, restain, stain_map

Encode = Callable[[np.ndarray], Any]
"""uint8 [B, H, W, 3] -> [B, D] as array or tensor, or a teacher's features, of which the summary is taken."""
Alter = Callable[[str, np.ndarray], np.ndarray]
"""(tile id, view) -> another view of the same tile."""
THUMBNAIL = 112
NUM_RESTAINED = 120
STAIN = 0.1
"""Spread of the stains of tiles that are stained anew: a light to strong change of laboratory (Tellez et al. 2019)."""
COLUMNS = ("tile_id", "slide_id", "patient_id", "site", "label", "split", "image")


class EmbedError(ValueError):
    """Tiles or vectors that cannot be scored: the sentence says which."""


@dataclass(frozen=True)
class Embedded:
    """The labelled tiles of one data set and what each encoder says of them; rows in the order of the shards.

    Attributes:
        tile_ids, slides, patients, sites, labels: [N] strings; splits: [N] strings, "" where a tile has none.
        hashes: [N] uint64, perceptual hash of the tile, 0 where it has none.
        thumbs: N small JPEGs for pictures of neighbours.
        vectors: encoder -> fp32 [N, D]. gflop: encoder -> GFLOP a view, None where they were not counted or cannot be.
        restained: encoder -> fp32 [n, D] of the rows `restained_rows` [n], the same tiles with other stains.
        num_unlabelled: tiles left out because they have no label; `num_rows` counts what the splits hold in all.
        failures: tile -> why it could not be decoded.
    """

    tile_ids: np.ndarray
    slides: np.ndarray
    patients: np.ndarray
    sites: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    hashes: np.ndarray
    thumbs: tuple[bytes, ...]
    vectors: dict[str, np.ndarray]
    restained: dict[str, np.ndarray]
    restained_rows: np.ndarray
    gflop: dict[str, float | None]
    num_rows: int
    num_unlabelled: int
    failures: dict[str, str]

    def __len__(self) -> int:
        return len(self.tile_ids)

    def keep(self, rows: np.ndarray) -> Embedded:
        """The rows where bool [N] is true."""
        columns = ("tile_ids", "slides", "patients", "sites", "labels", "splits", "hashes")
        still = rows[self.restained_rows]
        return replace(
            self,
            restained={name: x_ND[still] for name, x_ND in self.restained.items()},
            restained_rows=(np.cumsum(rows) - 1)[self.restained_rows[still]],
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
    keys: Mapping[str, str] | None = None,
    keep: str | None = None,
    count: Sequence[str] = (),
    slides: Mapping[str, str] | None = None,
    at_once: int = 1,
    together: Callable[[str], str] | None = None,
) -> Embedded:
    """Embeds the identity views of the labelled tiles of `splits`.

    Encoders of a batch run side by side in threads (torch and Ray let go of the interpreter). Of more than `max_tiles`
    labelled tiles as many are taken by the order of their hashes: the same ones wherever the shards lie.

    Args:
        size: side of the views in pixels, as in distillation; teachers resize further as they like.
        keys: encoder -> digest of all that it computes from. keep: folder or URI in which the vectors of these are kept
            and looked for. count: encoders whose GFLOP are to be counted.
        at_once: batches that each encoder may have in hand: as many as it has replicas.
        slides: label of each slide, for data whose tiles have none: then every tile of these slides is taken.
        together: tile id -> key; tiles of one key are taken all or none, and none is stained anew.

    Raises:
        ShardError: no data set, no such split.
        EmbedError: no labelled tile that can be read, or vectors that are not finite or not one a tile.
    """
    ids, num_rows = labelled_ids(uri, storage, splits, slides)
    if not ids and slides is not None:
        raise EmbedError(f"{uri} has no tile of the {len(slides)} labelled slides; do their names agree?")
    if not ids:
        raise EmbedError(f"no tile of {uri} has a label; import the tiles in folders named by class or with a CSV")
    chosen = choose_tiles(list(ids), max_tiles) if together is None else choose_together(ids, max_tiles, together)
    failures: dict[str, str] = {}
    places = {name: place(keep, key, uri) for name, key in (keys or {}).items() if keep and key}
    kept = {name: read_kept(places[name], storage) if name in places else Kept() for name in encoders}
    before = {name: len(one.rows) for name, one in kept.items()}
    rows, vectors = through(
        encoders, kept, batches(uri, storage, splits, chosen, size, batch, failures), at_once=at_once
    )
    if not rows:
        reason = next(iter(failures.values()))
        raise EmbedError(f"none of the {len(chosen)} labelled tiles of {uri} can be read, e.g. {reason}")
    tested = {tile_id for tile_id, split in ids.items() if split == "test"} or set(ids)
    few = choose_tiles([i for i in chosen if i in tested], NUM_RESTAINED if together is None else 0)
    again = batches(uri, storage, splits, few, size, batch, {}, stained_anew) if few else ()
    anew, restained = through(encoders, kept, again, "stain")
    for name, encode in encoders.items():
        one = kept[name]
        if name in count and "gflop" not in one.facts:
            one.facts["gflop"] = count_gflop(encode, size)
        if name in places and len(one.rows) > before[name]:
            write_kept(places[name], name, one, storage)
    columns = tuple(zip(*rows, strict=True))
    row_of = {tile_id: i for i, tile_id in enumerate(columns[0])}
    return Embedded(
        tile_ids=np.array(columns[0]),
        slides=np.array(columns[1]),
        patients=np.array(columns[2]),
        sites=np.array(columns[3]),
        labels=np.array([slides[slide] for slide in columns[1]] if slides is not None else columns[4]),
        splits=np.array([split or "" for split in columns[5]]),
        hashes=np.array(columns[6], np.uint64),
        thumbs=columns[7],
        vectors=vectors,
        restained=restained,
        restained_rows=np.array([row_of[row[0]] for row in anew], int),
        gflop={name: one.facts.get("gflop") for name, one in kept.items()},
        num_rows=num_rows,
        num_unlabelled=num_rows - len(ids),
        failures=failures,
    )


def through(
    encoders: Mapping[str, Encode],
    kept: Mapping[str, Kept],
    stream: Iterable[tuple[list[tuple[Any, ...]], np.ndarray]],
    what: str = "",
    at_once: int = 1,
) -> tuple[list[tuple[Any, ...]], dict[str, np.ndarray]]:
    """Facts of the tiles of `stream`, and each encoder's vectors of its views, which are kept under the name `what`."""
    rows: list[tuple[Any, ...]] = []
    vectors: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    waiting: deque[dict[str, Future[np.ndarray]]] = deque()

    def collect(down_to: int) -> None:
        while len(waiting) > down_to:
            for name, future in waiting.popleft().items():
                vectors[name].append(future.result())

    threads = max(1, min(len(encoders), os.cpu_count() or 1) if at_once == 1 else len(encoders) * at_once)
    with ThreadPoolExecutor(threads) as pool:
        for facts, views in stream:
            rows += facts
            ids = [f"{row[0]}#{what}" if what else row[0] for row in facts]
            pixels = [hashed(view.data) for view in views]
            waiting.append(
                {
                    name: pool.submit(vectors_of, name, encode, kept[name], ids, pixels, views)
                    for name, encode in encoders.items()
                }
            )
            collect(at_once - 1)
        collect(0)
    return rows, {name: np.concatenate(parts) for name, parts in vectors.items() if parts}


def choose_together(ids: Iterable[str], at_most: int, key: Callable[[str], str]) -> frozenset[str]:
    """The tiles of as many keys as hold `at_most` of them, by the order of the keys' hashes; of one key at least."""
    by_key: dict[str, list[str]] = {}
    for tile_id in ids:
        by_key.setdefault(key(tile_id), []).append(tile_id)
    each = max(map(len, by_key.values()))
    return frozenset(i for k in choose_tiles(list(by_key), max(1, at_most // each)) for i in by_key[k])


def stained_anew(tile_id: str, view: np.ndarray) -> np.ndarray:
    """The view in other stains, the same ones every time."""
    return restain(view, *stain_map(STAIN, keyed_generator("stain", tile_id).standard_normal(6)))


def vectors_of(
    name: str, encode: Encode, kept: Kept, tile_ids: Sequence[str], pixels: Sequence[int], views: np.ndarray
) -> np.ndarray:
    """fp32 [B, D] of a batch: what is kept of it, and the rest from the encoder, which is kept from now on."""
    found = [kept.vector(tile_id, one) for tile_id, one in zip(tile_ids, pixels, strict=True)]
    missing = [i for i, vector in enumerate(found) if vector is None]
    if missing:
        made = to_numpy(name, encode, views if len(missing) == len(views) else views[missing])
        for i, vector in zip(missing, made, strict=True):
            found[i] = vector
            kept.rows[tile_ids[i]] = (pixels[i], vector)
    return np.stack(found)  # type: ignore[arg-type]


def labelled_ids(
    uri: str, storage: config.Storage, splits: Sequence[str], slides: Mapping[str, str] | None = None
) -> tuple[dict[str, str | None], int]:
    """Split of each tile with a label, by its id, and the number of all tiles."""
    ids: dict[str, str | None] = {}
    num_rows = 0
    for table in iter_tiles(uri, storage, splits, ("tile_id", "slide_id", "label", "split")):
        num_rows += table.num_rows
        for row in table.to_pylist():
            if row["slide_id"] in slides if slides is not None else row["label"]:
                ids[row["tile_id"]] = row["split"]
    return ids, num_rows


def batches(
    uri: str,
    storage: config.Storage,
    splits: Sequence[str],
    chosen: frozenset[str],
    size: int,
    batch: int,
    failures: dict[str, str],
    alter: Alter = lambda tile_id, view: view,
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
            views.append(alter(row["tile_id"], identity_view(tile, size)))
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


def count_gflop(encode: Encode, size: int) -> float | None:
    """GFLOP of one view by torch's counter, a multiply-add as two; None where nothing runs in this process."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        encode(np.zeros((1, size, size, 3), np.uint8))
    return counter.get_total_flops() / 1e9 or None
