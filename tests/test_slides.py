"""Slides are cut on a grid: geometry against a slide whose every pixel is known, and the real slide of tests/data.

Cutting on Ray is tested beside importing on Ray, in one session.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from ray import cloudpickle
from scipy import ndimage

from pathryoshka import config, storage
from pathryoshka.tiles import making
from pathryoshka.tiles.cutting import safe
from pathryoshka.tiles.shards import iter_tiles
from pathryoshka.tiles.slides import cut_slides, read_slides
from pathryoshka.tiles.sources import KEY_VARIABLE, ImportRefused
from pathryoshka.tiles.verify import verify

openslide = pytest.importorskip("openslide", reason="SKIPPED: openslide is not installed, no slide was cut")
tifffile = pytest.importorskip("tifffile", reason="SKIPPED: tifffile is not installed, no slide could be made")

CFG = config.Storage(max_attempts=2)
SMOOTH = ("white", "blur")
"""The slides that are drawn here have no texture to tell focus by."""
CMU = Path(__file__).parent / "data" / "slides" / "CMU-1-Small-Region.svs"


@pytest.fixture
def in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        function, items = cloudpickle.loads(cloudpickle.dumps((function, items)))  # as they travel to workers
        return [function(item) for item in items]

    monkeypatch.setattr(making, "run_tasks", run)


def ramp(width: int, height: int, step: int = 1) -> np.ndarray:
    """Red rises with x, blue with y, at the centres of pixels `step` level-0 pixels wide; stained everywhere."""
    x, y = ((np.arange(n) + 0.5) * step for n in (width // step, height // step))
    red = np.broadcast_to(20 + x / width * 200, (len(y), len(x)))
    blue = np.broadcast_to((60 + y / height * 160)[:, None], red.shape)
    green = 24 + 24 * np.sin(x / 9) * np.sin(y / 9)[:, None]
    return np.round(np.stack([red, green, blue], -1)).astype(np.uint8)


def write_slide(where: Path, width: int = 1536, height: int = 1024, mpp: float | None = 0.25, glass: int = 0) -> Path:
    """A pyramid (1, 2, 4) of the ramp, its left `glass` pixels white; without resolution when mpp is None."""
    facts: dict[str, Any] = {"tile": (128, 128), "photometric": "rgb", "compression": "deflate", "metadata": None}
    if mpp:
        facts |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    where.parent.mkdir(exist_ok=True)
    with tifffile.TiffWriter(where) as tiff:
        for step in (1, 2, 4):
            pixels = ramp(width, height, step)
            pixels[:, : glass // step] = 244
            tiff.write(pixels, subfiletype=int(step > 1), **facts)
    return where


def rows_of(uri: Path) -> list[dict[str, Any]]:
    return pa.concat_tables(iter_tiles(str(uri), CFG)).to_pylist()


@pytest.mark.usefixtures("in_a_row")
@pytest.mark.parametrize("mpp", [0.25, 0.5, 0.71, 1.3, 0.2])
def test_every_pixel_lies_where_x_y_and_mpp_say(tmp_path: Path, mpp: float) -> None:
    slide = write_slide(tmp_path / "known.tif")
    manifest = cut_slides([slide], str(tmp_path / "to"), CFG, size=128, mpp=mpp, keep=SMOOTH)
    scale = mpp / 0.25
    across, down = int(1536 / (128 * scale) + 1e-9), int(1024 / (128 * scale) + 1e-9)
    assert manifest.rows == across * down
    places = {(int(i * 128 * scale + 1e-6), int(j * 128 * scale + 1e-6)) for i in range(across) for j in range(down)}
    rows = rows_of(tmp_path / "to")
    assert {(row["x"], row["y"]) for row in rows} == places
    centres = (np.arange(128) + 0.5) * scale
    for row in rows:
        tile = np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB")).astype(float)
        assert tile.shape == (128, 128, 3)
        red = 20 + (row["x"] + centres) / 1536 * 200
        blue = 60 + (row["y"] + centres) / 1024 * 160
        # half a level-0 pixel is 0.1 of a grey level; rounding of grey levels and JPEG are the rest
        np.testing.assert_allclose(tile[..., 0].mean(0), red, atol=2.0)
        np.testing.assert_allclose(tile[..., 2].mean(1), blue, atol=2.0)
        assert abs((tile[..., 0].mean(0) - red)[4:-4].mean()) < 0.6
        assert row["tile_id"] == f"known/{row['x']}_{row['y']}_128_{round(mpp * 1000)}"
        assert row["tissue"] == 1 and row["mpp"] == pytest.approx(mpp)


@pytest.mark.usefixtures("in_a_row")
def test_stride_overlaps_and_glass_is_left_out(tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "half.tif", glass=800)
    cut_slides([slide], str(tmp_path / "all"), CFG, size=128, mpp=0.25, stride=64, min_tissue=0, keep=SMOOTH)
    cut_slides([slide], str(tmp_path / "most"), CFG, size=128, mpp=0.25, stride=64, min_tissue=0.6, keep=SMOOTH)
    every, most = rows_of(tmp_path / "all"), rows_of(tmp_path / "most")
    assert len(every) == 23 * 15
    for row in every:
        assert row["tissue"] == pytest.approx(np.clip((row["x"] + 128 - 800) / 128, 0, 1), abs=0.02)
    assert {row["x"] for row in most} == {x for x in range(0, 1409, 64) if (x + 128 - 800) / 128 >= 0.6}


@pytest.mark.usefixtures("in_a_row")
def test_the_real_slide(tmp_path: Path) -> None:
    manifest = cut_slides([CMU], str(tmp_path / "to"), CFG, seed=1)
    rows = rows_of(tmp_path / "to")
    assert [(row["y"], row["x"]) for row in rows] != sorted((row["y"], row["x"]) for row in rows)
    with openslide.OpenSlide(CMU) as slide:
        whole = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")).astype(float)
    stained = (whole.max(-1) - whole.min(-1)) / whole.max(-1).clip(1) > 0.08
    side, inside = 224 * 0.5 / 0.499, {}
    for j in range(int(whole.shape[0] // side)):
        for i in range(int(whole.shape[1] // side)):
            x, y = int(i * side), int(j * side)
            inside[x, y] = stained[y : y + 224, x : x + 224].mean()
    kept, pixels = {(row["x"], row["y"]) for row in rows}, np.arange(24, 200)
    assert kept <= set(inside) and {p for p, share in inside.items() if share > 0.6} <= kept
    assert not {p for p, share in inside.items() if share < 0.4} & kept and 25 < len(kept) < 50
    for row in rows[:8]:
        tile = np.asarray(Image.open(io.BytesIO(row["image"]))).astype(float)
        misses = []
        for shift in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0)):
            y, x = (row[a] + move + (pixels + 0.5) * 0.5 / 0.499 - 0.5 for a, move in zip("yx", shift, strict=True))
            there = ndimage.map_coordinates(whole[..., 1], np.meshgrid(y, x, indexing="ij"), order=1)
            misses.append(np.abs(tile[24:200, 24:200, 1] - there).mean())
        assert misses[0] < 8 and misses[0] < 0.6 * min(misses[1:]), misses
        assert row["tissue"] == pytest.approx(inside[row["x"], row["y"]], abs=0.2)  # gaps are closed
    assert manifest.counts["slide"] == {"CMU-1-Small-Region": len(rows)} and verify(str(tmp_path / "to"), CFG) == []


@pytest.mark.usefixtures("in_a_row")
def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_order(tmp_path: Path) -> None:
    one, again, other = (
        cut_slides([CMU], str(tmp_path / to), CFG, seed=seed, mpp=1.5) for to, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert one == again and one.shards[0].sha256 != other.shards[0].sha256
    ids = [[row["tile_id"] for row in rows_of(tmp_path / to)] for to in "ac"]
    assert sorted(ids[0]) == sorted(ids[1]) and ids[0] != ids[1]


@pytest.mark.usefixtures("in_a_row")
def test_a_slide_that_fails_says_why_and_the_others_finish(tmp_path: Path) -> None:
    good = write_slide(tmp_path / "good.tif")
    silent = write_slide(tmp_path / "silent.tif", mpp=None)
    coarse = write_slide(tmp_path / "coarse.tif", mpp=1.0)
    small = write_slide(tmp_path / "small.tif", 100, 100)
    absurd = write_slide(tmp_path / "absurd.tif", mpp=350)
    text = tmp_path / "text.svs"
    text.write_text("no slide")
    torn = tmp_path / "torn.svs"
    torn.write_bytes(CMU.read_bytes()[:900_000])
    paths = [good, silent, coarse, small, absurd, text, torn, tmp_path / "none.svs"]
    manifest = cut_slides(paths, str(tmp_path / "to"), CFG, keep=SMOOTH, max_failed_share=0.9)
    assert set(manifest.counts["slide"]) == {"good"}
    rows = {row["slide_id"]: row for row in read_slides(str(tmp_path / "to"), CFG)}
    assert [rows.pop("good")["status"], {row["status"] for row in rows.values()}] == ["done", {"failed"}]
    reasons = {name: row["reason"] for name, row in rows.items()}
    assert "column mpp" in reasons.pop("silent") and "column mpp" in reasons.pop("absurd")
    assert "ask for mpp=1" in reasons.pop("coarse") and "smaller than one tile" in reasons.pop("small")
    assert "format" in reasons.pop("text") and reasons.pop("none") == "no such file"
    assert reasons.pop("torn") and not reasons
    for path in (p for p in (tmp_path / "to").rglob("*") if p.is_file()):
        assert str(tmp_path).encode() not in path.read_bytes()
    assert verify(str(tmp_path / "to"), CFG) == []
    with pytest.raises(ImportRefused, match="7 of 8 slides failed"):
        cut_slides(paths, str(tmp_path / "to"), CFG, keep=SMOOTH)
    with pytest.raises(ImportRefused, match="text: no reader knows this format"):
        cut_slides([text], str(tmp_path / "other"), CFG)
    assert not (tmp_path / "other" / "_manifest.json").exists()


@pytest.mark.usefixtures("in_a_row")
def test_a_csv_and_options_fill_in_what_files_do_not_say(tmp_path: Path) -> None:
    one, two = (write_slide(tmp_path / f"{name}.tif", mpp=None) for name in ("one", "two"))
    table = tmp_path / "slides.csv"
    table.write_text("slide,patient,site,label,mpp,split\none,P7,north,benign,0.5,test\nzero,P1,,,,\n")
    manifest = cut_slides(
        [one, two], str(tmp_path / "to"), CFG, csv=table, slide_mpp=0.25, split="train", size=128, keep=SMOOTH
    )
    by_slide = {row["slide_id"]: row for row in rows_of(tmp_path / "to")}
    assert manifest.counts["slide"] == {"one": 12 * 8, "two": 6 * 4}  # 0.5 and 0.25 mpp at level 0, cut at 0.5
    facts = {k: tuple(r[n] for n in ("patient_id", "site", "label", "split")) for k, r in by_slide.items()}
    assert facts == {"one": ("P7", "north", "benign", "test"), "two": ("two", "unknown", None, "train")}
    assert [s.split for s in manifest.shards] == ["test", "train"]
    table.write_text("slide,magnification\none,20\n")
    with pytest.raises(ImportRefused, match="unknown column 'magnification'"):
        cut_slides([one], str(tmp_path / "more"), CFG, csv=table)


@pytest.mark.usefixtures("in_a_row")
def test_two_slides_of_one_name_and_none_at_all_are_refused(tmp_path: Path) -> None:
    one = write_slide(tmp_path / "one.tif")
    (tmp_path / "more").mkdir()
    other = shutil.copy(one, tmp_path / "more" / "one.tif")
    with pytest.raises(ImportRefused, match="both slide 'one'"):
        cut_slides([one, other], str(tmp_path / "to"), CFG)
    with pytest.raises(ImportRefused, match="no slide to cut"):
        cut_slides([], str(tmp_path / "to"), CFG)


@pytest.mark.usefixtures("in_a_row")
def test_pseudonyms_hide_slide_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "correct horse battery staple")
    slide = write_slide(tmp_path / "Jane Doe 7.tif")
    bad = tmp_path / "John Doe.svs"
    bad.write_bytes(CMU.read_bytes()[:900_000])
    manifest = cut_slides([slide, bad], str(tmp_path / "to"), CFG, pseudonymise=True, keep=SMOOTH, max_failed_share=0.5)
    assert re.fullmatch("[0-9a-f]{24}", manifest.shards[0].slide_ids[0])
    for path in (p for p in (tmp_path / "to").rglob("*") if p.is_file()):
        assert b"Doe" not in path.read_bytes() and "Doe" not in path.name


@pytest.mark.usefixtures("in_a_row")
def test_a_slide_in_object_storage_is_cut_as_a_local_one(
    tmp_path: Path, s3_storage: tuple[config.Storage, str]
) -> None:
    s3, uri = s3_storage
    write_slide(tmp_path / "in" / "one.tif", 512, 512)
    storage.upload_folder(tmp_path / "in", storage.join(uri, "slides"), s3)
    paths = [storage.join(uri, "slides", name) for name in ("one.tif", "two.tif")]
    manifest = cut_slides(paths, storage.join(uri, "tiles"), s3, keep=SMOOTH, max_failed_share=0.5)
    local = cut_slides([tmp_path / "in" / "one.tif"], str(tmp_path / "to"), CFG, keep=SMOOTH)
    assert manifest.shards == local.shards
    fates = {row["slide_id"]: row["reason"] for row in read_slides(storage.join(uri, "tiles"), s3)}
    assert fates == {"one": None, "two": "no such file"}


def test_shard_names_are_plain_and_distinct() -> None:
    assert safe("TCGA-01_a.b") == "TCGA-01_a.b"
    names = {safe(slide) for slide in ("a b", "a_b", "a/b", "a?b")}
    assert len(names) == 4 and all(re.fullmatch(r"[\w.-]+", name) for name in names)
