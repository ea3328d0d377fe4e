"""Duplicates by hand: planted twins are found with their scope, pairs agree with brute force, dropped is dropped."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pathryoshka import config
from pathryoshka.recipes import debug
from pathryoshka.runs.inputs import plan_of, tiles_of
from pathryoshka.tiles import making
from pathryoshka.tiles.balance import identity
from pathryoshka.tiles.duplicates import as_lines, find_duplicates
from pathryoshka.tiles.phash import near_pairs
from pathryoshka.tiles.shards import DROPPED, SCHEMA, ShardError, iter_tiles, read_manifest, write_manifest, write_shard
from tests.blotches import CFG, png, rows, tile, write


@pytest.fixture(autouse=True)
def in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [function(item) for item in items]

    monkeypatch.setattr(making, "run_tasks", run)


def brute_force(hashes: np.ndarray) -> set[tuple[int, int]]:
    far = np.bitwise_count(hashes[:, None] ^ hashes[None, :])
    near = (far <= 3) & (hashes != 0)[:, None] & (hashes != 0)[None, :]
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(near), strict=True) if i < j}


@pytest.mark.parametrize("spread", [64, 12])
def test_near_pairs_are_those_of_brute_force(spread: int) -> None:
    """Random hashes with planted neighbours at 1 ... 5 bits, and crowded ones that share most of their bits."""
    rng = np.random.default_rng(spread)
    hashes = rng.integers(1, 2**63, 700, dtype=np.uint64)
    if spread < 64:
        hashes = np.uint64(0x5A5A_1234_0F0F_9876) ^ (hashes & np.uint64(2**spread - 1))
    flipped = hashes[:300].copy()
    for i in range(300):
        for bit in rng.choice(64, i % 6, replace=False):
            flipped[i] ^= np.uint64(1) << np.uint64(bit)
    everything = np.concatenate([hashes, flipped, np.zeros(3, np.uint64)])
    want = brute_force(everything)
    assert len(want) >= 150 and {tuple(pair) for pair in near_pairs(everything).tolist()} == want


def test_a_hundred_thousand_hashes_take_seconds() -> None:
    """Not the square: all pairs would be 5e9."""
    hashes = np.random.default_rng(0).integers(1, 2**63, 100_000, dtype=np.uint64)
    hashes[50_000:50_100] = hashes[:100] ^ np.uint64(0b10001)
    started = time.process_time()
    found = near_pairs(hashes)
    assert {(i, i + 50_000) for i in range(100)} <= {tuple(pair) for pair in found.tolist()}
    assert time.process_time() - started < 5


def again(pixels: np.ndarray) -> bytes:
    """The picture as JPEG: other bytes, nearly the same pixels."""
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def large(i: int) -> np.ndarray:
    return tile("pink" if i % 2 else "blue", 1000 + i, 96)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """40 tiles of train and 20 of test, with six twins planted among them."""
    train = [row | {"image": png(large(i))} for i, row in enumerate(rows(40, split="train"))]
    test = [row | {"image": png(large(100 + i)), "slide_id": f"t{i}"} for i, row in enumerate(rows(20))]
    train[1]["image"] = png(large(0))  # slide s0 twice
    train[9]["image"] = again(large(3))  # slides s3 and s1
    train[20]["image"] = png(large(105))  # of test, twice
    train[21]["image"] = again(large(105))
    test[19]["image"] = png(large(100))  # two slides of test
    train[30]["image"] = train[31]["image"] = png(np.full((40, 40, 3), 240, np.uint8))  # glass: exact, never near
    return write(tmp_path / "set", train + test)


WANT = {
    ("exact", "within a slide"): 2,
    ("near", "across slides"): 1,
    ("exact", "across splits"): 1,
    ("near", "across splits"): 1,
    ("exact", "across slides"): 1,
}


def test_planted_twins_are_found_with_their_scope(uri: str) -> None:
    found = find_duplicates(uri, CFG, keep=["test"])
    assert (found.counts, found.num_tiles) == (WANT, 60)
    said = as_lines(found)
    assert "across splits: 1 exact, 1 near: what is trained on is also tested on" in said
    assert not (Path(uri) / DROPPED).exists()


def test_dropped_tiles_are_neither_planned_nor_evaluated_and_the_record_changes(uri: str) -> None:
    manifest = read_manifest(uri, CFG)
    shards = {path.name: path.read_bytes() for path in Path(uri).glob("t*.parquet")}
    before = identity(uri, CFG, manifest, "none")
    find_duplicates(uri, CFG, drop=True, keep=["test"])
    gone = {"train/1", "train/9", "train/20", "train/21", "test/19", "train/31"}
    left = [row for table in iter_tiles(uri, CFG, (), ("tile_id",)) for row in table["tile_id"].to_pylist()]
    everything = [f"train/{i}" for i in range(40)] + [f"test/{i}" for i in range(20)]
    assert sorted(left) == sorted(set(everything) - gone)
    assert {path.name: path.read_bytes() for path in Path(uri).glob("t*.parquet")} == shards
    assert identity(uri, CFG, manifest, "none") != before and identity(uri, CFG, manifest, "none").startswith(before)

    run = debug()
    run = run.model_copy(update={"data": run.data.model_copy(update={"tiles": (uri,), "splits": ("train",)})})
    plan = plan_of(run, tiles_of(run))
    ids = [
        row["tile_id"]
        for table in iter_tiles(uri, CFG, ["train"], ("tile_id",), dropped=True)
        for row in table.to_pylist()
    ]
    starts = {
        (s, g): n for s, g, n in zip(plan.group_shard, plan.group_index, np.cumsum((0, *plan.group_rows)), strict=False)
    }
    planned = set()
    for k in range(plan.num_segments):
        segment = plan.segment(k)
        planned |= {ids[starts[s, g] + r] for s, g, r in zip(segment.shard, segment.group, segment.row, strict=True)}
    assert planned == {name for name in ids if name not in gone} and plan.num_tiles == 35


def test_a_list_of_other_shards_is_refused(uri: str) -> None:
    find_duplicates(uri, CFG, drop=True)
    table = pa.Table.from_pylist(rows(6, split="train"), schema=SCHEMA)
    write_manifest(uri, [write_shard(uri, "train.parquet", table, CFG)], {}, CFG)
    with pytest.raises(ShardError, match="which is another now; run `pathryoshka tiles duplicates"):
        list(iter_tiles(uri, CFG))


def test_weights_by_patient_site_and_label(tmp_path: Path) -> None:
    from pathryoshka.tiles.balance import weights_of

    tiles = rows(30, site="north") + [r | {"tile_id": f"b/{i}"} for i, r in enumerate(rows(6, site="south"))]
    uri = write(tmp_path / "set", tiles)
    manifests = {uri: read_manifest(uri, CFG)}

    def found(balance: str, power: float = 1.0) -> np.ndarray:
        plan = config.Plan.model_validate({"balance": balance, "balance_power": power})
        weights = weights_of(manifests, CFG, (), plan)
        assert weights is not None
        return weights.per_tile

    assert weights_of(manifests, CFG, (), config.Plan()) is None
    np.testing.assert_allclose(found("site"), [1 / 30] * 30 + [1 / 6] * 6)
    np.testing.assert_allclose(found("site", 0.5), [30**-0.5] * 30 + [6**-0.5] * 6)
    np.testing.assert_allclose(found("patient"), [1 / 6] * 36)  # p0 of north is not p0 of south
    np.testing.assert_allclose(found("label", 0.0), 1)
    np.testing.assert_allclose(found("label"), 1 / 12)
