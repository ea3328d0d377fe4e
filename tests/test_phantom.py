"""Phantom tissue: determinism, labels that are architecture, nuisance that is not, data sets and slides made of it."""

from __future__ import annotations

import math
import time
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pathryoshka import config
from pathryoshka.tiles import phantom, phantom_scan, phantom_slide, phantom_tissue
from pathryoshka.tiles.phantom import LABELS, PhantomError, phantom_tile, phantom_tiles, shares, write_phantom
from pathryoshka.tiles.shards import SCHEMA, Manifest, iter_tiles, read_manifest
from pathryoshka.tiles.views import decode

PER_LABEL = 16


@cache
def examples(label: str) -> np.ndarray:
    """Tiles of many patients and sites, all nuisance included; uint8 [PER_LABEL, 128, 128, 3]."""
    return np.stack([phantom_tile(label, n, n % 4, n, seed=5, size=128) for n in range(PER_LABEL)])


def test_a_tile_is_a_function_of_its_arguments() -> None:
    def crc(label: str = "tumour", patient: int = 1, site: int = 0, index: int = 2, seed: int = 3) -> int:
        return zlib.crc32(phantom_tile(label, patient, site, index, seed, 96).tobytes())

    first = phantom_tile("tumour", 1, 0, 2, 3, 96)
    assert first.dtype == np.uint8 and first.shape == (96, 96, 3)
    others = {crc(label="gland"), crc(patient=2), crc(site=1), crc(index=3), crc(seed=4)}
    assert len(others | {crc()}) == 6 and crc() == zlib.crc32(first.tobytes())


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(PhantomError, match="bone.*stroma, muscle"):
        phantom_tile("bone", 0, 0, 0, 0)


def test_there_are_six_kinds_of_tissue() -> None:
    assert LABELS == ("stroma", "muscle", "gland", "tumour", "lymphocytes", "mucus")


def auc(high: list[float], low: list[float]) -> float:
    return float(np.mean(np.subtract.outer(high, low) > 0))


def optical_density(tile: np.ndarray) -> np.ndarray:
    return -np.log10((tile.astype(np.float64) + 1) / 256)


def nuclear_share(tile: np.ndarray) -> float:
    """Share of pixels that absorb at least half as much red as the darkest: haematoxylin does, eosin hardly."""
    red = optical_density(tile)[..., 0]
    return float((red > np.quantile(red, 0.995) / 2).mean())


def white_share(tile: np.ndarray) -> float:
    return float((optical_density(tile).max(axis=2) < 0.12).mean())


def streakiness(tile: np.ndarray) -> float:
    """Coherence of the structure tensor over the whole tile: 1 if all edges run one way, 0 if any way."""
    grey = optical_density(tile).mean(axis=2)
    down, across = np.gradient(grey)
    jxx, jyy, jxy = (across**2).mean(), (down**2).mean(), (across * down).mean()
    return float(math.hypot(jxx - jyy, 2 * jxy) / (jxx + jyy))


def coarseness(tile: np.ndarray) -> float:
    """How far red density stays alike, in pixels: lag at which its autocorrelation falls to a half."""
    red = optical_density(tile)[..., 0]
    red -= red.mean()
    correlation = np.fft.ifft2(np.abs(np.fft.fft2(red)) ** 2).real
    radial = (correlation[0, :40] + correlation[:40, 0]) / (2 * correlation[0, 0])
    return float(np.argmax(radial < 0.5))


@pytest.mark.parametrize(
    ("measure", "high", "low"),
    [
        (nuclear_share, "lymphocytes", "stroma"),
        (nuclear_share, "tumour", "muscle"),
        (nuclear_share, "tumour", "gland"),
        (nuclear_share, "gland", "mucus"),
        (streakiness, "muscle", "lymphocytes"),
        (streakiness, "stroma", "gland"),
        (streakiness, "stroma", "tumour"),
        (coarseness, "tumour", "lymphocytes"),
        (white_share, "mucus", "tumour"),
    ],
)
def test_labels_are_architecture(measure: Callable[[np.ndarray], float], high: str, low: str) -> None:
    """One hand-made number, named for what it measures, tells two kinds apart over patients, stains and scanners."""
    score = auc([measure(tile) for tile in examples(high)], [measure(tile) for tile in examples(low)])
    assert score > 0.85, f"{high} above {low} in {score:.0%} of pairs"


def test_mean_colour_alone_does_not_tell_kinds_apart() -> None:
    """Nearest class mean of mean colours, leaving one patient out, is far from what an encoder reaches (.87)."""
    colours = np.stack([examples(label).reshape(PER_LABEL, -1, 3).mean(axis=1) for label in LABELS])
    right = 0
    for left_out in range(PER_LABEL):
        centres = np.delete(colours, left_out, axis=1).mean(axis=1)
        distance = np.linalg.norm(colours[:, left_out, None] - centres, axis=2)
        right += int((distance.argmin(axis=1) == np.arange(len(LABELS))).sum())
    assert right / (len(LABELS) * PER_LABEL) < 0.65


def test_sites_and_patients_are_nuisance() -> None:
    """The same tissue differs in colour between sites more than inside one, and between patients of a site, too."""
    means = np.array(
        [[[phantom_tile("muscle", p, s, i, 0, 64).mean() for i in range(4)] for p in range(4)] for s in range(4)]
    )
    within = means.std(axis=2).mean()
    assert means.mean(axis=2).std(axis=1).mean() > 0.5 * within, "patients of a site differ"
    assert means.mean(axis=(1, 2)).std() > 0.5 * within, "sites differ"
    scanners = [phantom_scan.scanner_of(site, 0) for site in range(30)]
    assert {scanner.quality for scanner in scanners} >= set(range(90, 97)), "and so do JPEGs, all of them good"
    assert min(scanner.quality for scanner in scanners) >= 90


def test_staining_is_beer_lambert() -> None:
    rng = np.random.default_rng(0)
    haem, eosin = rng.random((2, 20, 30), dtype=np.float32)
    stains, white = np.array([[0.6, 0.7, 0.3], [0.1, 0.9, 0.4]]), np.array([240.0, 238.0, 243.0])
    density = haem[..., None].astype(np.float64) * stains[0] + eosin[..., None].astype(np.float64) * stains[1]
    got = phantom_scan.stained(phantom_tissue.Tissue(haem, eosin), stains, white)
    assert np.allclose(got, white * 10**-density, rtol=1e-4)


def test_a_nucleus_has_the_place_size_and_angle_asked_for() -> None:
    haem = np.zeros((80, 100), np.float32)
    one = [np.array([value]) for value in (60.3, 30.7, 14.0, 6.0, 0.5, 0.8, 0.0)]
    phantom_tissue.draw_cells(haem, phantom_tissue.Cells(*one))
    rows, cols = np.nonzero(haem > 0.25)
    assert abs(len(rows) / (math.pi * 14 * 6) - 1) < 0.1
    assert abs(cols.mean() - 60.3) < 0.3 and abs(rows.mean() - 30.7) < 0.3
    spread = np.cov(cols, rows)
    values, vectors = np.linalg.eigh(spread)
    assert np.allclose(2 * np.sqrt(values), [6, 14], rtol=0.06), "semi-axes"
    assert abs(abs(vectors[:, 1] @ [math.cos(0.5), math.sin(0.5)]) - 1) < 1e-3, "angle"
    assert 0.7 < haem.max() <= 0.8


def test_nuclei_over_the_border_and_none_at_all() -> None:
    haem = np.zeros((40, 40), np.float32)
    phantom_tissue.draw_cells(haem, phantom_tissue.Cells(*[np.empty(0)] * 7))
    assert not haem.any()
    away = [np.array([-30.0, 20.0]), np.array([5.0, 90.0]), *[np.full(2, v) for v in (6.0, 5.0, 0.0, 0.8, 0.0)]]
    phantom_tissue.draw_cells(haem, phantom_tissue.Cells(*away))
    assert not haem.any()
    corner = [np.array([0.0]), np.array([0.0]), *[np.array([v]) for v in (9.0, 9.0, 0.0, 0.8, 0.0)]]
    phantom_tissue.draw_cells(haem, phantom_tissue.Cells(*corner))
    quarter = np.hypot(*np.indices((40, 40))) < 9
    assert ((haem > 0.25) != quarter).sum() <= 8 and not haem[12:].any() and not haem[:, 12:].any()


def test_rows_fit_the_schema() -> None:
    rows = list(phantom_tiles(7, 2, num_tiles=40, first=3, size=64, seed=1, split="test"))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    assert table.num_rows == 40 and len(set(table["tile_id"].to_pylist())) == 40
    assert table["tile_id"][0].as_py().startswith("phantom-0007/")
    for row in rows:
        assert row["tile_id"] == f"phantom-0007/{row['x']}_{row['y']}_64_500"
        assert (row["patient_id"], row["site"]) == ("phantom-patient-0007", "phantom-site-2")
        assert 0 <= row["tissue"] <= 1 and decode(row["image"]).shape == (64, 64, 3)
    assert [row["x"] for row in rows] != sorted(row["x"] for row in rows), "shuffled"
    counts = Counter(row["label"] for row in rows)
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize(
    ("num_tiles", "num_patients", "num_sites"), [(600, 20, 4), (101, 7, 3), (10, 10, 1), (5000, 3, 2)]
)
def test_shares_add_up(num_tiles: int, num_patients: int, num_sites: int) -> None:
    found = shares(num_tiles, num_patients, num_sites, seed=1)
    assert sum(s.num_tiles for s in found) == num_tiles and min(s.num_tiles for s in found) > 0
    assert max(s.num_tiles for s in found) - min(s.num_tiles for s in found) <= 1
    assert {s.patient for s in found} == set(range(num_patients)) and {s.site for s in found} == set(range(num_sites))
    assert all(s.first == sum(t.num_tiles for t in found[:i]) for i, s in enumerate(found))
    assert abs(sum(s.split == "distil" for s in found) - 0.6 * num_patients) <= 0.5
    labels = Counter(LABELS[(s.first + i) % len(LABELS)] for s in found for i in range(s.num_tiles))
    assert max(labels.values()) - min(labels.values()) <= 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_tiles": 3}, "a tile a patient"),
        ({"num_sites": 5}, "a patient a site"),
        ({"num_sites": 0}, "at least one site"),
        ({"num_patients": 1, "num_sites": 1}, "more patients"),
        ({"splits": {"distil": 0.9}}, "add up to 1"),
        ({"splits": {"a": 1.5, "b": -0.5}}, "positive"),
        ({"splits": {}}, "add up to 1"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"num_tiles": 20, "num_patients": 4, "num_sites": 2} | change
    with pytest.raises(PhantomError, match=words):
        write_phantom(str(tmp_path / "set"), config.Storage(), **asked)
    assert not (tmp_path / "set").exists()


def small(folder: Path, num_tiles: int = 72, seed: int = 3, parallel: bool = False) -> Manifest:
    return write_phantom(
        str(folder),
        config.Storage(),
        num_tiles=num_tiles,
        num_patients=6,
        num_sites=2,
        size=48,
        seed=seed,
        parallel=parallel,
    )


def test_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phantom, "ROWS_PER_SHARD", 8)
    cfg, uri = config.Storage(), str(tmp_path / "one")
    manifest = small(tmp_path / "one")
    assert manifest == read_manifest(uri, cfg) and manifest.rows == 72 and manifest.made_by["phantom"] is True
    assert [shard.rows for shard in manifest.shards] == [8, 4] * 6
    tiles = pa.concat_tables(iter_tiles(uri, cfg)).to_pylist()
    assert Counter(row["label"] for row in tiles) == dict.fromkeys(LABELS, 12)
    assert len({row["tile_id"] for row in tiles}) == 72
    splits = {(row["patient_id"], row["split"]) for row in tiles}
    assert len(splits) == 6 and Counter(split for _, split in splits) == {"distil": 4, "test": 2}
    assert len({(row["patient_id"], row["site"]) for row in tiles}) == 6, "a patient has one site"
    assert all(
        name.startswith("phantom-") for row in tiles for name in (row["slide_id"], row["patient_id"], row["site"])
    )
    for row in tiles[:5]:
        assert (row["width"], row["height"], row["mpp"]) == (48, 48, 0.5) and decode(row["image"]).shape == (48, 48, 3)

    again = small(tmp_path / "two")
    assert again.digest() == manifest.digest(), "the same bytes"
    files = {p.relative_to(tmp_path / "one"): p.read_bytes() for p in (tmp_path / "one").rglob("*") if p.is_file()}
    assert len(files) == 13 and all((tmp_path / "two" / name).read_bytes() == data for name, data in files.items())
    other = small(tmp_path / "three", seed=4)
    assert not {s.sha256 for s in other.shards} & {s.sha256 for s in manifest.shards}


def test_a_data_set_that_is_there_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = small(tmp_path, num_tiles=6)
    with pytest.raises(PhantomError, match="another tile data set"):
        small(tmp_path, num_tiles=7)
    monkeypatch.setattr(phantom, "write_shard", lambda *_: pytest.fail("wrote again"))
    assert small(tmp_path, num_tiles=6) == manifest


@pytest.mark.slow
def test_on_ray_the_bytes_are_the_same(tmp_path: Path) -> None:
    from pathryoshka.session import ray_session

    alone = small(tmp_path / "alone")
    with ray_session(2):
        together = small(tmp_path / "together", parallel=True)
    assert together.digest() == alone.digest()


def test_blocks_of_a_slide_fade_into_each_other() -> None:
    for length in (100, 512, 513, 1024, 1500):
        total = np.zeros(length)
        for first, weight in phantom_slide.fading(length):
            total[first : first + len(weight)] += weight
        assert np.allclose(total, 1)


def test_openslide_opens_a_phantom_slide(tmp_path: Path) -> None:
    openslide = pytest.importorskip("openslide")
    path = tmp_path / "slide.tiff"
    regions = phantom_slide.phantom_slide(path, 1200, 800, seed=4, mpp=0.4, tile=128)
    assert (
        regions.shape == (50, 75)
        and len(np.unique(regions)) >= 4
        and [p.name for p in tmp_path.iterdir()] == [path.name]
    )
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.4, rel=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.4, rel=1e-6)
        assert slide.level_dimensions == ((1200, 800), (300, 200), (75, 50))
        assert "phantom" in slide.properties["tiff.ImageDescription"]
        whole = np.asarray(slide.read_region((0, 0), 0, (1200, 800)).convert("RGB"))
        half = np.asarray(slide.read_region((0, 0), 1, (300, 200)).convert("RGB")).astype(float)
    with Image.open(path) as other:  # libtiff, without OpenSlide
        assert other.size == (1200, 800) and np.array_equal(np.asarray(other.convert("RGB")), whole)
    means = whole.astype(float).reshape(200, 4, 300, 4, 3).mean(axis=(1, 3))
    assert np.abs(means - half).mean() < 3, "the second level is the first one, reduced"
    assert np.abs(means - half[::-1]).mean() > 15
    cells = whole.reshape(50, 16, 75, 16, 3).mean(axis=(1, 3, 4))
    assert np.median(cells[regions == 0]) > 230 > 215 > np.median(cells[regions > 0]), "glass is white, tissue is not"
    again = tmp_path / "again.tiff"
    phantom_slide.phantom_slide(again, 1200, 800, seed=4, mpp=0.4, tile=128)
    assert again.read_bytes() == path.read_bytes()


def test_slides_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for change in ({"tile": 100}, {"tile": 0}, {"width": 3}, {"mpp": 0.0}):
        with pytest.raises(PhantomError, match="multiple of 16"):
            phantom_slide.phantom_slide(tmp_path / "s.tiff", **({"width": 64, "height": 64} | change))
    assert not list(tmp_path.iterdir())


def test_speed_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    started = time.process_time()
    num_tiles = len(list(phantom_tiles(1, 0, num_tiles=36)))
    rate = num_tiles / (time.process_time() - started)
    with capsys.disabled():
        print(f"\nphantom: {rate:.0f} tiles of 224 px a CPU second, JPEG included")
    assert rate > 5, "an order of magnitude below what any machine should do"
