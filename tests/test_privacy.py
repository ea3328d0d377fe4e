"""Names of patients planted wherever a file can hold them are in no byte that is written; pixels stay as they were."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pathryoshka import config
from pathryoshka.tiles import making
from pathryoshka.tiles.importing import import_images
from pathryoshka.tiles.overview import write_overview
from pathryoshka.tiles.sources import KEY_VARIABLE
from pathryoshka.tiles.strip import stripped
from pathryoshka.tiles.views import TileError, decode
from tests.blotches import tile

CFG = config.Storage(max_attempts=2)
NAME = "Weissnicht-Planted"
ODD = (255, 0, 255)
"""The colour of the label and macro images."""


@pytest.fixture(autouse=True)
def in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [function(item) for item in items]

    monkeypatch.setattr(making, "run_tasks", run)
    monkeypatch.setenv(KEY_VARIABLE, "a secret of the hospital")


def exif() -> Image.Exif:
    found = Image.Exif()
    found[0x010E], found[0x013B] = f"slide of {NAME}", NAME
    return found


def save(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    """A picture with the name in its comment, EXIF, XMP, profile and text, as far as the format has them."""
    sink, picture = io.BytesIO(), Image.fromarray(tile("pink", 3, 64)).convert(mode)
    text = PngInfo()
    text.add_text("Patient", NAME)
    text.add_text("Comment", NAME, zip=True)
    text.add_itxt("XML:com.adobe.xmp", f"<x>{NAME}</x>")
    everything: dict[str, Any] = {"exif": exif(), "xmp": f"<x>{NAME}</x>".encode(), "icc_profile": NAME.encode()}
    everything |= {"JPEG": {"comment": NAME.encode()}, "PNG": {"pnginfo": text}, "WEBP": {}}[kind]
    picture.save(sink, kind, **everything, **options)
    return sink.getvalue()


IMAGES = {
    "jpeg": lambda: save("JPEG", quality=92),
    "jpeg progressive": lambda: save("JPEG", quality=92, progressive=True),
    "jpeg restarts": lambda: save("JPEG", quality=92, restart_marker_rows=1),
    "jpeg grey": lambda: save("JPEG", "L"),
    "jpeg with a tail": lambda: save("JPEG") + NAME.encode(),
    "png": lambda: save("PNG"),
    "png palette": lambda: save("PNG", "P"),
    "webp": lambda: save("WEBP"),
    "webp lossless": lambda: save("WEBP", lossless=True),
    "webp alpha": lambda: save("WEBP", "RGBA"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_metadata_goes_and_pixels_stay(kind: str) -> None:
    image = IMAGES[kind]()
    assert NAME.encode() in image
    clean = stripped(image)
    assert NAME.encode() not in clean and len(clean) < len(image) and stripped(clean) == clean
    np.testing.assert_array_equal(decode(clean), decode(image))
    with Image.open(io.BytesIO(clean)) as opened:
        opened.load()
        assert NAME not in repr(opened.info) and not opened.getexif() and "icc_profile" not in opened.info


def test_adobes_marker_stays_since_colours_hang_on_it() -> None:
    """JPEG without it would be taken for YCbCr: the picture is RGB as it is."""
    sink = io.BytesIO()
    Image.fromarray(tile("blue", 1, 64)).save(sink, "JPEG", quality=95, keep_rgb=True, comment=NAME.encode())
    np.testing.assert_array_equal(decode(stripped(sink.getvalue())), decode(sink.getvalue()))


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_a_truncated_image_is_an_error_or_still_clean(kind: str) -> None:
    image = IMAGES[kind]()
    for end in range(2, len(image), 61):
        try:
            clean = stripped(image[:end])
        except TileError:
            continue
        assert NAME.encode() not in clean


def everything_in(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of all files, columns of Parquet unpacked, what Pillow finds beside pixels in images."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.name, str(path.relative_to(folder)).encode() + path.read_bytes()
            if path.suffix == ".parquet":
                for row in pq.read_table(path).to_pylist():
                    for name, value in row.items():
                        yield f"{path.name}: {name}", value if isinstance(value, bytes) else str(value).encode()
                        if name == "image":
                            yield f"{path.name}: info", repr(Image.open(io.BytesIO(value)).info).encode()


def assert_clean(folder: Path, records: Sequence[logging.LogRecord]) -> None:
    """Of the log our own lines count, which are all that the command line shows: Pillow would tell tags at DEBUG."""
    for where, data in everything_in(folder):
        assert NAME.lower().encode() not in data.lower(), where
    said = [record.getMessage() for record in records if record.name.startswith("pathryoshka")]
    assert said and not [line for line in said if NAME.lower() in line.lower()]


def test_an_import_under_pseudonyms_holds_no_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / NAME
    source.mkdir()
    lines = ["tile,slide,patient,site,label"]
    for i, (kind, make) in enumerate(IMAGES.items()):
        file = f"{NAME} {i}.{kind.split()[0]}"
        (source / file).write_bytes(make())
        lines.append(f"{file},{NAME}-slide,{NAME},{NAME} clinic,tumour")
    (source / f"{NAME}.png").write_bytes(b"broken")
    lines += [f"{NAME}.png,,,,", f"{NAME}-missing.png,,,,"]
    (source / "tiles.csv").write_text("\n".join(lines))
    caplog.set_level("DEBUG", logger="pathryoshka")
    to = tmp_path / "to"
    manifest = import_images(source, str(to), CFG, csv=source / "tiles.csv", pseudonymise=True, max_failed_share=0.5)
    assert manifest.rows == len(IMAGES) and len(json.loads((to / "_failures.json").read_text())) == 2
    write_overview(str(to), CFG, str(to / "page.html"))
    assert_clean(to, caplog.records)


def write_scan(path: Path) -> None:
    """A scan as Aperio's, the name in its description, tags and label; label and macro in a colour of their own."""
    tifffile = pytest.importorskip("tifffile", reason="SKIPPED: tifffile is not installed, no slide could be made")
    rng = np.random.default_rng(0)
    pixels = np.clip(np.array([180, 90, 150]) + rng.normal(0, 30, (1024, 1024, 1)), 0, 255).astype(np.uint8)
    about = f"Aperio Image Library v11.2.1\n1024x1024|AppMag = 20|MPP = 0.5|Patient = {NAME}|Filename = {NAME}"
    odd = np.full((128, 256, 3), ODD, np.uint8)
    tags = [(315, "s", 0, NAME, True), (316, "s", 0, NAME, True), (269, "s", 0, NAME, True)]
    with tifffile.TiffWriter(path) as tiff:
        options: dict[str, Any] = {"photometric": "rgb", "metadata": None, "compression": "deflate"}
        tiff.write(pixels, tile=(256, 256), description=about, extratags=tags, software=NAME, **options)
        tiff.write(pixels[::4, ::4].copy(), rowsperstrip=16, description=about, **options)
        for number, kind in ((1, "label"), (9, "macro")):
            described = f"Aperio Image Library v11.2.1\n{kind} 256x128 {NAME}"
            tiff.write(odd, rowsperstrip=16, description=described, subfiletype=number, **options)


def test_a_cut_under_pseudonyms_holds_no_name_and_no_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    openslide = pytest.importorskip("openslide", reason="SKIPPED: openslide is not installed, no slide was cut")
    from pathryoshka.tiles.slides import cut_slides, read_slides

    source, to = tmp_path / NAME, tmp_path / "to"
    source.mkdir()
    write_scan(source / f"{NAME}.svs")
    with openslide.OpenSlide(source / f"{NAME}.svs") as slide:  # what is planted is there to be found
        assert {"label", "macro"} <= set(slide.associated_images) and slide.properties["aperio.Patient"] == NAME
    (source / f"{NAME}-bad.svs").write_bytes(b"II*\0" + NAME.encode() * 50)
    (source / "slides.csv").write_text(
        "slide,mask,patient,site,label\n"
        f"{NAME},,{NAME},{NAME} clinic,tumour\n{NAME}-bad,{NAME}-mask.png,{NAME},{NAME} clinic,tumour\n"
    )
    caplog.set_level("DEBUG", logger="pathryoshka")
    manifest = cut_slides(
        [source / f"{NAME}.svs", source / f"{NAME}-bad.svs"], str(to), CFG, csv=source / "slides.csv",
        pseudonymise=True, max_failed_share=0.5, keep=("white", "blur"), image_format="png",
    )  # fmt: skip
    assert manifest.rows == 16 and sorted(s["status"] for s in read_slides(str(to), CFG)) == ["done", "failed"]
    write_overview(str(to), CFG, str(to / "page.html"))
    assert_clean(to, caplog.records)
    pictures = [
        row["image"] for path in to.glob("*.parquet") for row in pq.read_table(path).to_pylist() if "image" in row
    ]
    pictures += [path.read_bytes() for path in (to / "_slides").glob("*.jpg")]
    assert len(pictures) == 17
    for data in pictures:
        away = np.abs(np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int) - ODD).max(-1)
        assert away.min() > 40


def test_no_room_of_tiles_asks_for_the_label_of_a_slide() -> None:
    tiles = Path(making.__file__).parent
    assert not [path.name for path in tiles.glob("*.py") if "associated_images" in path.read_text()]
