"""What distillation saw, small enough to travel with the model, so that an evaluation can refuse to be flattered.

A student is better on tiles it was distilled on, labels or not (.91 on GlaS tiles it had seen, .60 on patients it had
not), so scores count only where neither patient nor pixels were seen. Slides and patients are kept as keyed hashes: the
key lies in the same file, which hides names from a reader but not from somebody who guesses them one by one. Tiles are
kept as 64-bit perceptual hashes, which survive re-encoding and resizing (not turning or another crop), so that the same
images under other names are found too.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pathryoshka import config
from pathryoshka.tiles.phash import MAX_DISTANCE, perceptual_hash

VERSION = 1
MAX_TILES = 200_000
NO_SITE = "unknown"


class SeenError(ValueError):
    """Tiles or patients that distillation saw, or a file that does not say what it saw."""


@dataclass(frozen=True)
class Seen:
    """What a student's distillation saw.

    Attributes:
        salt: key of the hashes.
        names: 16-byte keyed hashes of slides and patients.
        tiles: uint64, sorted, perceptual hashes of at most `MAX_TILES` tiles, chosen by the hash of their ids.
        num_tiles: tiles seen, hashed or not.
    """

    salt: bytes
    names: frozenset[bytes]
    tiles: np.ndarray
    num_tiles: int

    def slides(self, slide_ids: Iterable[str]) -> np.ndarray:
        """bool [N]"""
        return self.look_up(slide_ids, lambda name: [("slide", name)])

    def patients(self, patient_ids: Sequence[str], sites: Sequence[str]) -> np.ndarray:
        """bool [N]. Equal names at two known, different sites are two patients; a missing site could be any."""
        pairs = [f"{site}\x1f{patient}" for patient, site in zip(patient_ids, sites, strict=True)]

        def keys(pair: str) -> list[tuple[str, str]]:
            site, _, patient = pair.partition("\x1f")
            if site == NO_SITE:
                return [("patient", patient)]
            return [("patient at site", pair), ("patient without site", patient)]

        return self.look_up(pairs, keys)

    def look_up(self, values: Iterable[str], keys: Callable[[str], list[tuple[str, str]]]) -> np.ndarray:
        values = list(values)
        known = {v: any(keyed(self.salt, *key) in self.names for key in keys(v)) for v in set(values)}
        return np.array([known[v] for v in values], bool)

    def looks_like(self, hashes: np.ndarray) -> np.ndarray:
        """bool [N]: is there a seen tile within `MAX_DISTANCE` bits? False for tiles without a hash (0)."""
        hashes = np.asarray(hashes, np.uint64)
        found = np.zeros(len(hashes), bool)
        for shift in np.arange(0, 64, 16, dtype=np.uint64):
            part = (self.tiles >> shift) & np.uint64(0xFFFF)
            order = np.argsort(part, kind="stable")
            starts = np.searchsorted(part[order], np.arange(2**16 + 1))
            mine = ((hashes >> shift) & np.uint64(0xFFFF)).astype(np.int64)
            for row in np.flatnonzero(~found & (hashes != 0)):
                near = self.tiles[order[starts[mine[row]] : starts[mine[row] + 1]]]
                found[row] = bool(len(near)) and bool((np.bitwise_count(near ^ hashes[row]) <= MAX_DISTANCE).any())
        return found


def keyed(salt: bytes, kind: str, name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=16, key=salt, person=kind.encode()[:16]).digest()


def collect_seen(
    uri: str, cfg: config.Storage, splits: Sequence[str] = (), *, max_tiles: int = MAX_TILES, salt: bytes | None = None
) -> Seen:
    """Reads the tiles of a distillation once more and keeps what `Seen` needs of them.

    Args:
        uri: the tile data set of the run; `splits` as in `data.splits`.
        max_tiles: tiles that are decoded and hashed, the same ones every time; slides and patients are always all kept.
    """
    from pathryoshka.tiles.shards import iter_tiles
    from pathryoshka.tiles.views import TileError, decode

    salt = salt or secrets.token_bytes(32)
    names: set[bytes] = set()
    ids: list[str] = []
    for table in iter_tiles(uri, cfg, splits, ("tile_id", "slide_id", "patient_id", "site")):
        ids += table["tile_id"].to_pylist()
        rows = {tuple(row.values()) for row in table.select(["slide_id", "patient_id", "site"]).to_pylist()}
        for slide, patient, site in rows:
            names.add(keyed(salt, "slide", slide))
            names.add(keyed(salt, "patient", patient))
            if site == NO_SITE:
                names.add(keyed(salt, "patient without site", patient))
            else:
                names.add(keyed(salt, "patient at site", f"{site}\x1f{patient}"))
    chosen = choose_tiles(ids, max_tiles)
    hashes: set[int] = set()
    for table in iter_tiles(uri, cfg, splits, ("tile_id", "image")):
        for tile_id, image in zip(table["tile_id"].to_pylist(), table["image"], strict=True):
            if tile_id in chosen:
                try:
                    hashes.add(perceptual_hash(decode(image.as_py())))
                except TileError:
                    continue  # the student did not see it either
    return Seen(salt, frozenset(names), np.array(sorted(hashes - {0}), np.uint64), len(ids))


def choose_tiles(ids: Sequence[str], at_most: int) -> frozenset[str]:
    """`at_most` of the ids, by the order of their hashes: the same for any order of the ids."""
    if len(ids) <= at_most:
        return frozenset(ids)
    return frozenset(sorted(ids, key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest())[:at_most])


def merge(parts: Sequence[Seen]) -> Seen:
    """What several data sets of one run showed; they must have been collected with one salt."""
    if len({part.salt for part in parts}) != 1:
        raise SeenError("what was seen can only be merged when it was collected with one salt")
    tiles = np.unique(np.concatenate([part.tiles for part in parts]))
    return Seen(parts[0].salt, frozenset().union(*(p.names for p in parts)), tiles, sum(p.num_tiles for p in parts))


def seen_to_bytes(seen: Seen) -> bytes:
    """`seen.parquet`: columns kind ("name", "tile") and hash (16 or 8 bytes); salt and counts in its metadata."""
    names, tiles = sorted(seen.names), [int(h).to_bytes(8, "big") for h in seen.tiles]
    table = pa.table(
        {
            "kind": pa.array(["name"] * len(names) + ["tile"] * len(tiles)).dictionary_encode(),
            "hash": pa.array([*names, *tiles], pa.binary()),
        }
    )
    facts = {"version": VERSION, "salt": seen.salt.hex(), "num_tiles": seen.num_tiles}
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"pathryoshka.seen": json.dumps(facts)}), sink, compression="zstd")
    return sink.getvalue()


def seen_from_bytes(data: bytes, where: str = "seen.parquet") -> Seen:
    """Raises SeenError for a file that is not one of `seen_to_bytes`."""
    try:
        table = pq.read_table(io.BytesIO(data))
        facts = json.loads((table.schema.metadata or {})[b"pathryoshka.seen"])
        kinds, hashes = table["kind"].to_pylist(), table["hash"].to_pylist()
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise SeenError(f"{where} does not say what distillation saw ({error}); export the student again") from None
    if facts["version"] != VERSION:
        raise SeenError(f"{where} has version {facts['version']} and this program reads {VERSION}; export again")
    names = frozenset(h for kind, h in zip(kinds, hashes, strict=True) if kind == "name")
    tiles = np.array([int.from_bytes(h, "big") for k, h in zip(kinds, hashes, strict=True) if k == "tile"], np.uint64)
    return Seen(bytes.fromhex(facts["salt"]), names, tiles, facts["num_tiles"])


def read_seen(path: Path) -> Seen:
    """The `seen.parquet` of an exported folder."""
    try:
        return seen_from_bytes(path.read_bytes(), str(path))
    except OSError as error:
        raise SeenError(f"cannot read {path}: {error.strerror}; name the folder of an export") from None
