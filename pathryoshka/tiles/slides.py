"""Whole slides become shards: one Ray Data task a slide, its own shards, on the grids of `grid.py`.

What became of a slide is one file, written last; so the data set is what these files say, whatever happened before: the
same command after a crash does what is missing, slides named later extend the data set, and slides that failed are
tried again. A slide that cannot be cut is reported with its reason while the others finish. Pixels never leave the
process that read them but as a shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pathryoshka import config, storage
from pathryoshka.tiles import making
from pathryoshka.tiles.child import in_child
from pathryoshka.tiles.cutting import FOLDER, Slide, SlideState, beside, cut_slide, identity, shard_name
from pathryoshka.tiles.finding import find_slides, local_file, remove_stale
from pathryoshka.tiles.grid import REASONS, Cut, resolutions
from pathryoshka.tiles.shards import MANIFEST, Manifest, write_manifest
from pathryoshka.tiles.sources import ImportRefused, pseudonymiser
from pathryoshka.tiles.tiff import SlideError

SETTINGS, TABLE = f"{FOLDER}/_cut.json", "slides.parquet"
FACTS = ("slide_id", "patient_id", "site", "label", "split", "status", "reason", "format")
SLIDES = pa.schema(
    [
        *((name, pa.string()) for name in FACTS),
        *((name, pa.int64()) for name in ("width", "height")),
        ("mpp", pa.float64()),
        *((name, pa.int64()) for name in ("num_positions", "num_kept", *(f"num_{reason}" for reason in REASONS))),
    ]
)
READERS = 16
log = logging.getLogger(__name__)


def cut_slides(
    places: Sequence[str | Path],
    to: str,
    cfg: config.Storage,
    *,
    size: int = 224,
    mpp: float | Sequence[float | str] = 0.5,
    min_tissue: float = 0.5,
    stride: int | None = None,
    keep: Sequence[str] = (),
    cap: int | None = None,
    image_format: str = "jpeg",
    quality: int = 92,
    seed: int = 0,
    split: str | None = None,
    csv: str | Path | None = None,
    slide_mpp: float | None = None,
    pseudonymise: bool = False,
    resume: bool = False,
    max_failed_share: float = 0.1,
    time_limit_s: float = 3600,
    cache_gb: float = 50,
) -> Manifest:
    """Cuts slides into tiles of `size` pixels at `mpp` micrometres a pixel, as the tile data set `to`.

    Args:
        places: files, globs, folders or prefixes, or CSVs whose column `slide` names files (relative to the CSV) and
            whose other columns are those of `csv`.
        mpp: one or several resolutions, or a range as `0.25..2.0`, out of which each tile's is drawn.
        min_tissue: share of a tile that must be stained tissue.
        stride: pixels at `mpp` from tile to tile; none = `size`, no overlap.
        keep: filters to leave off, of `pen`, `black`, `white` and `blur`.
        cap: most tiles of a slide, drawn by the seed.
        image_format: jpeg, webp or png.
        csv: column `slide` (file name without suffix) and any of `mask` (an image of the slide's proportions, or
            GeoJSON in pixels of level 0), `patient`, `site`, `label`, `mpp` (of level 0) and `split`; a slide it does
            not name is its own patient.
        slide_mpp: resolution of level 0 for slides whose file or CSV row does not say.
        pseudonymise: as in `import_images`.
        resume: refuse to begin where no cut has begun; one that has is continued in any case.
        max_failed_share: of the slides asked for; with more there is no data set, but what was cut stays for a resume.
        time_limit_s: of one slide.
        cache_gb: for slides copied out of object storage, of which each worker holds one.

    Returns:
        The manifest. What became of each slide is in slides.parquet, beside it.

    Raises:
        ImportRefused: no tile at all, too many failures, two slides of one name, or another data set at `to`.
    """
    for module in ("openslide", "tifffile", "simplejpeg"):
        try:
            __import__(module)
        except ImportError:
            raise ImportRefused(
                f"slides are read with {module}, which is not installed; pip install 'pathryoshka[slides]'"
            ) from None
    several, mpp_range = resolutions(mpp)
    cut = Cut(size, stride or size, several, mpp_range, min_tissue, tuple(keep), cap, image_format, quality, seed)
    check(cut)
    to = storage.absolute(to)
    slides = find_slides(places, cfg, csv=csv, split=split, secret=pseudonymiser(pseudonymise))
    made_by = {"kind": "slides", **asdict(cut), "slide_mpp": slide_mpp, "pseudonymised": pseudonymise}
    begin(to, cfg, json.loads(json.dumps(made_by)), resume)
    states = read_states(to, cfg)
    with ThreadPoolExecutor(READERS) as pool:  # masks are read again
        done = pool.map(lambda slide: finished(slide, states.get(slide.slide_id), to, cfg), slides)
        todo = [slide for slide, is_done in zip(slides, done, strict=True) if not is_done]
    share = cache_gb * 1e9 / (os.cpu_count() or 1)
    task = partial(cut_one, to, cfg, cut, slide_mpp, time_limit_s, share)
    for slide, result in zip(todo, making.run_tasks(task, todo), strict=True):
        if isinstance(result, Exception):
            raise result
        states[slide.slide_id] = result
    asked = [states[slide.slide_id] for slide in slides]
    return gather(to, cfg, made_by, states, asked, max_failed_share)


def check(cut: Cut) -> None:
    """Raises ImportRefused for a cut that no slide could bear."""
    wrong = [
        (
            cut.size < 16 or cut.size > 4096,
            f"size must be 16 ... 4096 pixels, not {cut.size}",
        ),
        (cut.stride < 1, f"stride must be at least one pixel, not {cut.stride}"),
        (not 0 <= cut.min_tissue <= 1, f"min_tissue is a share, 0 ... 1, not {cut.min_tissue}"),
        (cut.cap is not None and cut.cap < 1, f"cap must be at least one tile, not {cut.cap}"),
        (cut.image_format not in ("jpeg", "webp", "png"), f"format is jpeg, webp or png, not {cut.image_format}"),
        (not 90 <= cut.quality <= 100, f"quality must be 90 ... 100, not {cut.quality}: artefacts would be learnt"),
        (bool(set(cut.keep) - {"pen", "black", "white", "blur"}), "keep is any of pen, black, white, blur"),
    ]
    for is_wrong, sentence in wrong:
        if is_wrong:
            raise ImportRefused(sentence)


def begin(to: str, cfg: config.Storage, made_by: dict[str, Any], resume: bool) -> None:
    """Claims the place for this cut, or finds that it is this cut's already."""
    where = storage.join(to, SETTINGS)
    if storage.exists(where, cfg):
        there = storage.read_json(where, cfg)
        differing = [k for k in sorted({*made_by, *there}) if made_by.get(k) != there.get(k)]
        if differing:
            raise ImportRefused(
                f"another tile data set is at {to} (other {', '.join(differing)}); choose another place or delete it"
            )
    elif storage.exists(storage.join(to, MANIFEST), cfg):
        raise ImportRefused(f"another tile data set is at {to}; choose another place or delete it")
    elif resume:
        raise ImportRefused(f"there is no cut at {to} to resume; check the place, or leave out --resume")
    else:
        storage.write_json(where, made_by, cfg)


def read_mask(slide: Slide, cfg: config.Storage) -> bytes | None:
    """The file of its mask; None where it has none, or one that does not exist."""
    try:
        return storage.read_bytes(slide.mask, cfg) if slide.mask else None
    except storage.NotFound:
        return None


def digest(slide: Slide, mask: bytes | None) -> str:
    """Of what was asked for a slide, wherever it and its mask lie."""
    drawn = hashlib.sha256(mask).hexdigest() if mask is not None else bool(slide.mask)
    facts = {**identity(slide), "mpp": slide.mpp, "mask": drawn}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def read_states(to: str, cfg: config.Storage) -> dict[str, SlideState]:
    """What became of the slides so far, by slide id; a state that does not read is none."""
    base = storage.join(to, FOLDER)
    names = [n for n in storage.list_files(base, cfg) if n.endswith(".json") and n != SETTINGS.rpartition("/")[2]]

    def read(name: str) -> SlideState | None:
        try:
            return SlideState.model_validate_json(storage.read_bytes(storage.join(base, name), cfg))
        except (ValidationError, storage.NotFound):
            return None

    with ThreadPoolExecutor(READERS) as pool:
        return {state.slide_id: state for state in pool.map(read, names) if state}


def finished(slide: Slide, state: SlideState | None, to: str, cfg: config.Storage) -> bool:
    """Whether nothing is left to do for a slide.

    Raises:
        ImportRefused: it was cut under other facts; its shards are part of a data set that others may read.
    """
    if state is None or state.status == "failed":
        return False
    if state.asked == digest(slide, read_mask(slide, cfg)):
        return True
    if storage.exists(storage.join(to, MANIFEST), cfg):
        raise ImportRefused(
            f"slide {slide.slide_id} of {to} was cut with other patient, site, label, split, mpp or mask; "
            "choose another place"
        )
    return False


def cut_one(
    to: str, cfg: config.Storage, cut: Cut, slide_mpp: float | None, limit_s: float, most_bytes: float, slide: Slide
) -> SlideState:
    """One slide, whatever it is: its shards, or the reason why there is none; a plain function, run by Ray or not."""
    remove_stale()
    mask = read_mask(slide, cfg)
    try:
        if slide.mask and mask is None:
            raise SlideError("its mask does not exist; check column mask of the CSV")
        with local_file(slide.uri, cfg, most_bytes) as path:
            state = in_child(cut_slide, path, mask, to, cfg, cut, slide_mpp, slide, limit_s=limit_s)
    except SlideError as error:
        state = SlideState(**identity(slide), status="failed", reason=str(error))
        for suffix in ("parquet", "jpg", "mask.png"):
            storage.delete(f"{beside(to, slide.slide_id)}.{suffix}", cfg)
    number = len(state.shards)
    while storage.exists(stale := storage.join(to, shard_name(slide.slide_id, number)), cfg):
        storage.delete(stale, cfg)  # of an attempt that got further, or of other facts
        number += 1
    state = state.model_copy(update={"asked": digest(slide, mask)})
    data = state.model_dump_json(indent=1).encode()
    storage.write_bytes(f"{beside(to, slide.slide_id)}.json", data, cfg)
    return state


def gather(
    to: str,
    cfg: config.Storage,
    made_by: dict[str, Any],
    states: dict[str, SlideState],
    asked: Sequence[SlideState],
    max_failed_share: float,
) -> Manifest:
    """slides.parquet, and the manifest that makes the shards a data set."""
    write_table(to, cfg, [states[slide_id] for slide_id in sorted(states)])
    failed = [state for state in asked if state.status == "failed"]
    some = "; ".join(f"{state.slide_id}: {state.reason}" for state in [*failed, *asked][:3] if state.reason)
    if not any(state.shards for state in states.values()):
        raise ImportRefused(f"no tile of {len(asked)} slides could be cut ({some}); {TABLE} says it of each")
    if len(failed) > max_failed_share * len(asked):
        raise ImportRefused(
            f"{len(failed)} of {len(asked)} slides failed, a share of {max_failed_share:g} may ({some}); what was cut "
            "stays: repair them and run the same command again, or raise max_failed_share"
        )
    if failed:
        log.warning("%d of %d slides failed, see %s (%s)", len(failed), len(asked), TABLE, some)
    refused = {reason: sum(state.refused.get(reason, 0) for state in asked) for reason in REASONS}
    log.info("tiles refused: %s", ", ".join(f"{count} {reason}" for reason, count in refused.items()))
    return write_manifest(to, (shard for state in states.values() for shard in state.shards), made_by, cfg)


def write_table(to: str, cfg: config.Storage, states: Sequence[SlideState]) -> None:
    """A row a slide, sorted by slide id."""
    rows = [
        {
            **{name: getattr(state, name) for name in SLIDES.names if hasattr(state, name)},
            **{f"num_{reason}": state.refused.get(reason, 0) for reason in REASONS},
        }
        for state in states
    ]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=SLIDES), sink, compression="ZSTD")
    storage.write_bytes(storage.join(to, TABLE), sink.getvalue(), cfg)


def read_slides(uri: str, cfg: config.Storage) -> list[dict[str, Any]]:
    """What became of each slide of the data set at `uri`: the rows of slides.parquet."""
    return pq.read_table(io.BytesIO(storage.read_bytes(storage.join(uri, TABLE), cfg))).to_pylist()
