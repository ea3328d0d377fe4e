"""Which tiles of a slide are kept: filters against planted spoils, users' masks, several resolutions, ranges, caps."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy import ndimage

from pathryoshka import config
from pathryoshka.tiles import making
from pathryoshka.tiles.grid import resolutions
from pathryoshka.tiles.slides import cut_slides, read_slides
from pathryoshka.tiles.sources import ImportRefused
from pathryoshka.tiles.tiff import SlideError
from tests.test_slides import SMOOTH, rows_of, write_slide

tifffile = pytest.importorskip("tifffile", reason="SKIPPED: tifffile is not installed, no slide could be made")

CFG = config.Storage(max_attempts=2)
WIDTH, HEIGHT, TILE = 1024, 512, 128
Places = set[tuple[int, int]]


@pytest.fixture(autouse=True)
def in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "run_tasks", lambda function, items: [function(item) for item in items])


def textured(seed: int = 0) -> np.ndarray:
    """Grainy pink, as a section under the microscope: stained everywhere and in focus."""
    noise = np.random.default_rng(seed).normal(size=(2, HEIGHT, WIDTH))
    grain = 40 * ndimage.gaussian_filter(noise[0], 0.7) + 500 * ndimage.gaussian_filter(noise[1], 8)
    return np.clip(np.array([190, 110, 170]) + grain[..., None], 50, 255).astype(np.uint8)


def save(where: Path, pixels: np.ndarray, mpp: float = 0.5) -> Path:
    facts: dict[str, Any] = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(where, pixels, tile=(128, 128), photometric="rgb", compression="deflate", metadata=None, **facts)
    return where


def fates(to: Path, slide: str) -> dict[tuple[int, int], str | None]:
    rows = pq.read_table(to / "_slides" / f"{slide}.parquet").to_pylist()
    return {(row["x"], row["y"]): row["reason"] for row in rows}


def places(rows: list[dict[str, Any]]) -> Places:
    return {(row["x"], row["y"]) for row in rows}


def test_what_is_planted_is_refused_with_its_reason_and_nothing_else(tmp_path: Path) -> None:
    pixels = textured()
    pixels[:, :128] = 243  # glass
    pixels[:, 128:256] = ndimage.gaussian_filter(pixels[:, 128:256], (3, 3, 0))
    pixels[:, 256:384] = 12
    pixels[:256, 384:400] = (20, 110, 150)  # a stroke of a pen, an eighth of two tiles
    slide = save(tmp_path / "spoilt.tif", pixels)
    cut_slides([slide], str(tmp_path / "to"), CFG, size=TILE)
    expected: dict[tuple[int, int], str | None] = {
        (x, y): None for x in range(0, 1024, 128) for y in range(0, 512, 128)
    }
    for y in range(0, 512, 128):
        expected |= {(0, y): "no_tissue", (128, y): "blur", (256, y): "black"}
    expected |= {(384, 0): "pen", (384, 128): "pen"}
    assert fates(tmp_path / "to", "spoilt") == expected
    (row,) = read_slides(str(tmp_path / "to"), CFG)
    counted = Counter(reason for reason in expected.values() if reason)
    assert {name: row[f"num_{name}"] for name in counted} == counted
    assert row["num_kept"] == 18 and row["num_positions"] == 32
    cut_slides([slide], str(tmp_path / "kept"), CFG, size=TILE, keep=("pen", "blur"))
    assert places(rows_of(tmp_path / "kept")) == {place for place in expected if place[0] not in (0, 256)}


@pytest.mark.parametrize("kind", ["image", "geojson"])
def test_a_mask_of_the_user_decides_what_is_tissue(tmp_path: Path, kind: str) -> None:
    slide = save(tmp_path / "one.tif", textured())
    if kind == "image":  # the right half but one tile, an eighth as large
        drawn = np.zeros((HEIGHT // 8, WIDTH // 8), np.uint8)
        drawn[:, 64:] = 255
        drawn[16:32, 80:96] = 0
        Image.fromarray(drawn).save(tmp_path / "mask.png")
        mask = "mask.png"
    else:  # the same as a polygon with a hole
        outline = [[512, 0], [1024, 0], [1024, 512], [512, 512], [512, 0]]
        hole = [[640, 128], [768, 128], [768, 256], [640, 256], [640, 128]]
        shape = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [outline, hole]}, "properties": {}}
        (tmp_path / "mask.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [shape]}))
        mask = "mask.geojson"
    (tmp_path / "slides.csv").write_text(f"slide,mask\none,{mask}\n")
    cut_slides([slide], str(tmp_path / "to"), CFG, size=TILE, csv=tmp_path / "slides.csv")
    inside = {(x, y) for x in range(512, 1024, 128) for y in range(0, 512, 128)} - {(640, 128)}
    assert places(rows_of(tmp_path / "to")) == inside


def test_a_mask_that_cannot_be_is_the_failure_of_its_slide(tmp_path: Path) -> None:
    Image.new("L", (64, 64), 255).save(tmp_path / "square.png")
    (tmp_path / "text.png").write_text("no mask")
    (tmp_path / "odd.json").write_text('{"type": "FeatureCollection", "features": 7}')
    ring = [[0, 0], [9000, 0], [9000, 9000], [0, 0]]
    (tmp_path / "far.json").write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    (tmp_path / "empty.json").write_text('{"type": "FeatureCollection", "features": []}')
    why = {
        "square.png": "of another slide",
        "text.png": "neither an image nor GeoJSON",
        "odd.json": "no GeoJSON of polygons",
        "far.json": "reach beyond",
        "none.png": "does not exist",
    }
    lines = ["slide,mask", "good,"]
    save(tmp_path / "good.tif", textured())
    for name in [*why, "empty.json"]:
        save(tmp_path / f"{name[:-4]}_.tif", textured())
        lines.append(f"{name[:-4]}_,{name}")
    (tmp_path / "slides.csv").write_text("\n".join(lines))
    slides = sorted(tmp_path.glob("*.tif"))
    cut_slides(slides, str(tmp_path / "to"), CFG, size=TILE, csv=tmp_path / "slides.csv", max_failed_share=0.9)
    found = {row["slide_id"]: row for row in read_slides(str(tmp_path / "to"), CFG)}
    for name, sentence in why.items():
        row = found[f"{name[:-4]}_"]
        assert row["status"] == "failed" and sentence in row["reason"], row
    assert found["good"]["status"] == "done" and found["empty._"]["status"] == "skipped"
    assert {row["slide_id"] for row in rows_of(tmp_path / "to")} == {"good"}


def test_a_mask_drawn_anew_under_its_name_is_noticed(tmp_path: Path) -> None:
    """Before there is a data set the slide is cut again; afterwards it is refused, for others may read its shards."""
    save(tmp_path / "one.tif", textured())
    (tmp_path / "two.tif").write_text("no slide")
    (tmp_path / "slides.csv").write_text("slide,mask\none,mask.png\n")
    to, options = str(tmp_path / "to"), {"size": TILE, "csv": tmp_path / "slides.csv"}
    slides = [tmp_path / "one.tif", tmp_path / "two.tif"]

    def draw(left: int) -> None:
        drawn = np.zeros((HEIGHT // 8, WIDTH // 8), np.uint8)
        drawn[:, left // 8 :] = 255
        Image.fromarray(drawn).save(tmp_path / "mask.png")

    draw(512)
    with pytest.raises(ImportRefused, match="1 of 2 slides failed"):
        cut_slides(slides, to, CFG, **options)
    draw(768)
    cut_slides(slides, to, CFG, **options, max_failed_share=0.5)
    assert places(rows_of(tmp_path / "to")) == {(x, y) for x in (768, 896) for y in range(0, 512, 128)}
    before = (tmp_path / "to" / "one-000.parquet").stat().st_mtime_ns
    cut_slides(slides, to, CFG, **options, max_failed_share=0.5)
    assert (tmp_path / "to" / "one-000.parquet").stat().st_mtime_ns == before  # the same mask: nothing to do
    draw(256)
    with pytest.raises(ImportRefused, match="slide one of .* was cut with other .* mask"):
        cut_slides(slides, to, CFG, **options, max_failed_share=0.5)


def test_several_resolutions_are_their_cuts_together(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "one.tif")
    together = cut_slides([slide], str(tmp_path / "both"), CFG, size=TILE, mpp=(0.25, 0.71), keep=SMOOTH)
    alone = []
    for mpp in (0.25, 0.71):
        cut_slides([slide], str(tmp_path / str(mpp)), CFG, size=TILE, mpp=mpp, keep=SMOOTH)
        alone += rows_of(tmp_path / str(mpp))
    both = rows_of(tmp_path / "both")
    assert together.rows == len(alone) and {r["mpp"] for r in both} == {np.float32(0.25), np.float32(0.71)}
    assert {r["tile_id"]: r["image"] for r in both} == {r["tile_id"]: r["image"] for r in alone}


def test_a_range_of_resolutions_is_spread_and_every_tile_is_where_it_says(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "one.tif")
    options: dict[str, Any] = {"size": 64, "stride": 24, "mpp": "0.25..1.0", "keep": SMOOTH}
    cut_slides([slide], str(tmp_path / "to"), CFG, **options)
    rows = rows_of(tmp_path / "to")
    drawn = np.log2([row["mpp"] / 0.25 for row in rows]) / 2  # 0 ... 1, evenly
    assert len(rows) > 400 and drawn.min() >= 0 and drawn.max() <= 1
    assert np.abs(np.quantile(drawn, (0.25, 0.5, 0.75)) - (0.25, 0.5, 0.75)).max() < 0.07
    centres = np.arange(64) + 0.5
    for row in rows[:100]:
        tile = np.asarray(Image.open(io.BytesIO(row["image"]))).astype(float)
        red = 20 + (row["x"] + centres * row["mpp"] / 0.25) / 1536 * 200
        assert abs((tile[..., 0].mean(0) - red)[4:-4].mean()) < 0.6
        assert row["x"] + 64 * row["mpp"] / 0.25 <= 1536 + 1e-3 and row["x"] >= 0
    cut_slides([slide], str(tmp_path / "again"), CFG, **options)
    cut_slides([slide], str(tmp_path / "other"), CFG, seed=1, **options)
    again, other = (rows_of(tmp_path / to) for to in ("again", "other"))
    assert again == rows and {r["tile_id"] for r in other} != {r["tile_id"] for r in rows}


def test_a_cap_draws_tiles_by_the_seed(tmp_path: Path) -> None:
    slide = save(tmp_path / "one.tif", textured())
    every = {(x, y) for x in range(0, 1024, 128) for y in range(0, 512, 128)}
    drawn = []
    for to, seed in (("a", 0), ("b", 0), ("c", 1)):
        cut_slides([slide], str(tmp_path / to), CFG, size=TILE, cap=9, seed=seed)
        drawn.append(places(rows_of(tmp_path / to)))
        assert Counter(fates(tmp_path / to, "one").values()) == {None: 9, "cap": 23}
    assert drawn[0] == drawn[1] != drawn[2] and drawn[0] <= every


@pytest.mark.parametrize(("name", "magic", "error"), [("webp", b"RIFF", 6.0), ("png", b"\x89PNG", 0.0)])
def test_tiles_may_be_webp_or_png(tmp_path: Path, name: str, magic: bytes, error: float) -> None:
    pixels = textured()
    cut_slides([save(tmp_path / "one.tif", pixels)], str(tmp_path / "to"), CFG, size=TILE, image_format=name)
    for row in rows_of(tmp_path / "to"):
        tile = np.asarray(Image.open(io.BytesIO(row["image"]))).astype(float)
        there = pixels[row["y"] : row["y"] + TILE, row["x"] : row["x"] + TILE]
        assert row["image"].startswith(magic) and np.abs(tile - there).mean() <= error


@pytest.mark.parametrize("said", ["fine", "0", "-1", "2..", "1..1", "0.5 0.25..1", "nan"])
def test_resolutions_that_cannot_be_are_refused(said: str) -> None:
    with pytest.raises(SlideError, match="mpp must be"):
        resolutions(said.split())


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"size": 8}, "size must be"),
        ({"stride": -3}, "stride must be"),
        ({"min_tissue": 2}, "min_tissue is a share"),
        ({"cap": 0}, "cap must be"),
        ({"image_format": "bmp"}, "format is jpeg"),
        ({"quality": 50}, "quality must be"),
        ({"keep": ("dust",)}, "keep is any of"),
    ],
)
def test_a_cut_that_no_slide_could_bear_is_refused(tmp_path: Path, option: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ImportRefused, match=sentence):
        cut_slides([tmp_path / "one.tif"], str(tmp_path / "to"), CFG, **option)
    assert not (tmp_path / "to").exists()
