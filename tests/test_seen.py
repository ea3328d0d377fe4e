"""What distillation saw: refused by patient, slide and pixels, and told in a file without names."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pathryoshka import config
from pathryoshka.evaluate.compare import evaluate
from pathryoshka.export import seen as seeing
from pathryoshka.export.seen import SeenError, collect_seen, seen_from_bytes, seen_to_bytes
from pathryoshka.tiles.phash import perceptual_hash
from tests.blotches import CFG, COLOURS, CONTENDERS, SIZE, WIDTHS, png, rows, tile, write


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data") / "phantom", rows(72), {"kind": "phantom", "seed": 0})


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Patients p0 ... p3 at site north as split "distil", p20 ... as split "other"."""
    return write(tmp_path_factory.mktemp("distilled"), [*rows(24, split="distil"), *rows(12, 120, split="other")])


def test_seen_patients_are_refused_by_name(distilled: str, tiles: str) -> None:
    seen = collect_seen(distilled, CFG, ("distil",))
    cfg = config.Evaluate(tiles=(tiles,))
    with pytest.raises(SeenError, match=r"distillation saw 4 of 12 patients \(p0, p1, p2 \.\.\.\) of phantom"):
        evaluate(CONTENDERS, WIDTHS, cfg, CFG, size=SIZE, seen=(seen,))


def test_seen_patients_are_scored_when_asked_and_the_rows_say_so(distilled: str, tiles: str) -> None:
    seen = collect_seen(distilled, CFG, ("distil",))
    cfg = config.Evaluate(tiles=(tiles,), allow_seen=True)
    found = evaluate(CONTENDERS, WIDTHS, cfg, CFG, size=SIZE, seen=(seen,)).scores
    assert all(r.seen for r in found.rows) and found.datasets[0].seen
    assert found.notes[0].startswith("SEEN: 4 of 12 patients")


def test_the_same_pixels_under_other_names_are_refused(distilled: str, tmp_path: Path) -> None:
    renamed = [
        {**row, "tile_id": f"n{i}", "slide_id": f"n{i}", "patient_id": f"n{i // 4}", "site": "x"}
        for i, row in enumerate(rows(60))
    ]
    uri = write(tmp_path / "renamed", renamed)
    seen = collect_seen(distilled, CFG, ("distil",))
    with pytest.raises(SeenError, match="distillation saw 24 of 60 tiles of renamed"):
        evaluate(CONTENDERS, WIDTHS, config.Evaluate(tiles=(uri,)), CFG, size=SIZE, seen=(seen,))


def test_a_chance_likeness_is_left_out_and_said(distilled: str, tmp_path: Path) -> None:
    fresh = [{**row, "slide_id": f"f{i}", "patient_id": f"f{i // 6}"} for i, row in enumerate(rows(150, 1000))]
    fresh[7]["image"] = png(tile("blue", 0))  # the first tile of the distillation
    uri = write(tmp_path / "fresh", fresh)
    seen = collect_seen(distilled, CFG, ("distil",))
    found = evaluate(CONTENDERS[:1], WIDTHS, config.Evaluate(tiles=(uri,)), CFG, size=SIZE, seen=(seen,)).scores
    assert found.datasets[0].num_tiles == 149 and not found.rows[0].seen
    assert "1 tiles of fresh look like tiles of the distillation; left out." in found.notes


def test_patients_of_equal_name_at_other_sites_are_others(distilled: str) -> None:
    seen = collect_seen(distilled, CFG, ("distil",))
    asked = (["p0", "p0", "p0", "p9", "p20"], ["north", "south", "unknown", "north", "north"])
    assert seen.patients(*asked).tolist() == [True, False, True, False, False]
    both = collect_seen(distilled, CFG, (), salt=seen.salt)
    assert both.patients(*asked).tolist() == [True, False, True, False, True]
    assert seen.slides(["s0", "s7", "s8", "s40"]).tolist() == [True, True, False, False]


def test_a_patient_seen_without_a_site_is_refused_at_any(tmp_path: Path) -> None:
    seen = collect_seen(write(tmp_path, rows(6, site="unknown")), CFG)
    assert seen.patients(["p0", "p0"], ["north", "unknown"]).tolist() == [True, True]


def test_hashes_find_the_same_picture_re_encoded_and_resized_but_no_other() -> None:
    pictures = [tile(list(COLOURS)[seed % 3], seed, 96) for seed in range(100, 220)]
    hashes = np.array([perceptual_hash(p) for p in pictures], np.uint64)
    seen = seeing.Seen(b"k", frozenset(), np.sort(hashes[:60]), 60)
    assert seen.looks_like(hashes[:60]).all() and not seen.looks_like(hashes[60:]).any()

    def again(pixels: np.ndarray) -> int:
        sink = io.BytesIO()
        Image.fromarray(pixels).resize((64, 64)).save(sink, "JPEG", quality=80)
        return perceptual_hash(np.asarray(Image.open(sink)))

    found = seen.looks_like(np.array([again(p) for p in pictures], np.uint64))
    assert found[:60].mean() > 0.95 and not found[60:].any()


def test_look_up_by_parts_equals_comparing_with_every_hash() -> None:
    rng = np.random.default_rng(0)
    known = np.sort(rng.integers(1, 2**63, 500).astype(np.uint64))
    flips = np.array(
        [sum(1 << int(b) for b in rng.choice(64, n, replace=False)) for n in rng.integers(0, 7, 300)], np.uint64
    )
    asked = known[rng.integers(0, 500, 300)] ^ flips
    want = (np.bitwise_count(asked[:, None] ^ known[None]) <= seeing.MAX_DISTANCE).any(1)
    assert 100 < want.sum() < 250
    np.testing.assert_array_equal(seeing.Seen(b"k", frozenset(), known, 500).looks_like(asked), want)


def test_background_has_no_hash() -> None:
    white = np.full((40, 40, 3), 240, np.uint8)
    assert perceptual_hash(white) == 0
    assert not seeing.Seen(b"k", frozenset(), np.array([1], np.uint64), 1).looks_like(np.array([0], np.uint64)).any()


def test_what_was_seen_travels_as_parquet_without_names(distilled: str) -> None:
    seen = collect_seen(distilled, CFG, ("distil",))
    data = seen_to_bytes(seen)
    assert b"p0" not in data and b"north" not in data
    back = seen_from_bytes(data)
    assert (back.salt, back.names, back.num_tiles) == (seen.salt, seen.names, 24)
    np.testing.assert_array_equal(back.tiles, seen.tiles)
    assert len(seen.salt) == 32 and collect_seen(distilled, CFG).salt != seen.salt
    with pytest.raises(SeenError, match="does not say what distillation saw"):
        seen_from_bytes(b"no parquet")


def test_hashed_tiles_are_bounded_and_parts_merge(distilled: str) -> None:
    whole = collect_seen(distilled, CFG, ("distil",), salt=b"k" * 32)
    few = collect_seen(distilled, CFG, ("distil",), max_tiles=5, salt=b"k" * 32)
    assert len(few.tiles) == 5 and set(few.tiles) < set(whole.tiles) and few.names == whole.names
    other = collect_seen(distilled, CFG, ("other",), salt=b"k" * 32)
    both = seeing.merge([whole, other])
    everything = collect_seen(distilled, CFG, salt=b"k" * 32)
    assert both.names == everything.names and both.num_tiles == everything.num_tiles == 36
    np.testing.assert_array_equal(both.tiles, everything.tiles)
    with pytest.raises(SeenError, match="one salt"):
        seeing.merge([whole, collect_seen(distilled, CFG)])
