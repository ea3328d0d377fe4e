"""Folders and CSVs become tile data sets. The pieces of work run in a row here, and on Ray in test_making.py."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from ray import cloudpickle

from pathryoshka import config, storage
from pathryoshka.tiles import importing, making
from pathryoshka.tiles.importing import import_images
from pathryoshka.tiles.making import Failure, read_failures
from pathryoshka.tiles.shards import Manifest, ShardError, iter_tiles, read_manifest
from pathryoshka.tiles.sources import KEY_VARIABLE, ImportRefused, Tile
from pathryoshka.tiles.verify import verify

CFG = config.Storage(max_attempts=2)
CRC = Path(__file__).parent / "data" / "crc7k"


@pytest.fixture
def in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        function, items = cloudpickle.loads(cloudpickle.dumps((function, items)))  # as they travel to workers

        def outcome(item: Any) -> Any:
            try:
                return function(item)
            except Exception as error:
                return error

        return [outcome(item) for item in items]

    monkeypatch.setattr(making, "run_tasks", run)


def picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight JPEGs in two classes, and files that are none."""
    base = tmp_path / "slides of 2024"
    for i in range(8):
        where = base / ("tumour" if i % 2 else "normal")
        where.mkdir(parents=True, exist_ok=True)
        picture(i).save(where / f"tile{i}.jpg", quality=95)
    (base / "README.md").write_text("no image")
    (base / "tumour" / "._tile1.jpg").write_bytes(b"what another system left")
    return base


def contents(uri: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(uri.rglob("*")) if p.is_file()}


def rows_of(uri: Path | str) -> list[dict[str, Any]]:
    return pa.concat_tables(iter_tiles(str(uri), CFG)).to_pylist()


def write_csv(where: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with where.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return where


@pytest.mark.usefixtures("in_a_row")
def test_class_folders_become_labels_and_images_stay_byte_for_byte(folder: Path, tmp_path: Path) -> None:
    manifest = import_images(folder, str(tmp_path / "to"), CFG, rows_per_shard=5, rows_per_group=2)
    assert [s.row_groups for s in manifest.shards] == [(2, 2, 1), (2, 1)]
    assert manifest.counts["label"] == {"normal": 4, "tumour": 4} and manifest.counts["site"] == {"unknown": 8}
    rows = {row["tile_id"]: row for row in rows_of(tmp_path / "to")}
    assert set(rows) == {f"slides of 2024/{'tumour' if i % 2 else 'normal'}/tile{i}.jpg" for i in range(8)}
    for tile_id, row in rows.items():
        assert row["image"] == (folder.parent / tile_id).read_bytes()
        assert row["slide_id"] == row["patient_id"] == Path(tile_id).stem
        assert (row["width"], row["height"], row["mpp"], row["split"], row["x"]) == (40, 30, None, None, None)
    assert verify(str(tmp_path / "to"), CFG) == []
    assert not storage.exists(storage.join(str(tmp_path / "to"), "_failures.json"), CFG)


@pytest.mark.usefixtures("in_a_row")
def test_same_input_and_seed_same_bytes_other_seed_other_order(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "slides of 2024"
    shutil.copytree(folder, moved)
    for source, to, seed in ((folder, "a", 1), (moved, "b", 1), (folder, "c", 2)):
        import_images(source, str(tmp_path / to), CFG, seed=seed, rows_per_shard=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 4
    ids = {to: [row["tile_id"] for row in rows_of(tmp_path / to)] for to in "ac"}
    assert sorted(ids["a"]) == sorted(ids["c"]) and ids["a"] != ids["c"]
    assert ids["a"] != sorted(ids["a"])
    assert str(tmp_path) not in (tmp_path / "a" / "_manifest.json").read_text()


@pytest.mark.usefixtures("in_a_row")
def test_a_csv_says_what_tiles_are_and_a_shard_has_one_split(folder: Path, tmp_path: Path) -> None:
    paths = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("tile*.jpg"))]
    told: list[dict[str, Any]] = []
    for i, path in enumerate(paths):
        split = "train" if i < 5 else "test"
        told.append({"tile": path, "patient": f"P{i % 3}", "site": "north", "label": "", "mpp": 0.25, "split": split})
    table = write_csv(tmp_path / "tiles.csv", told)
    manifest = import_images(folder, str(tmp_path / "to"), CFG, csv=table, rows_per_shard=4)
    assert [(s.split, s.rows) for s in manifest.shards] == [("test", 3), ("train", 4), ("train", 1)]
    assert manifest.counts["patient"] == {"P0": 3, "P1": 3, "P2": 2} and manifest.counts["label"] == {}
    rows = {row["tile_id"].split("/", 1)[1]: row for row in rows_of(tmp_path / "to")}
    for entry in told:
        row = rows[entry["tile"]]
        assert (row["patient_id"], row["site"], row["mpp"], row["split"], row["label"]) == (
            entry["patient"], "north", 0.25, entry["split"], None)  # fmt: skip
        assert row["slide_id"] == Path(entry["tile"]).stem


@pytest.mark.usefixtures("in_a_row")
def test_the_shipped_sample_imports_from_its_csv(tmp_path: Path) -> None:
    manifest = import_images(CRC / "tiles.csv", str(tmp_path / "to"), CFG)
    assert manifest.counts["label"] == dict.fromkeys(("ADI", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"), 10)
    rows = rows_of(tmp_path / "to")
    assert {row["mpp"] for row in rows} == {0.5} and all(row["tile_id"].startswith("crc7k/") for row in rows)
    pixels = np.concatenate([np.asarray(Image.open(p)).reshape(-1, 3) for p in sorted(CRC.glob("*.jpg"))]) / 255.0
    np.testing.assert_allclose(manifest.tile_stats["mean"], pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(manifest.tile_stats["std"], pixels.std(0), atol=1e-6)
    assert Counter(s.rows for s in manifest.shards) == {70: 1}


@pytest.mark.usefixtures("in_a_row")
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "bmp"])
def test_formats_are_kept_or_become_png(tmp_path: Path, kind: str) -> None:
    base = tmp_path / "in"
    base.mkdir()
    picture(3).save(base / f"one.{kind}")
    import_images(base, str(tmp_path / "to"), CFG)
    (row,) = rows_of(tmp_path / "to")
    original = (base / f"one.{kind}").read_bytes()
    if kind in ("jpg", "png", "webp"):
        assert row["image"] == original
    else:
        assert Image.open(io.BytesIO(row["image"])).format == "PNG"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(row["image"]))), np.asarray(picture(3)))


def damage(folder: Path, count: int) -> list[str]:
    """Truncates the first `count` images and returns their tile ids."""
    paths = sorted(folder.rglob("tile*.jpg"))[:count]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-400])
    return [f"{folder.name}/{path.relative_to(folder).as_posix()}" for path in paths]


@pytest.mark.usefixtures("in_a_row")
def test_unreadable_images_are_listed_and_left_out_up_to_a_share(folder: Path, tmp_path: Path) -> None:
    bad = damage(folder, 2)
    (folder / "tumour" / "tile1.jpg").write_text("no image")
    bad.append(f"{folder.name}/tumour/tile1.jpg")
    for to in ("again", "to"):
        manifest = import_images(folder, str(tmp_path / to), CFG, max_failed_share=0.4, rows_per_shard=3)
    assert contents(tmp_path / "again") == contents(tmp_path / "to")
    failures = read_failures(str(tmp_path / "to"), CFG)
    assert [f.what for f in failures] == bad
    assert ["damaged JPEG" in f.reason for f in failures] == [True, True, False]
    assert manifest.rows == 5 and not {row["tile_id"] for row in rows_of(tmp_path / "to")} & set(bad)


@pytest.mark.usefixtures("in_a_row")
def test_too_many_unreadable_images_leave_nothing_behind(folder: Path, tmp_path: Path) -> None:
    bad = damage(folder, 2)
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "notes.txt").write_text("mine")
    with pytest.raises(ImportRefused, match=r"2 of 8 cannot be read, 1 may .*nothing was written") as refused:
        import_images(folder, str(tmp_path / "to"), CFG, max_failed_share=0.2, rows_per_shard=3)
    assert bad[0] in str(refused.value)
    assert list(contents(tmp_path / "to")) == ["notes.txt"]


@pytest.mark.usefixtures("in_a_row")
def test_a_piece_that_fails_leaves_nothing_behind(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = importing.write_shard

    def full_disk(to: str, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "tiles-00001.parquet":
            raise storage.StorageError("the disk is full")
        return write(to, name, *args, **kwargs)

    monkeypatch.setattr(importing, "write_shard", full_disk)
    with pytest.raises(storage.StorageError, match="the disk is full"):
        import_images(folder, str(tmp_path / "to"), CFG, rows_per_shard=3)
    assert not storage.list_files(str(tmp_path / "to"), CFG)


@pytest.mark.usefixtures("in_a_row")
def test_the_same_import_again_is_no_work_and_another_is_refused(folder: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    first = import_images(folder, str(to), CFG)
    before = {p: p.stat().st_mtime_ns for p in to.iterdir()}
    assert import_images(folder, str(to), CFG) == first
    assert {p: p.stat().st_mtime_ns for p in to.iterdir()} == before
    with pytest.raises(ImportRefused, match="other seed"):
        import_images(folder, str(to), CFG, seed=9)
    picture(99).save(folder / "tumour" / "new.png")
    with pytest.raises(ImportRefused, match="other images_digest, num_images"):
        import_images(folder, str(to), CFG)
    assert {p: p.stat().st_mtime_ns for p in to.iterdir()} == before
    (to / "_manifest.json").write_text("{}")
    with pytest.raises(ImportRefused, match="damaged .*; to do so, delete"):
        import_images(folder, str(to), CFG)


@pytest.mark.usefixtures("in_a_row")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tile,pateint\na.png,1\n", "unknown column 'pateint'; did you mean 'patient'"),
        ("tile,zzz\na.png,1\n", "unknown column 'zzz'; known columns: tile, slide"),
        ("patient\n1\n", "has no column 'tile'"),
        ("tile\n", "has no row"),
        ("tile\na.png\na.png\n", "line 3: 'a.png' twice"),
        ("tile,mpp\na.png,fine\n", "mpp must be a positive number"),
        ("tile,mpp\na.png,-1\n", "mpp must be a positive number"),
        ("tile\n../a.png\n", "not below"),
        ("tile\na.png,7\n", "line 2: too many cells"),
        ("tile,site\n,north\n", "line 2: no tile"),
        ("\ufefftile\nb.png\n", "b.png: no such file"),
    ],
)
def test_a_csv_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, words: str) -> None:
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "tiles.csv").write_text(text)
    with pytest.raises(ImportRefused, match=words):
        import_images(tmp_path / "tiles.csv", str(tmp_path / "to"), CFG)
    assert not (tmp_path / "to").exists()


@pytest.mark.usefixtures("in_a_row")
def test_nothing_to_import_says_so(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ImportRefused, match="no image below"):
        import_images(tmp_path / "in", str(tmp_path / "to"), CFG)
    with pytest.raises(ImportRefused, match="no CSV at"):
        import_images(tmp_path / "none.csv", str(tmp_path / "to"), CFG)


@pytest.mark.usefixtures("in_a_row")
def test_files_of_one_stem_are_not_one_patient(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / "in" / label).mkdir(parents=True)
        picture(ord(label)).save(tmp_path / "in" / label / "1.png")
    manifest = import_images(tmp_path / "in", str(tmp_path / "to"), CFG)
    assert manifest.counts["patient"] == {"a/1.png": 1, "b/1.png": 1}


@pytest.mark.usefixtures("in_a_row")
def test_pseudonyms_hide_every_name_and_keep_who_is_who(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "correct horse battery staple"
    damage(folder, 1)
    paths = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("tile*.jpg"))]
    told = [{"tile": p, "patient": f"Jane Doe {i % 2}", "site": "St. Mary"} for i, p in enumerate(paths)]
    table = write_csv(tmp_path / "tiles.csv", told)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(ImportRefused, match=KEY_VARIABLE):
        import_images(folder, str(tmp_path / "to"), CFG, csv=table, pseudonymise=True)
    monkeypatch.setenv(KEY_VARIABLE, secret)
    manifest = import_images(folder, str(tmp_path / "to"), CFG, csv=table, pseudonymise=True, max_failed_share=0.2)
    assert sorted(manifest.counts["patient"].values()) == [3, 4]
    written = b"".join(p.read_bytes() for p in (tmp_path / "to").iterdir())
    for name in ("tile0", "tile7", "tumour", "normal", "Jane", "Mary", "2024", "tiles.csv", secret):
        assert name.encode() not in written, name
    assert len(read_failures(str(tmp_path / "to"), CFG)) == 1
    again = import_images(folder, str(tmp_path / "other"), CFG, csv=table, pseudonymise=True, max_failed_share=0.2)
    assert again == manifest
    monkeypatch.setenv(KEY_VARIABLE, secret[::-1])
    other = import_images(folder, str(tmp_path / "third"), CFG, csv=table, pseudonymise=True, max_failed_share=0.2)
    assert not set(other.counts["patient"]) & set(manifest.counts["patient"])


def test_chunks_are_deals_of_one_split_bounded_in_rows_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = [Tile(str(i), 10, f"f/{i}", "s", "p", "x", None, None, (None, "a", "b")[i % 3]) for i in range(100)]
    chunks = list(importing.chunked(tiles, 0, rows=16))
    assert sorted(t.path for c in chunks for t in c) == sorted(t.path for t in tiles)
    assert all(len({t.split for t in c}) == 1 for c in chunks)
    assert [len(c) for c in chunks] == [16, 16, 2, 16, 16, 1, 16, 16, 1]
    assert list(importing.chunked(tiles[::-1], 0, rows=16)) == chunks
    monkeypatch.setattr(importing, "BYTES_PER_SHARD", 55)
    assert {len(c) for c in importing.chunked(tiles, 0, rows=16)} == {5, 3, 4}


def test_an_interrupted_import_is_no_data_set_and_can_be_done_again(folder: Path, tmp_path: Path) -> None:
    tile = Tile("tumour/tile1.jpg", 1, "f/1", "s", "p", "x", "l", None, None)
    written = importing.write_chunk(str(folder), str(tmp_path / "to"), CFG, 64, False, (0, [tile]))
    assert [s.path for s in written.shards] == ["tiles-00000.parquet"] and not written.failures
    with pytest.raises(ShardError, match=r"_manifest.json is missing"):
        read_manifest(str(tmp_path / "to"), CFG)
    lost = replace(tile, path="x.png", tile_id="f/x")
    gone = importing.write_chunk(str(folder), str(tmp_path / "to"), CFG, 64, False, (1, [lost]))
    assert gone == making.Written((), (Failure("f/x", "no such file"),))


def test_an_image_that_may_not_be_read_is_a_failure_but_silent_storage_is_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [f"{'tumour' if i % 2 else 'normal'}/tile{i}.jpg" for i in range(8)]
    tiles = [Tile(path, 1, f"f/{i}", "s", "p", "x", "l", None, None) for i, path in enumerate(paths)]
    read, denied = storage.read_bytes, {"tile3.jpg"}

    def sometimes(uri: str, cfg: config.Storage) -> bytes:
        if not denied or Path(uri).name in denied:
            raise storage.StorageError(f"cannot read {uri}: no permission")
        return read(uri, cfg)

    monkeypatch.setattr(storage, "read_bytes", sometimes)
    written = importing.write_chunk(str(folder), str(tmp_path / "to"), CFG, 64, False, (0, tiles))
    assert written.shards[0].rows == 7
    assert written.failures == (Failure("f/3", "cannot read tumour/tile3.jpg: no permission"),)
    hidden = importing.write_chunk(str(folder), str(tmp_path / "to"), CFG, 64, True, (0, tiles))
    assert hidden.failures == (Failure("f/3", "cannot be read"),)
    denied.clear()
    with pytest.raises(storage.StorageError, match="no permission"):
        importing.write_chunk(str(folder), str(tmp_path / "to"), CFG, 64, False, (1, tiles))


@pytest.mark.usefixtures("in_a_row")
def test_in_object_storage_from_end_to_end(
    folder: Path, tmp_path: Path, s3_storage: tuple[config.Storage, str]
) -> None:
    s3, uri = s3_storage
    source, to = storage.join(uri, "images", "set"), storage.join(uri, "tiles", "set")
    storage.upload_folder(folder, source, s3)
    manifest: Manifest = import_images(source, to, s3, rows_per_shard=5, rows_per_group=2)
    local = import_images(folder, str(tmp_path / "slides"), CFG, rows_per_shard=5, rows_per_group=2)
    assert manifest.counts["label"] == local.counts["label"] and manifest.tile_stats == local.tile_stats
    assert verify(to, s3) == []
    where = storage.join(to, manifest.shards[0].path)
    data = bytearray(storage.read_bytes(where, s3))
    data[len(data) // 2] ^= 1
    storage.write_bytes(where, bytes(data), s3)
    assert [p.shard for p in verify(to, s3)] == [manifest.shards[0].path]
    assert json.loads(json.dumps(manifest.made_by)) == manifest.made_by and os.sep not in manifest.made_by["source"]
