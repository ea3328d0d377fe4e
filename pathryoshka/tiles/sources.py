"""What there is to import: images below a folder, or the rows of a CSV, as rows without pixels.

A tile that no CSV describes is its own slide and patient: the file's stem, or its relative path where two files share a
stem. Real patients need the CSV, for probes and splits go by patient. Names can be made pseudonyms here, before any id
is made of them.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import hmac
import io
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pathryoshka import config, storage

COLUMNS = ("tile", "slide", "patient", "site", "label", "mpp", "split")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".jp2")
KEY_VARIABLE = "PATHRYOSHKA_PSEUDONYM_KEY"


class ImportRefused(ValueError):
    """Tiles that cannot be imported: one sentence that says what to do."""


@dataclass(frozen=True)
class Tile:
    """One image to import: where it is below the source, and its row but for what only the pixels tell."""

    path: str
    bytes: int
    tile_id: str
    slide_id: str
    patient_id: str
    site: str
    label: str | None
    mpp: float | None
    split: str | None


def from_folder(base: str, cfg: config.Storage) -> list[Tile]:
    """Every image below `base`, its first sub-folder as label."""
    found = storage.list_files(base, cfg)
    paths = [p for p in found if p.lower().endswith(SUFFIXES) and not hidden(p)]
    if not paths:
        raise ImportRefused(f"no image below {base}; expected files ending in {', '.join(SUFFIXES)}")
    stems = Counter(stem(path) for path in paths)
    tiles = []
    for path in paths:
        own = stem(path) if stems[stem(path)] == 1 else path
        label = path.split("/")[0] if "/" in path else None
        tiles.append(Tile(path, found[path], path, own, own, "unknown", label, None, None))
    return tiles


def from_csv(location: str, base: str, cfg: config.Storage) -> list[Tile]:
    """Every row of the CSV at `location`, paths relative to the folder `base`."""
    found = storage.list_files(base, cfg)
    rows = read_csv(location, cfg, COLUMNS)
    stems = Counter(stem(path) for path in rows)
    tiles = []
    for given, row in rows.items():
        path = posixpath.normpath(given)
        if path.startswith(("/", "..")):
            raise ImportRefused(f"{location} names {given}, which is not below {base}; name the folder above as source")
        slide = row["slide"] or (stem(given) if stems[stem(given)] == 1 else path)
        patient, site = row["patient"] or slide, row["site"] or "unknown"
        mpp = positive(row["mpp"], f"{location}, tile {given}")
        tiles.append(Tile(path, found.get(path, -1), path, slide, patient, site, row["label"], mpp, row["split"]))
    return tiles


def read_csv(location: str, cfg: config.Storage, columns: Sequence[str]) -> dict[str, dict[str, str | None]]:
    """The rows of a CSV by their first column, `columns[0]`; absent columns and empty cells are None.

    Raises:
        ImportRefused: an unknown column, the first column missing or empty or repeated, no row.
    """
    if not storage.exists(location, cfg):
        raise ImportRefused(f"there is no CSV at {location}")
    try:
        text = storage.read_bytes(location, cfg).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ImportRefused(f"{location} is no CSV in UTF-8; save it as one") from None
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = [name.strip() for name in reader.fieldnames or ()]
    for name in names:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known columns: {', '.join(columns)}"
            raise ImportRefused(f"{location} has an unknown column {name!r}; {hint}")
    key, rows = columns[0], {}
    if key not in names:
        raise ImportRefused(f"{location} has no column {key!r}; its columns may be {', '.join(columns)}")
    reader.fieldnames = names
    for record in reader:
        row = {column: (record.get(column) or "").strip() or None for column in columns}
        value = row[key]
        if value is None or value in rows or None in record:
            what = f"{value!r} twice" if value in rows else "too many cells" if value else f"no {key}"
            raise ImportRefused(f"{location}, line {reader.line_num}: {what}; a row is one {key}")
        rows[value] = row
    if not rows:
        raise ImportRefused(f"{location} has no row")
    return rows


def positive(text: str | None, where: str) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ImportRefused(f"{where}: mpp must be a positive number of micrometres a pixel, not {text!r}")
    return value


def hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def pseudonymiser(on: bool) -> Callable[[str, str], str]:
    """(kind, name) -> keyed hash of 96 bits in hex; or the name itself when off."""
    if not on:
        return lambda kind, name: name
    key = os.environ.get(KEY_VARIABLE, "")
    if len(key) < 16:
        raise ImportRefused(f"to pseudonymise, set {KEY_VARIABLE} to a secret of at least 16 characters and keep it")
    return lambda kind, name: hmac.new(key.encode(), f"{kind}:{name}".encode(), hashlib.sha256).hexdigest()[:24]


def with_ids(tile: Tile, folder: str, secret: Callable[[str, str], str]) -> Tile:
    return replace(
        tile,
        tile_id=f"{folder}/{secret('tile', tile.path)}",
        slide_id=secret("slide", tile.slide_id),
        patient_id=secret("patient", tile.patient_id),
        site=tile.site if tile.site == "unknown" else secret("site", tile.site),
    )


def dealt(seed: int, tile_id: str) -> bytes:
    """Where a tile comes in the seeded shuffle: tiles are sorted by this."""
    return hashlib.blake2b(f"{seed}:{tile_id}".encode(), digest_size=16).digest()
