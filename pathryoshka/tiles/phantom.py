"""Phantom tissue: labelled synthetic tiles that look like H&E, for demos and tests without anybody's patients.

`phantom_tissue.py` says what lies where, `phantom_scan.py` stains and scans it, here it becomes tiles and data sets. A
label is an architecture; stain, scanner and habit of site and patient are nuisance. A share of the tiles holds a second
kind of tissue beside the one that gives the label, and neighbouring kinds overlap, so that a frozen encoder is right
often, by unseen patients, but not always. Balanced accuracy of a linear probe (600 tiles, 20 patients at 4 sites, folds
by patient, 128 px, chance .17): EfficientNet-Lite0 with ImageNet weights .86 and .88 (two seeds), the same net with
random weights .44, mean and deviation of the three colours .46 to .73 (the less regularised, the better). What is
mistaken is stroma for muscle and normal for tumour glands. About 50 tiles a second on one core.

Everything phantom says so: in `made_by`, and in the names of slides, patients and sites.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pathryoshka import config, storage
from pathryoshka.tiles.phantom_scan import PHANTOM_VERSION, patient_of, phantom_rng, scanned, scanner_of, stained
from pathryoshka.tiles.phantom_tissue import KINDS, Habit, Tissue, noise, smooth_step
from pathryoshka.tiles.shards import MANIFEST, SCHEMA, Manifest, ShardEntry, read_manifest, write_manifest, write_shard
from pathryoshka.tiles.stats import tissue_share

LABELS = tuple(KINDS)
MPP = 0.5
SPLITS = {"distil": 0.6, "test": 0.4}
TILES_A_ROW = 32
ROWS_PER_SHARD = 1024

MIXED_SHARE = 0.45
"""Share of tiles with a second kind of tissue."""
SECOND_AREA = (0.1, 0.42)


class PhantomError(ValueError):
    """A phantom data set that cannot be made; the sentence says what to ask for instead."""


def phantom_tile(label: str, patient: int, site: int, index: int, seed: int, size: int = 224) -> np.ndarray:
    """One tile at 0.5 micrometres a pixel: a pure function of its arguments.

    Args:
        label: one of LABELS; the tissue that covers most of the tile.
        index: which of the patient's tiles.

    Returns:
        uint8 [size, size, 3], as scanned, before JPEG.
    """
    if label not in KINDS:
        raise PhantomError(f"phantom tissue has no label {label!r}; its labels are {', '.join(LABELS)}")
    rng = phantom_rng(seed, "tile", patient, site, index, label)
    who = patient_of(patient, site, seed)
    habit = Habit(
        scale=who.habit.scale * math.exp(rng.normal(0, 0.04)),
        atypia=float(np.clip(who.habit.atypia + rng.normal(0, 0.18), 0, 1)),
        cellularity=who.habit.cellularity * math.exp(rng.normal(0, 0.15)),
        wave=who.habit.wave * math.exp(rng.normal(0, 0.25)),
    )
    tissue = KINDS[label](rng, (size, size), habit)
    if rng.random() < MIXED_SHARE:
        other = [name for name in LABELS if name != label][rng.integers(len(LABELS) - 1)]
        field = noise(rng, (size, size), size / 2) + 0.2 * noise(rng, (size, size), size / 12)
        edge = np.quantile(field, 1 - rng.uniform(*SECOND_AREA))
        tissue = beside(tissue, KINDS[other](rng, (size, size), habit), smooth_step((field - edge) * (size / 12) + 0.5))
    scanner = scanner_of(site, seed)
    thickness = np.exp(rng.normal(0, 0.12, (2, 1)))  # sections are not even, nor is their stain
    return scanned(stained(tissue, who.stains * thickness, scanner.white), scanner, rng)


def beside(first: Tissue, second: Tissue, share: np.ndarray) -> Tissue:
    """`second` where `share` [H, W] is 1, `first` where it is 0."""
    return Tissue(first.haem + share * (second.haem - first.haem), first.eosin + share * (second.eosin - first.eosin))


def phantom_tiles(
    patient: int, site: int, *, num_tiles: int, first: int = 0, size: int = 224, seed: int = 0, split: str | None = None
) -> Iterator[dict[str, Any]]:
    """The tiles of a patient, labels in turn, in a seeded shuffle: rows of the shards' `SCHEMA`.

    Args:
        first: the number of tiles of the patients before this one, so that labels are balanced over all of them.
    """
    quality = scanner_of(site, seed).quality
    slide = f"phantom-{patient:04d}"
    for index in phantom_rng(seed, "order", patient).permutation(num_tiles).tolist():
        label = LABELS[(first + index) % len(LABELS)]
        sink = io.BytesIO()
        pixels = phantom_tile(label, patient, site, index, seed, size)
        Image.fromarray(pixels).save(sink, "JPEG", quality=quality)
        x, y = index % TILES_A_ROW * size, index // TILES_A_ROW * size
        yield {
            "tile_id": f"{slide}/{x}_{y}_{size}_{round(MPP * 1000)}",
            "slide_id": slide,
            "patient_id": f"phantom-patient-{patient:04d}",
            "site": f"phantom-site-{site}",
            "image": sink.getvalue(),
            "x": x,
            "y": y,
            "width": size,
            "height": size,
            "mpp": MPP,
            "tissue": tissue_share(pixels[::2, ::2]),
            "label": label,
            "split": split,
        }


@dataclass(frozen=True)
class Share:
    """The part of a data set that one patient is."""

    patient: int
    site: int
    num_tiles: int
    first: int
    split: str


def shares(
    num_tiles: int, num_patients: int, num_sites: int, seed: int, splits: Mapping[str, float] = SPLITS
) -> list[Share]:
    """Who has how many tiles in which split: patients dealt to sites in turn, and to splits by lot.

    Raises:
        PhantomError: counts or splits that leave a site, a patient or a split empty, or shares that are not 1 in all.
    """
    if not 1 <= num_sites <= num_patients <= num_tiles:
        raise PhantomError(
            f"{num_tiles} tiles of {num_patients} patients at {num_sites} sites: ask for at least one site, a patient "
            "a site and a tile a patient"
        )
    if min(splits.values(), default=0) <= 0 or abs(sum(splits.values()) - 1) > 1e-6:
        raise PhantomError(f"the shares of the splits must be positive and add up to 1; got {dict(splits)}")
    ends = np.round(np.cumsum(list(splits.values())) * num_patients).astype(int)
    if np.diff(ends, prepend=0).min() < 1:
        raise PhantomError(f"{num_patients} patients leave a split of {dict(splits)} empty; ask for more patients")
    lot = phantom_rng(seed, "split").permutation(num_patients)
    names = list(splits)
    starts = [p * num_tiles // num_patients for p in range(num_patients + 1)]
    return [
        Share(p, p % num_sites, starts[p + 1] - starts[p], starts[p], names[np.searchsorted(ends, lot[p], "right")])
        for p in range(num_patients)
    ]


def write_patient(to: str, cfg: config.Storage, size: int, seed: int, share: Share) -> tuple[ShardEntry, ...]:
    """Makes and writes the tiles of one patient; the same shards again when repeated."""
    rows = phantom_tiles(
        share.patient,
        share.site,
        num_tiles=share.num_tiles,
        first=share.first,
        size=size,
        seed=seed,
        split=share.split,
    )
    entries: list[ShardEntry] = []
    while chunk := list(itertools.islice(rows, ROWS_PER_SHARD)):
        name = f"phantom-{share.patient:04d}-{len(entries):03d}.parquet"
        entries.append(write_shard(to, name, pa.Table.from_pylist(chunk, schema=SCHEMA), cfg))
    return tuple(entries)


def write_phantom(
    to: str,
    cfg: config.Storage,
    *,
    num_tiles: int,
    num_patients: int,
    num_sites: int,
    size: int = 224,
    seed: int = 0,
    splits: Mapping[str, float] = SPLITS,
    parallel: bool = False,
) -> Manifest:
    """Writes a phantom tile data set: at least a shard a patient, labels balanced, each patient in one split.

    Args:
        parallel: patients side by side on Ray; the bytes are the same.

    Returns:
        The manifest; also when the same data set is there already, which is then left as it is.

    Raises:
        PhantomError: numbers that do not go together, or another data set at `to`.
    """
    to = storage.absolute(to)  # tasks may run in another folder
    todo = shares(num_tiles, num_patients, num_sites, seed, splits)
    made_by = {
        "kind": "phantom",
        "phantom": True,
        "version": PHANTOM_VERSION,
        "num_tiles": num_tiles,
        "num_patients": num_patients,
        "num_sites": num_sites,
        "size": size,
        "seed": seed,
        "splits": dict(splits),
    }
    if storage.exists(storage.join(to, MANIFEST), cfg):
        there = read_manifest(to, cfg)
        if there.made_by == made_by:
            return there
        raise PhantomError(f"another tile data set is at {to}; choose another place or delete it")
    task = partial(write_patient, to, cfg, size, seed)
    if not parallel:
        return write_manifest(to, itertools.chain.from_iterable(map(task, todo)), made_by, cfg)
    from pathryoshka.tiles.making import run_tasks

    entries: list[ShardEntry] = []
    for result in run_tasks(task, todo):
        if isinstance(result, Exception):
            raise result
        entries += result
    return write_manifest(to, entries, made_by, cfg)
