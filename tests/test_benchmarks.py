"""Benchmarks as data: each reader on a small tree in the true layout, what is checked, the tiles that come of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pathryoshka import config
from pathryoshka.benchmarks.check import check, samples_of
from pathryoshka.benchmarks.convert import SIDE, convert
from pathryoshka.benchmarks.layouts import BenchmarkError, Sample
from pathryoshka.benchmarks.row import Benchmark
from pathryoshka.benchmarks.rows import ROWS, benchmark
from pathryoshka.cli import cli
from pathryoshka.evaluate.folds import FoldError, make_folds
from pathryoshka.tiles.shards import iter_tiles, read_manifest
from pathryoshka.tiles.views import decode
from tests import benchmark_trees as trees

CFG = config.Storage()
TREES: dict[str, Callable[[Path], dict[str, int] | None]] = {
    name: getattr(trees, name)
    for name in ("bach", "bracs", "breakhis", "crc", "gleason", "mhist", "patch_camelyon", "unitopatho",
                 "camelyon17_wilds", "tcga_uniform", "pathorob", "plism", "hest")
}  # fmt: skip
UNITS = {"bach": 12, "bracs": 28, "breakhis": 16, "gleason": 16, "mhist": 12, "patch_camelyon": 8, "unitopatho": 12,
         "camelyon17_wilds": 20, "tcga_uniform": 6, "pathorob": 6, "plism": 4, "hest": 6}  # fmt: skip


def planted(name: str, root: Path) -> tuple[Benchmark, list[Sample]]:
    """The tree of a benchmark, its row with the tree's counts, and its samples."""
    counts = TREES[name](root)
    row = benchmark(name)
    row = replace(row, counts=counts) if counts else row
    return row, list(samples_of(row, str(root), CFG))


def test_ten_are_for_classification_and_all_say_where_they_are_from() -> None:
    ten = [row for row in ROWS if row.task == "classification" and row.name != "pcam_10shot"]
    assert len(ten) == 10 and len({row.name for row in ROWS}) == len(ROWS) == 14
    for row in ROWS:
        assert row.source and row.citation and row.licence and row.get
        assert row.layout
    with pytest.raises(BenchmarkError, match="did you mean patch_camelyon"):
        benchmark("patch_cameleon")


@pytest.mark.parametrize("name", list(TREES))
def test_a_whole_tree_is_read_and_found_to_be_whole(name: str, tmp_path: Path) -> None:
    row, samples = planted(name, tmp_path)
    found = check(row, str(tmp_path), CFG, everything=True)
    assert found.problems == ()
    assert sum(sum(c.values()) for c in found.counts.values()) == len(samples) == len({s.path for s in samples})
    if name in UNITS:
        assert found.num_units == UNITS[name]
    if row.counts:
        assert {split: sum(c.values()) for split, c in found.counts.items()} == row.counts
    if row.classes:
        assert all(set(c) == set(row.classes) for c in found.counts.values())


def test_who_is_who_is_read_off_the_files(tmp_path: Path) -> None:
    def one(name: str, end: str) -> Sample:
        return next(s for s in planted(name, tmp_path / name)[1] if s.path.endswith(end))

    s = one("breakhis", "SOB_B_F-14-22560AB-40-001.png")
    assert (s.label, s.patient, s.split) == ("F", "22560AB", None)
    s = one("bracs", "BRACS_130_FEA_1.png")
    assert (s.label, s.patient, s.split) == ("FEA", "BRACS_130", "val")
    s = one("gleason", "ZT76_39_A_3_2_patch_11_class_3.jpg")
    assert (s.label, s.patient, s.split) == ("gleason_5", "ZT76_39_A_3_2", "val")
    s = one("patch_camelyon", "val/3.png")
    assert (s.label, s.patient, s.split) == ("tumor", "camelyon16_val_001", "val")
    s = one("unitopatho", "reg014.png")
    assert (s.label, s.patient, s.split) == ("TA.HG", "149-B1-7.ndpi", "test")
    s = one("camelyon17_wilds", "x_576_y_96.png")  # i = 6: centre 1
    assert (s.label, s.patient, s.split, s.site) == ("tumor", "021", "val", "1")
    s = one("tcga_uniform", "TCGA-1B-A16J-01Z-00-DX1.ABC_1_2.jpg")
    assert (s.label, s.patient, s.slide) == ("Thymoma", "TCGA-1B-A16J", "TCGA-1B-A16J-01Z-00-DX1.ABC")
    s = one("pathorob", "b/s2/p1")
    assert (s.label, s.patient, s.site, s.split) == ("tumor", "s2", "UMCU", "b")
    s = one("plism", "HRH_GT450/tile_16_16_0")
    assert (s.label, s.patient, s.slide, s.site) == ("HRH", "block_1_0", "HRH_GT450", "GT450")
    s = one("hest", "PRAD/MEND140/003x101")
    assert (s.label, s.patient, s.split) == ("PRAD", "MEND140", None)


@pytest.mark.parametrize("name", ["bach", "crc", "mhist", "patch_camelyon", "camelyon17_wilds", "pathorob", "plism"])
def test_as_tiles_they_keep_labels_splits_units_and_pixels(name: str, tmp_path: Path) -> None:
    row, samples = planted(name, tmp_path / "in")
    convert(row, str(tmp_path / "in"), str(tmp_path / "a"), CFG)
    again = convert(row, str(tmp_path / "in"), str(tmp_path / "a"), CFG)
    other = convert(row, str(tmp_path / "in"), str(tmp_path / "b"), CFG)
    assert again == other == read_manifest(str(tmp_path / "a"), CFG)
    rows = {r["tile_id"]: r for t in iter_tiles(str(tmp_path / "a"), CFG) for r in t.to_pylist()}
    assert len(rows) == len(samples)
    for sample in samples:
        tile = rows[f"{name}/{sample.path}"]
        assert (tile["label"], tile["split"], tile["patient_id"], tile["slide_id"], tile["site"]) == (
            sample.label, sample.split, sample.patient, sample.slide, sample.site,
        )  # fmt: skip
        pixels, was = decode(tile["image"]), decode(sample.read())
        if name == "bach":
            assert min(pixels.shape[:2]) == SIDE
            expected = Image.fromarray(was).resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(pixels, np.asarray(expected))
            assert tile["mpp"] == pytest.approx(0.42 * 600 / SIDE)
        else:
            np.testing.assert_array_equal(pixels, was)
            assert row.mpp is None or tile["mpp"] == pytest.approx(row.mpp)
    assert Counter(r["label"] for r in rows.values()) == Counter(s.label for s in samples)
    assert other.made_by["benchmark"] == name
    with pytest.raises(BenchmarkError, match="is another data set already"):
        convert(replace(row, unit="nothing"), str(tmp_path / "in"), str(tmp_path / "a"), CFG)


def test_without_the_meta_files_each_tile_of_pcam_is_its_own_unit(tmp_path: Path) -> None:
    trees.patch_camelyon(tmp_path, meta=False)
    assert check(benchmark("patch_camelyon"), str(tmp_path), CFG).num_units == 16


# ---------------------------------------------------------------- what is wrong


def problems(name: str, root: Path, spoil: Callable[[Path], object], **over: object) -> str:
    row, _ = planted(name, root)
    spoil(root)
    return "\n".join(check(replace(row, **over), str(root), CFG).problems)  # type: ignore[arg-type]


def test_missing_classes_wrong_counts_and_strangers_are_named(tmp_path: Path) -> None:
    def lose(root: Path) -> None:
        for path in (root / "CRC-VAL-HE-7K/TUM").iterdir():
            path.unlink()
        (root / "NCT-CRC-HE-100K/XXX").mkdir()
        trees.save(root / "NCT-CRC-HE-100K/XXX/XXX-1.tif", 1)

    said = problems("crc", tmp_path, lose)
    assert "split test has no image of class TUM" in said
    assert "split train has classes that crc has not: XXX" in said
    assert "split test has 22 images, its row says 26" in said or "its row says" in said


@pytest.mark.parametrize("data", [b"<!doctype html><title>404</title>", b"\x89PNG\r\n\x1a\n cut", b""])
def test_images_that_are_none_are_named(data: bytes, tmp_path: Path) -> None:
    said = problems("mhist", tmp_path, lambda root: (root / "images/MHIST_003.png").write_bytes(data))
    assert "1 images cannot be read, e.g. images/MHIST_003.png" in said
    with pytest.raises(BenchmarkError, match=r"images/MHIST_003.png of mhist cannot be read"):
        convert(benchmark("mhist"), str(tmp_path), str(tmp_path / "out"), CFG)
    assert not (tmp_path / "out/_manifest.json").exists()


def test_a_patient_planted_in_two_splits_is_found_and_refused(tmp_path: Path) -> None:
    def plant(root: Path) -> None:
        text = (root / "800/test.csv").read_text().replace("149-B1-6.ndpi", "149-B1-0.ndpi")
        (root / "800/test.csv").write_text(text)

    assert "1 units are in" in problems("unitopatho", tmp_path, plant)
    samples = list(samples_of(benchmark("unitopatho"), str(tmp_path), CFG))
    labels, groups, splits = (np.array(c) for c in zip(*((s.label, s.patient, s.split) for s in samples), strict=True))
    with pytest.raises(FoldError, match="1 patients are in split 'train' and in split 'test'"):
        make_folds(labels, groups, splits=splits)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    import h5py

    trees.patch_camelyon(tmp_path)
    with h5py.File(tmp_path / "camelyonpatch_level_2_split_test_y.h5", "w") as file:
        file.create_dataset("y", data=np.zeros((3, 1, 1, 1)))
    with pytest.raises(BenchmarkError, match="holds 4 images and .* 3 labels; fetch both again"):
        check(benchmark("patch_camelyon"), str(tmp_path), CFG)
    (tmp_path / "camelyonpatch_level_2_split_test_y.h5").write_bytes(b"<html>")
    with pytest.raises(BenchmarkError, match="is no such HDF5 file"):
        check(benchmark("patch_camelyon"), str(tmp_path), CFG)
    (tmp_path / "camelyonpatch_level_2_split_test_y.h5").unlink()
    with pytest.raises(BenchmarkError, match="there is no camelyonpatch_level_2_split_test_y.h5"):
        check(benchmark("patch_camelyon"), str(tmp_path), CFG)


def test_tables_that_are_others_are_refused(tmp_path: Path) -> None:
    trees.mhist(tmp_path)
    text = (tmp_path / "annotations.csv").read_text()
    (tmp_path / "annotations.csv").write_text(text.replace("Majority Vote Label", "label"))
    with pytest.raises(BenchmarkError, match="annotations.csv has no column 'Majority Vote Label'"):
        check(benchmark("mhist"), str(tmp_path), CFG)
    with pytest.raises(BenchmarkError, match="there is no annotations.csv below"):
        check(benchmark("mhist"), str(tmp_path / "nowhere"), CFG)
    with pytest.raises(BenchmarkError, match="holds no image of bach; it must lie like this"):
        check(benchmark("bach"), str(tmp_path), CFG)


def test_the_verbs(tmp_path: Path) -> None:
    trees.mhist(tmp_path / "m")
    run = CliRunner()
    listed = run.invoke(cli, ["datasets", "list"])
    assert listed.exit_code == 0 and len(listed.output.splitlines()) == 14
    shown = run.invoke(cli, ["datasets", "show", "mhist"])
    assert "Wei et al. 2021" in shown.output and "proven on a small tree" in shown.output
    checked = run.invoke(cli, ["datasets", "check", "mhist", str(tmp_path / "m")], standalone_mode=False)
    assert checked.return_value == 1 and "its row says 2,175" in checked.output
    made = run.invoke(cli, ["datasets", "convert", "mhist", str(tmp_path / "m"), str(tmp_path / "t")])
    assert made.exit_code == 0 and "12 tiles in 2 shards" in made.output
