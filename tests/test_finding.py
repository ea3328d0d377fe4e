"""Which slides files, folders, globs, prefixes and CSVs mean; slides of several files; what OpenSlide does not read."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pathryoshka import config, storage
from pathryoshka.tiles import making
from pathryoshka.tiles.finding import STAGED, companions, find_slides, local_file, remove_stale
from pathryoshka.tiles.readers import open_slide
from pathryoshka.tiles.slides import cut_slides, read_slides
from pathryoshka.tiles.sources import ImportRefused
from pathryoshka.tiles.tiff import SlideError
from tests.test_slides import SMOOTH, ramp, rows_of, write_slide

tifffile = pytest.importorskip("tifffile", reason="SKIPPED: tifffile is not installed, no slide could be made")

CFG = config.Storage(max_attempts=2)


@pytest.fixture(autouse=True)
def in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "run_tasks", lambda function, items: [function(item) for item in items])


def found(*places: str | Path, csv: str | Path | None = None) -> list[str]:
    slides = find_slides(places, CFG, csv=csv, split=None, secret=lambda kind, name: name)
    return [slide.slide_id for slide in slides]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folders_and_globs(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("a.svs", "b.TIF", "notes.txt", "north/c.svs", "north/deep/d.ndpi", ".e.svs")))
    touch(tmp_path / "scan" / "1.dcm", tmp_path / "scan" / "2.dcm", tmp_path / "m.mrxs", tmp_path / "m" / "Data0.dat")
    assert found(tmp_path) == ["a", "b", "c", "d", "m", "scan"]
    assert found(tmp_path / "*.svs") == ["a"]
    assert found(tmp_path / "**/*.svs") == ["a", "c"]
    assert found(tmp_path / "[ab].*") == ["a", "b"]
    assert found(tmp_path / "nor*/?.svs", tmp_path / "a.svs") == ["a", "c"]
    touch(tmp_path / "x[1].svs")
    assert found(tmp_path / "x[1].svs") == ["x[1]"]  # a file of that name is no glob
    with pytest.raises(ImportRefused, match="no slide at"):
        found(tmp_path / "*.scn")


def test_names_that_lead_nowhere_are_refused_at_once(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    with pytest.raises(ImportRefused, match="nothing is at .*none.svs"):
        found(tmp_path / "none.svs")
    with pytest.raises(ImportRefused, match="nothing is at /no-such-slide"):
        found(Path("/no-such-slide"))
    assert found(tmp_path / "a.svs", tmp_path / "none.svs") == ["a", "none"]  # one of several is that slide's failure


def test_a_csv_names_slides_relative_to_itself(tmp_path: Path) -> None:
    write_slide(tmp_path / "in" / "one.tif", mpp=None)
    write_slide(tmp_path / "in" / "two.tif")
    table = tmp_path / "in" / "list.csv"
    table.write_text(f"slide,patient,mpp,split\none.tif,P1,0.25,test\n{tmp_path / 'in' / 'two.tif'},P2,,\n")
    cut_slides([table], str(tmp_path / "to"), CFG, size=128, split="train", keep=SMOOTH)
    facts = {(row["slide_id"], row["patient_id"], row["split"], row["mpp"]) for row in rows_of(tmp_path / "to")}
    assert facts == {("one", "P1", "test", 0.5), ("two", "P2", "train", 0.5)}
    table.write_text("slide,mpp\none.tif,wide\n")
    with pytest.raises(ImportRefused, match="positive number"):
        found(table)


def test_a_prefix_in_object_storage_is_a_folder(tmp_path: Path, s3_storage: tuple[config.Storage, str]) -> None:
    s3, uri = s3_storage
    for name in ("one.tif", "deep/two.tif"):
        write_slide(tmp_path / "in" / name.replace("/", "_"), 512, 512)
        storage.write_bytes(
            storage.join(uri, "slides", name), (tmp_path / "in" / name.replace("/", "_")).read_bytes(), s3
        )
    storage.write_bytes(storage.join(uri, "slides", "notes.txt"), b"no slide", s3)
    manifest = cut_slides([storage.join(uri, "slides")], storage.join(uri, "to"), s3, size=128, keep=SMOOTH)
    assert set(manifest.counts["slide"]) == {"one", "two"}
    cut_slides([storage.join(uri, "slides", "*.tif")], storage.join(uri, "flat"), s3, size=128, keep=SMOOTH)
    assert [row["slide_id"] for row in read_slides(storage.join(uri, "flat"), s3)] == ["one"]


def test_a_slide_of_several_files_is_staged_whole_and_removed(
    tmp_path: Path, s3_storage: tuple[config.Storage, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    s3, uri = s3_storage
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for name in ("m.mrxs", "m/Data0.dat", "m/Index.dat", "other.mrxs", "other/Data0.dat", "scan/1.dcm", "scan/2.dcm"):
        storage.write_bytes(storage.join(uri, "s", name), name.encode() * 1000, s3)
    assert set(companions(storage.join(uri, "s/m.mrxs"), s3)) == {"m.mrxs", "m/Data0.dat", "m/Index.dat"}
    assert set(companions(storage.join(uri, "s/scan/2.dcm"), s3)) == {"1.dcm", "2.dcm"}
    with local_file(storage.join(uri, "s/m.mrxs"), s3, 1e9) as path:
        assert Path(path).read_bytes() == b"m.mrxs" * 1000
        assert Path(path).with_name("m").joinpath("Data0.dat").read_bytes() == b"m/Data0.dat" * 1000
    assert not list(tmp_path.glob(f"{STAGED}*"))
    with pytest.raises(SlideError, match="raise cache_gb"), local_file(storage.join(uri, "s/m.mrxs"), s3, 1000):
        pass
    mine, stale = tmp_path / f"{STAGED}{os.getpid()}-a", tmp_path / f"{STAGED}999999999-b"
    mine.mkdir(), stale.mkdir()
    remove_stale()
    assert mine.exists() and not stale.exists()


def jpegs(pixels: np.ndarray, side: int = 128) -> Iterator[bytes]:
    """Tiles of `pixels`, encoded by Pillow."""
    for y in range(0, pixels.shape[0], side):
        for x in range(0, pixels.shape[1], side):
            sink = io.BytesIO()
            Image.fromarray(pixels[y : y + side, x : x + side]).save(sink, "JPEG", quality=95, subsampling=0)
            yield sink.getvalue()


@pytest.mark.parametrize("compression", ["deflate", "jpeg"])
def test_ome_tiff_gives_its_levels_and_its_resolution(
    tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tifffile asks for an encoder though it is given what is encoded already
    monkeypatch.setattr("tifffile._imagecodecs.jpeg_encode", None, raising=False)
    where = tmp_path / "scan.ome.tif"
    across = {"PhysicalSizeX": 250, "PhysicalSizeXUnit": "nm"}
    said = {"axes": "YXS", **across, "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(where, ome=True) as tiff:
        for step in (1, 2, 4):
            pixels = ramp(1536, 1024, step)
            facts: dict[str, Any] = {"tile": (128, 128), "compression": compression}
            facts |= {"subifds": 2, "metadata": said} if step == 1 else {"subfiletype": 1}
            if compression == "jpeg":
                facts |= {"shape": pixels.shape, "dtype": np.uint8, "photometric": "ycbcr", "subsampling": (1, 1)}
                tiff.write(jpegs(pixels), **facts)
            else:
                tiff.write(pixels, photometric="rgb", **facts)
    with open_slide(str(where)) as opened:
        assert opened.vendor == "ome-tiff" and opened.mpp == pytest.approx(0.25)
        assert opened.sizes == ((1536, 1024), (768, 512), (384, 256)) and opened.downsamples == (1, 2, 4)
        for level, step in enumerate((1, 2, 4)):
            part = np.asarray(opened.read(level, 100, 90, 300, 200)).astype(int)
            there = np.full((200, 300, 3), 255)
            inside = ramp(1536, 1024, step)[90:290, 100:400]
            there[: inside.shape[0], : inside.shape[1]] = inside
            wrong = np.abs(part - there)
            assert wrong.max() == 0 if compression == "deflate" else wrong.mean() < 2
    manifest = cut_slides([where], str(tmp_path / "to"), CFG, size=128, keep=SMOOTH)
    assert manifest.counts["slide"] == {"scan.ome": 6 * 4}
    (row,) = read_slides(str(tmp_path / "to"), CFG)
    assert row["format"] == "ome-tiff" and row["mpp"] == pytest.approx(0.25)
