"""The page of a tile data set: the fates of tiles in pictures and counts, with hostile names, bounded in size."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pathryoshka.tiles.census import draw_groups, spread, take_census
from pathryoshka.tiles.cutting import beside
from pathryoshka.tiles.overview import write_overview
from pathryoshka.tiles.preview import FATES, preview
from pathryoshka.tiles.shards import read_manifest
from tests.blotches import CFG, rows, write

NASTY = "s<script>alert(1)</script>"


def write_slide(uri: str, slide_id: str) -> dict[str, object]:
    """A grey slide of 1000 x 500 pixels, its left half tissue: five tiles of 100 pixels in a row, a fate each."""
    fates = [None, "no_tissue", "pen", "blur", None]
    table = {"x": [0, 100, 200, 300, 400], "y": [0] * 5, "size": [100] * 5, "mpp": [0.5] * 5, "tissue": [0.5] * 5}
    Path(beside(uri, slide_id)).parent.mkdir(exist_ok=True)
    pq.write_table(
        pa.table({**table, "kept": [not f for f in fates], "reason": fates}), f"{beside(uri, slide_id)}.parquet"
    )
    Image.new("RGB", (1000, 500), (200, 200, 200)).save(f"{beside(uri, slide_id)}.jpg")
    mask = np.zeros((500, 1000), bool)
    mask[:, :500] = True
    Image.fromarray(mask).save(f"{beside(uri, slide_id)}.mask.png")
    counts = {"num_positions": 5, "num_kept": 2, "num_no_tissue": 1, "num_pen": 1, "num_blur": 1, "num_cap": 0}
    names = {"slide_id": slide_id, "patient_id": "p", "site": "north", "label": None, "split": None}
    facts = {"status": "done", "reason": None, "width": 1000, "height": 500, "mpp": 0.25, "format": "aperio"}
    return {**names, **facts, **counts}


@pytest.fixture
def uri(tmp_path: Path) -> str:
    tiles = rows(24) + [row | {"site": "south", "image": solid(r)} for r, row in enumerate(rows(12, 100, "train"))]
    where = write(tmp_path / "set", [row | {"mpp": 0.5} for row in tiles])
    slides = [write_slide(where, name) for name in (NASTY, "s1", "s2")]
    slides.append({**slides[0], "slide_id": "gone", "status": "failed", "reason": "no reader <knows> it"})
    pq.write_table(pa.Table.from_pylist(slides), f"{where}/slides.parquet")
    return where


def solid(seed: int) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (40, 40), (100 + seed, 50, 25)).save(sink, "PNG")
    return sink.getvalue()


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_stands_alone_and_says_what_became_of_slides(uri: str, tmp_path: Path) -> None:
    write_overview(uri, CFG, str(tmp_path / "page.html"), num_slides=2, num_tiles=5)
    page = (tmp_path / "page.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert "script" not in reader.tags and all(s.startswith("data:image/jpeg;base64,") for s in reader.sources)
    assert len(reader.sources) == 2 * 2 + 5
    for source in reader.sources:
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))).load()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page))
    assert "36 tiles" in text and "4 slides: 3 done, 1 failed" in text and "2 of 3 slides, drawn by lot" in text
    assert "no reader &lt;knows&gt; it" in text
    assert "2 kept (40%), 1 too little tissue (20%), 1 pen (20%), 1 out of focus (20%)" in text
    write_overview(uri, CFG, str(tmp_path / "again.html"), num_slides=2, num_tiles=5)
    assert (tmp_path / "again.html").read_text() == page


def test_the_colour_over_a_tile_is_that_of_its_fate(uri: str) -> None:
    slide = {"slide_id": "s1", "width": 1000}
    found = preview(uri, slide, CFG)
    assert found is not None and found.fates == {"kept": 2, "no_tissue": 1, "pen": 1, "blur": 1} and found.mpp == 0.5
    picture = np.asarray(Image.open(io.BytesIO(found.tiles)), float)
    for i, fate in enumerate(["kept", None, "pen", "blur", "kept"]):
        middle = picture[28, round((i + 0.5) * 56)]
        want = 200.0 if fate is None else 200 + (45 if fate == "kept" else 130) / 255 * (np.array(FATES[fate]) - 200)
        assert np.abs(middle - want).max() < 12, fate
    tissue = np.asarray(Image.open(io.BytesIO(found.tissue)), float)
    assert abs(tissue[140, 140] - 200).max() < 6 and tissue[140, 420].min() > 220  # the right half is no tissue
    assert preview(uri, {"slide_id": "gone", "width": 1}, CFG) is None


def test_a_census_sees_every_site_and_its_colour(uri: str) -> None:
    manifest = read_manifest(uri, CFG)
    census = take_census(uri, CFG, manifest)
    assert len(census.mpp) == 36 and (census.mpp == 0.5).all()
    colour, looked = census.colours["south"]
    assert looked == 8  # one row group of 12
    np.testing.assert_allclose(colour, [100 + 3.5, 50, 25])
    assert {shard.sites for shard, _ in draw_groups(manifest, 0)[:2]} == {("north",), ("south",)}


def test_an_effective_number_is_that_of_equal_shares() -> None:
    even, odd = spread({"a": 7, "b": 7, "c": 7}), spread({"a": 98, "b": 1, "c": 1})
    assert even.effective == pytest.approx(3) and (even.num, even.smallest, even.largest) == (3, 7, 7)
    assert odd.effective == pytest.approx(0.98**-0.98 * 0.01**-0.02)
