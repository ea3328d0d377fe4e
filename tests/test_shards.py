"""Shards, manifest, verify and contact sheet, against PIL, numpy and plain pyarrow."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pathryoshka import config, storage
from pathryoshka.storage import parquet
from pathryoshka.tiles import shards
from pathryoshka.tiles.shards import SCHEMA, ShardEntry, ShardError
from pathryoshka.tiles.show import sample, show
from pathryoshka.tiles.stats import TileStats, saturation, tissue_share, tissue_threshold
from pathryoshka.tiles.verify import verify
from tests.faulty_proxy import FaultyProxy

CFG = config.Storage(max_attempts=2)


def picture(seed: int, width: int = 24, height: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(tile: np.ndarray, kind: str = "PNG") -> bytes:
    sink = io.BytesIO()
    Image.fromarray(tile).save(sink, kind)
    return sink.getvalue()


def row(i: int, **facts: Any) -> dict[str, Any]:
    image = encoded(picture(i))
    names = {"tile_id": f"s{i % 3}/{i}", "slide_id": f"s{i % 3}", "patient_id": f"p{i % 2}", "site": "north"}
    place = {"x": i, "y": None, "width": 24, "height": 16, "mpp": 0.5, "tissue": 0.75}
    return {**names, **place, "image": image, "label": "ab"[i % 2], "split": "train", **facts}


def table(n: int, start: int = 0, **facts: Any) -> pa.Table:
    return pa.Table.from_pylist([row(i, **facts) for i in range(start, start + n)], schema=SCHEMA)


def data_set(to: Path, n: int = 10) -> shards.Manifest:
    """Two shards, of n train and 5 test tiles, in row groups of 4."""
    one = shards.write_shard(str(to), "a.parquet", table(n), CFG, rows_per_group=4)
    two = shards.write_shard(str(to), "b.parquet", table(5, n, split="test", site="south"), CFG, rows_per_group=4)
    return shards.write_manifest(str(to), [two, one], {"kind": "test", "seed": 3}, CFG)


def test_a_shard_is_the_parquet_file_that_the_contract_says(tmp_path: Path) -> None:
    entry = shards.write_shard(str(tmp_path), "a.parquet", table(10), CFG, rows_per_group=4)
    data = (tmp_path / "a.parquet").read_bytes()
    assert (entry.bytes, entry.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(g).num_rows for g in range(3)] == [4, 4, 2] == list(entry.row_groups)
    for column in (metadata.row_group(0).column(c) for c in range(metadata.num_columns)):
        image = column.path_in_schema == "image"
        assert column.compression == ("UNCOMPRESSED" if image else "ZSTD")
        assert not (image and column.is_stats_set)
    assert pq.read_schema(tmp_path / "a.parquet").equals(SCHEMA)
    back = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert back == [{name: row(i)[name] for name in SCHEMA.names} for i in range(10)]
    assert (entry.slide_ids, entry.slide_rows) == (("s0", "s1", "s2"), (4, 3, 3))
    assert (entry.patient_ids, entry.patient_rows, entry.sites) == (("p0", "p1"), (5, 5), ("north",))
    assert entry.labels == {"a": 5, "b": 5} and entry.split == "train" and entry.rows == 10


def test_columns_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    tiles = table(6)
    one = shards.write_shard(str(tmp_path), "a.parquet", tiles, CFG)
    other = shards.write_shard(str(tmp_path), "b.parquet", tiles.select(sorted(SCHEMA.names)), CFG)
    assert one.sha256 == other.sha256
    assert shards.write_shard(str(tmp_path), "c.parquet", tiles.slice(1), CFG).sha256 != one.sha256


@pytest.mark.parametrize(
    ("tiles", "words"),
    [
        (table(3).drop_columns(["site"]), "no column site"),
        (table(0), "no row"),
        (pa.Table.from_pylist([row(1), row(1)], schema=SCHEMA), "'s1/1' twice"),
        (pa.Table.from_pylist([row(1), row(2, split=None)], schema=SCHEMA), "mixes splits"),
        (pa.Table.from_pylist([row(1) | {"site": None}]), "site"),
        (pa.Table.from_pylist([row(1) | {"width": 70_000}]), "does not fit"),
    ],
)
def test_rows_that_are_no_tiles_are_refused(tmp_path: Path, tiles: pa.Table, words: str) -> None:
    with pytest.raises(ShardError, match=words):
        shards.write_shard(str(tmp_path), "a.parquet", tiles, CFG)
    assert not storage.list_files(str(tmp_path), CFG)


def test_manifest_counts_and_statistics_agree_with_numpy(tmp_path: Path) -> None:
    manifest = data_set(tmp_path)
    assert manifest == shards.read_manifest(str(tmp_path), CFG)
    assert manifest.rows == 15 and [s.path for s in manifest.shards] == ["a.parquet", "b.parquet"]
    assert manifest.counts["patient"] == {"p0": 8, "p1": 7} and manifest.counts["site"] == {"north": 10, "south": 5}
    assert manifest.counts["slide"] == {"s0": 5, "s1": 5, "s2": 5} and manifest.counts["label"] == {"a": 8, "b": 7}
    pixels = np.concatenate([picture(i).reshape(-1, 3) for i in range(15)]).astype(np.float64) / 255
    np.testing.assert_allclose(manifest.tile_stats["mean"], pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(manifest.tile_stats["std"], pixels.std(0), atol=1e-6)
    assert (manifest.tile_stats["median_width"], manifest.tile_stats["median_height"]) == (24, 16)


def test_statistics_of_tiles_of_several_sizes_merge_exactly() -> None:
    tiles = [picture(i, 8 + i, 20 - i) for i in range(7)]
    merged = TileStats.merged([TileStats.of(tiles[:2]), TileStats.of([]), TileStats.of(tiles[2:])])
    assert merged == TileStats.of(tiles)
    pixels = np.concatenate([tile.reshape(-1, 3) for tile in tiles]).astype(np.float64) / 255
    np.testing.assert_allclose(merged.summary()["std"], pixels.std(0), atol=1e-6)
    assert (merged.summary()["median_width"], merged.summary()["median_height"]) == (11, 17)


def test_the_digest_is_that_of_what_is_stored(tmp_path: Path) -> None:
    manifest = data_set(tmp_path)
    tree = json.loads((tmp_path / "_manifest.json").read_text())
    canonical = json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()
    assert manifest.digest() == hashlib.sha256(canonical).hexdigest()
    assert manifest.digest() != manifest.model_copy(update={"made_by": {"seed": 4}}).digest()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "_manifest.json is missing"),
        ({"schema_version": 99}, "schema version 99"),
        ({"shards": []}, "no tile"),
        ({"shards": 7}, "damaged"),
        ({"nonsense": 7}, "damaged"),
    ],
)
def test_a_manifest_that_cannot_be_read_says_why(tmp_path: Path, change: dict[str, Any] | None, words: str) -> None:
    data_set(tmp_path)
    where = tmp_path / "_manifest.json"
    tree = json.loads(where.read_text())
    where.unlink() if change is None else where.write_text(json.dumps(tree | change))
    with pytest.raises(ShardError, match=words):
        shards.read_manifest(str(tmp_path), CFG)


def test_half_a_manifest_is_damaged(tmp_path: Path) -> None:
    data_set(tmp_path)
    where = tmp_path / "_manifest.json"
    where.write_bytes(where.read_bytes()[:200])
    with pytest.raises(ShardError, match="damaged"):
        shards.read_manifest(str(tmp_path), CFG)


def test_a_row_group_is_what_was_written(tmp_path: Path) -> None:
    manifest = data_set(tmp_path)
    read = shards.read_row_group(str(tmp_path), CFG, manifest.shards[0], 2, ["image", "tile_id"])
    assert read.to_pylist() == [{"image": row(i)["image"], "tile_id": row(i)["tile_id"]} for i in (8, 9)]
    assert read.column_names == ["image", "tile_id"]


def test_every_row_comes_once_and_in_order(tmp_path: Path) -> None:
    data_set(tmp_path, 50)
    parts = shards.iter_tiles(str(tmp_path), CFG, columns=["tile_id"])
    read = [tile_id for part in parts for tile_id in part["tile_id"].to_pylist()]
    assert read == [row(i)["tile_id"] for i in range(55)]
    test = list(shards.iter_tiles(str(tmp_path), CFG, splits=["test"]))
    assert [part.num_rows for part in test] == [4, 1] and set(test[0]["site"].to_pylist()) == {"south"}
    with pytest.raises(ShardError, match="its splits are test, train"):
        next(shards.iter_tiles(str(tmp_path), CFG, splits=["val"]))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def readable(uri: Path, entry: ShardEntry) -> bool:
    parquet.footers.clear()
    try:
        for group in range(len(entry.row_groups)):
            shards.read_row_group(str(uri), CFG, entry, group)
    except ShardError as error:
        assert entry.path in str(error)
        return False
    return True


def test_a_flipped_byte_anywhere_is_found_by_verify_and_in_a_page_by_the_reader(tmp_path: Path) -> None:
    entry = data_set(tmp_path).shards[0]
    assert readable(tmp_path, entry) and verify(str(tmp_path), CFG) == []
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    chunks = [metadata.row_group(g).column(c) for g in range(3) for c in range(metadata.num_columns)]
    bodies = [c.data_page_offset + c.total_compressed_size - 3 for c in chunks if c.dictionary_page_offset is None]
    for at in [*bodies, entry.bytes - 2, entry.bytes - 7]:
        flip(tmp_path / "a.parquet", at)
        assert not readable(tmp_path, entry), at
        flip(tmp_path / "a.parquet", at)
    right = pa.concat_tables(shards.read_row_group(str(tmp_path), CFG, entry, g) for g in range(3))
    footer = metadata.serialized_size
    for at in range(entry.bytes - 8 - footer, entry.bytes, 23):  # no checksum there: found, or without consequence
        flip(tmp_path / "a.parquet", at)
        if readable(tmp_path, entry):
            assert right == pa.concat_tables(shards.read_row_group(str(tmp_path), CFG, entry, g) for g in range(3))
        flip(tmp_path / "a.parquet", at)
    for at in range(0, entry.bytes, 997):
        flip(tmp_path / "a.parquet", at)
        assert [problem.shard for problem in verify(str(tmp_path), CFG)] == ["a.parquet"]
        flip(tmp_path / "a.parquet", at)
    assert readable(tmp_path, entry)


def test_in_object_storage_a_row_group_is_one_request_after_the_first(s3_storage: tuple[config.Storage, str]) -> None:
    s3, uri = s3_storage
    entry = shards.write_shard(uri, "a.parquet", table(40), s3, rows_per_group=8)
    with FaultyProxy(str(s3.endpoint), fail_share=0.0, delay_s=0.0, seed=0) as proxy:
        through = s3.model_copy(update={"endpoint": proxy.endpoint})
        costs = []
        for group, columns in ((0, SCHEMA.names), (3, ("tile_id", "image")), (4, SCHEMA.names), (0, ("tile_id",))):
            before = sum(proxy.requests.values())
            read = shards.read_row_group(uri, through, entry, group, columns)
            assert read["tile_id"].to_pylist() == [row(i)["tile_id"] for i in range(group * 8, group * 8 + 8)]
            costs.append(sum(proxy.requests.values()) - before)
        assert costs[1:] == [1, 1, 1] and costs[0] <= 3
        proxy.fail_share = 0.2
        for group in [0, 1, 2, 3, 4] * 4:
            parquet.footers.clear()
            read = shards.read_row_group(uri, through, entry, group, ("image",))
            assert read["image"][0].as_py() == row(group * 8)["image"]
        assert sum(proxy.faults.values()) > 3


def test_a_short_or_missing_or_swapped_shard_is_named(tmp_path: Path) -> None:
    manifest = data_set(tmp_path)
    one, two = manifest.shards
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    assert not readable(tmp_path, one)
    assert "bytes" in verify(str(tmp_path), CFG)[0].what
    (tmp_path / "a.parquet").write_bytes((tmp_path / "b.parquet").read_bytes())
    assert not readable(tmp_path, one) and readable(tmp_path, two)
    (tmp_path / "a.parquet").unlink()
    assert not readable(tmp_path, one)
    assert [(p.shard, p.what) for p in verify(str(tmp_path), CFG)] == [("a.parquet", "is missing")]


def test_verify_sees_what_the_manifest_hides(tmp_path: Path) -> None:
    uri = str(tmp_path)
    one = shards.write_shard(uri, "a.parquet", table(10), CFG, rows_per_group=4)
    two = shards.write_shard(uri, "b.parquet", table(5, 8), CFG, rows_per_group=4)
    shards.write_shard(uri, "left.parquet", table(1, 90), CFG)
    wrong = one.model_copy(update={"rows": 12, "patient_ids": ("p0", "p9"), "split": "val"})
    shards.write_manifest(uri, [wrong, two], {}, CFG)
    found = {(p.shard, p.what) for p in verify(uri, CFG)}
    for shard, words in [
        ("a.parquet", "rows in groups"),
        ("a.parquet", "patient_id"),
        ("a.parquet", "split val"),
        ("b.parquet", "2 tiles that other shards hold"),
        ("left.parquet", "not in the manifest"),
    ]:
        assert [what for name, what in found if name == shard and words in what], (shard, words)
    assert len(found) == 5


def test_a_manifest_needs_tiles_and_distinct_shards(tmp_path: Path) -> None:
    entry = shards.write_shard(str(tmp_path), "a.parquet", table(2), CFG)
    for entries, words in (([], "no tile"), ([entry, entry], "same path")):
        with pytest.raises(ShardError, match=words):
            shards.write_manifest(str(tmp_path), entries, {}, CFG)


def test_the_contact_sheet_shows_the_tiles(tmp_path: Path) -> None:
    manifest = data_set(tmp_path, 30)
    drawn = sample(str(tmp_path), CFG, manifest, 12, seed=5)
    assert len({r["tile_id"] for r in drawn}) == 12
    assert drawn == sample(str(tmp_path), CFG, manifest, 12, seed=5) != sample(str(tmp_path), CFG, manifest, 12, seed=6)
    assert len(sample(str(tmp_path), CFG, manifest, 99, seed=0)) == 35
    show(str(tmp_path), CFG, tmp_path / "sheet.png", n=12, seed=5)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    tile = Image.open(io.BytesIO(drawn[0]["image"])).resize((160, 107), Image.Resampling.LANCZOS)
    top = 14 + 2 * 8 + (160 - 107) // 2
    np.testing.assert_array_equal(sheet[top : top + 107, 8:168], np.asarray(tile))


def test_saturation_is_that_of_hsv_and_otsu_that_of_all_thresholds() -> None:
    tile = picture(1, 60, 50)
    hsv = np.asarray(Image.fromarray(tile).convert("HSV"))[..., 1] / 255
    bright = tile.max(-1) > 25
    np.testing.assert_allclose(saturation(tile)[bright], hsv[bright], atol=1 / 255)
    assert not saturation(tile)[~bright].any()
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.03, 0.012, 4000), rng.normal(0.13, 0.02, 1500)]).clip(0, 0.15)

    def between(t: float) -> float:
        low, high = values[values < t], values[values >= t]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    grid = np.linspace(0.02, 0.14, 481)
    best = grid[np.argmax([between(t) for t in grid])]
    assert tissue_threshold(values) == pytest.approx(best, abs=0.002)
    glass, pink = np.full((8, 8, 3), 243, np.uint8), np.full((8, 8, 3), (230, 120, 180), np.uint8)
    assert tissue_share(glass) == 0 and tissue_share(pink) == 1
    assert tissue_share(np.concatenate([glass, pink])) == 0.5
