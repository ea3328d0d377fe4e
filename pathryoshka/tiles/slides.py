"""Whole slides become shards: one Ray Data task a slide, its own shards, on the grid of `grid.py`.

A slide that cannot be cut is reported with its reason while the others finish.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import json
import posixpath
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pathryoshka import config, storage
from pathryoshka.tiles.grid import Grid, GridError, pixels, resolution, tissue_grid
from pathryoshka.tiles.making import Failure, Written, make_data_set
from pathryoshka.tiles.shards import SCHEMA, Manifest, ShardEntry, write_shard
from pathryoshka.tiles.sources import ImportRefused, dealt, positive, pseudonymiser, read_csv, stem
from pathryoshka.tiles.stats import TileStats
from pathryoshka.tiles.views import decode

COLUMNS = ("slide", "patient", "site", "label", "mpp", "split")
ROWS_PER_SHARD = 2048
COPIED_AT_ONCE = 16 * 2**20
FLATTEST = 8.0
"""Standard deviation of green, in grey levels, below which a tile is glass whatever its saturation: on three sections
under tinted glass, tiles of glass have at most 4 and tiles of tissue at least 20."""


@dataclass(frozen=True)
class Slide:
    uri: str
    slide_id: str
    patient_id: str
    site: str
    label: str | None
    split: str | None
    mpp: float | None
    """Micrometres a pixel of level 0, where the file is not to be asked."""


def cut_slides(
    paths: Sequence[str | Path],
    to: str,
    cfg: config.Storage,
    *,
    size: int = 224,
    mpp: float = 0.5,
    min_tissue: float = 0.5,
    stride: int | None = None,
    seed: int = 0,
    split: str | None = None,
    csv: str | Path | None = None,
    slide_mpp: float | None = None,
    pseudonymise: bool = False,
) -> Manifest:
    """Cuts slides into tiles of `size` pixels at `mpp` micrometres a pixel, as the tile data set `to`.

    Args:
        min_tissue: share of a tile that must be stained tissue.
        stride: pixels at `mpp` from tile to tile; none = `size`, no overlap.
        csv: column `slide` (file name without suffix) and any of `patient`, `site`, `label`, `mpp` (of level 0) and
            `split`; a slide it does not name is its own patient.
        slide_mpp: resolution of level 0 for slides whose file or CSV row does not say.
        pseudonymise: as in `import_images`.

    Returns:
        The manifest. Slides that could not be cut are in `_failures.json` (`making.read_failures`).

    Raises:
        ImportRefused: no slide could be cut, two slides of one name, or another data set at `to`.
    """
    if importlib.util.find_spec("openslide") is None:
        raise ImportRefused("slides are cut with OpenSlide, which is not installed; pip install 'pathryoshka[slides]'")
    grid = Grid(size, stride or size, mpp, min_tissue, seed)
    known = read_csv(storage.absolute(str(csv)), cfg, COLUMNS) if csv else {}
    secret = pseudonymiser(pseudonymise)
    slides = []
    for path in paths:
        name = stem(str(path))
        row = known.get(name, {})
        level_0 = positive(row.get("mpp"), f"{csv}, slide {name}")
        site, patient = row.get("site"), row.get("patient") or name
        slides.append(
            Slide(
                uri=storage.absolute(str(path)),
                slide_id=secret("slide", name),
                patient_id=secret("patient", patient),
                site=secret("site", site) if site else "unknown",
                label=row.get("label"),
                split=row.get("split") or split,
                mpp=level_0,
            )
        )
    slides.sort(key=lambda slide: slide.slide_id)
    for one, other in itertools.pairwise(slides):
        if one.slide_id == other.slide_id:
            raise ImportRefused(f"{one.uri} and {other.uri} are both slide {stem(one.uri)!r}; rename one of them")
    if not slides:
        raise ImportRefused("no slide to cut; name at least one file")
    listing = json.dumps([asdict(replace(slide, uri="")) for slide in slides])
    made_by = {
        "kind": "slides",
        "grid": asdict(grid),
        "slides_digest": hashlib.sha256(listing.encode()).hexdigest(),
        "slide_mpp": slide_mpp,
        "pseudonymised": pseudonymise,
    }
    task = partial(cut_slide, storage.absolute(to), cfg, grid, slide_mpp)
    return make_data_set(storage.absolute(to), cfg, made_by, task, slides, max_failed=len(slides), total=len(slides))


def cut_slide(to: str, cfg: config.Storage, grid: Grid, slide_mpp: float | None, slide: Slide) -> Written:
    """All shards of one slide, or the reason why there is none; a plain function, run by Ray or not."""
    import openslide  # an extra: only cutting slides needs it

    shards: list[ShardEntry] = []
    try:
        with local_file(slide.uri, cfg) as path, openslide.OpenSlide(path) as opened:
            level_0 = slide.mpp or resolution(opened) or slide_mpp
            if level_0 is None:
                raise GridError("the file does not say its resolution; give it with slide_mpp or column mpp of the CSV")
            positions = tissue_grid(opened, level_0, grid)
            for start in range(0, len(positions), ROWS_PER_SHARD):
                table, stats = rows(opened, level_0, positions[start : start + ROWS_PER_SHARD], grid, slide)
                name = f"{safe(slide.slide_id)}-{start // ROWS_PER_SHARD:03d}.parquet"
                if table.num_rows:
                    shards.append(write_shard(to, name, table, cfg, stats=stats))
            if not shards:
                raise GridError(f"no tile has at least {grid.min_tissue:.0%} tissue; lower min_tissue")
    except (openslide.OpenSlideError, GridError, storage.NotFound) as error:
        for shard in shards:
            storage.delete(storage.join(to, shard.path), cfg)
        return Written((), (Failure(slide.slide_id, reason(error, slide)),))
    return Written(tuple(shards), ())


def reason(error: Exception, slide: Slide) -> str:
    """Why a slide cannot be cut, without paths: the list of failures stays beside the tiles."""
    kind = type(error).__name__
    if kind == "OpenSlideUnsupportedFormatError":
        return "OpenSlide does not know this format"
    if isinstance(error, storage.NotFound):
        return "no such file"
    return str(error).rpartition(posixpath.basename(slide.uri))[2].removeprefix(": ")


def rows(opened: Any, level_0: float, positions: np.ndarray, grid: Grid, slide: Slide) -> tuple[pa.Table, TileStats]:
    """The rows of one shard, read in the order of the slide and then shuffled, and the sums over their tiles."""
    facts = {k: v for k, v in asdict(slide).items() if k not in ("uri", "mpp")}
    size, made, stats = grid.size, [], []
    for x, y, share in ((int(x), int(y), share) for x, y, share in positions.tolist()):
        image = pixels(opened, level_0, x, y, grid)
        tile = decode(image)
        if grid.min_tissue and tile[..., 1].std() < FLATTEST:
            continue
        tile_id = f"{slide.slide_id}/{x}_{y}_{size}_{round(grid.mpp * 1000)}"
        place = {"x": x, "y": y, "width": size, "height": size, "mpp": grid.mpp, "tissue": share}
        made.append({"tile_id": tile_id, "image": image, **facts, **place})
        stats.append(TileStats.of([tile]))
    made.sort(key=lambda row: dealt(grid.seed, row["tile_id"]))
    return pa.Table.from_pylist(made, schema=SCHEMA), TileStats.merged(stats)


@contextlib.contextmanager
def local_file(uri: str, cfg: config.Storage) -> Iterator[str]:
    """The slide as a local file, for OpenSlide reads no other; a copy from object storage lasts while it is open."""
    if Path(uri).exists():
        yield uri
        return
    base, _, name = uri.rpartition("/")
    size = storage.list_files(base, cfg).get(name)
    if size is None:
        raise storage.NotFound(f"cannot read {uri}: it does not exist")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / name
        with copy.open("wb") as target:
            for start in range(0, size, COPIED_AT_ONCE):
                target.write(storage.read_range(uri, start, min(COPIED_AT_ONCE, size - start), cfg))
        yield str(copy)


def safe(slide_id: str) -> str:
    """A slide id as part of a file name; a hash keeps apart those that differ only in characters left out."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", slide_id)
    return plain if plain == slide_id else f"{plain}-{hashlib.sha256(slide_id.encode()).hexdigest()[:8]}"
