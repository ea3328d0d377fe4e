"""Embedding pass, comparison, refusal of what was seen, neighbours: on small tile data sets with known answers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pathryoshka import config
from pathryoshka.evaluate import compare as comparing
from pathryoshka.evaluate.compare import Contender, count_gflop, evaluate
from pathryoshka.evaluate.datasets import short_names
from pathryoshka.evaluate.embed import Embedded, EmbedError, embed_tiles
from pathryoshka.evaluate.neighbours import Panel, nearest
from pathryoshka.evaluate.scores import PCA, TEACHERS_MEAN, Scores
from pathryoshka.export import seen as seeing
from pathryoshka.export.seen import SeenError, collect_seen, perceptual_hash, seen_from_bytes, seen_to_bytes
from pathryoshka.tiles import shards
from pathryoshka.tiles.views import identity_view

CFG = config.Storage()
SIZE = 32
COLOURS = {"blue": (90, 60, 160), "pink": (220, 120, 170), "white": (235, 225, 230)}


def tile(label: str, seed: int, size: int = 40) -> np.ndarray:
    """Noisy blotches about the colour of the class."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 45, (6, 6, 1)) + rng.normal(0, 10, (6, 6, 3))
    smooth = np.stack(
        [np.asarray(Image.fromarray(coarse[..., c].astype(np.float32)).resize((size, size))) for c in range(3)], -1
    )
    return np.clip(np.array(COLOURS[label]) + smooth, 0, 255).astype(np.uint8)


def png(pixels: np.ndarray) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def rows(n: int, start: int = 0, split: str = "test", site: str = "north", **over: Any) -> list[dict[str, Any]]:
    """`n` tiles of n // 6 patients with two slides each."""
    out = []
    for i in range(start, start + n):
        label = list(COLOURS)[i % 3]
        out.append(
            {"tile_id": f"{split}/{i}", "slide_id": f"s{i // 3}", "patient_id": f"p{i // 6}", "site": site}
            | {"image": png(tile(label, i)), "x": None, "y": None, "width": 40, "height": 40, "mpp": None}
            | {"tissue": 1.0, "label": label, "split": split, **over}
        )
    return out


def write(to: Path, tiles: list[dict[str, Any]], made_by: dict[str, Any] | None = None) -> str:
    entries = []
    for split in dict.fromkeys(row["split"] for row in tiles):
        table = pa.Table.from_pylist([row for row in tiles if row["split"] == split], schema=shards.SCHEMA)
        entries.append(shards.write_shard(str(to), f"{split}.parquet", table, CFG, rows_per_group=16))
    shards.write_manifest(str(to), entries, made_by or {"kind": "test"}, CFG)
    return str(to)


def mean_colour(views: np.ndarray) -> np.ndarray:
    return views.reshape(len(views), -1, 3).mean(1) / 255 - 0.5


def good(views: np.ndarray) -> np.ndarray:
    """24 numbers that hold the colour three times over, the first 8 alone almost as well as all."""
    return np.repeat(mean_colour(views), 8, axis=1).reshape(len(views), 3, 8).transpose(0, 2, 1).reshape(len(views), 24)


def blind(views: np.ndarray) -> torch.Tensor:
    """24 numbers that know nothing of colour."""
    noise = views.reshape(len(views), -1).astype(np.int64).sum(1)
    return torch.stack([torch.from_numpy(np.random.default_rng(int(s)).standard_normal(24)) for s in noise])


def teacher(views: np.ndarray) -> dict[str, torch.Tensor]:
    """A teacher's features: the summary is what counts."""
    summary = torch.from_numpy(np.tile(mean_colour(views), (1, 12)))
    return {"summary": summary.half(), "tokens": torch.zeros(len(views), 4, 5)}


CONTENDERS = (
    Contender("student", "student", good, 1000, 0.5),
    Contender("start", "start", blind, 1000, 0.5),
    Contender("random weights", "random", blind, 1000, 0.5),
    Contender("t0", "teacher", teacher, 9000, 4.0),
    Contender("t1", "teacher", good, 7000, 2.0),
)
WIDTHS = (8, 24)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("phantom"), rows(72), {"kind": "phantom", "seed": 0})


@pytest.fixture(scope="module")
def scores(tiles: str) -> Scores:
    cfg = config.Evaluate(tiles=(tiles,))
    return evaluate(CONTENDERS, WIDTHS, cfg, CFG, size=SIZE, seen=None).scores


# ---------------------------------------------------------------- one pass


def test_every_encoder_sees_the_identity_views_in_the_order_of_the_shards(tiles: str) -> None:
    seen_views: dict[str, list[np.ndarray]] = {"a": [], "b": []}

    def spy(name: str) -> Any:
        def encode(views: np.ndarray) -> np.ndarray:
            seen_views[name].append(views.copy())
            return views.reshape(len(views), -1)[:, :5]

        return encode

    embedded = embed_tiles({name: spy(name) for name in seen_views}, tiles, CFG, size=SIZE, batch=10)
    want = [identity_view(tile(list(COLOURS)[i % 3], i), SIZE) for i in range(72)]
    for name, batches in seen_views.items():
        assert [len(batch) for batch in batches] == [10] * 7 + [2]
        np.testing.assert_array_equal(np.concatenate(batches), want)
        np.testing.assert_array_equal(embedded.vectors[name], np.concatenate(batches).reshape(72, -1)[:, :5])
        assert embedded.vectors[name].dtype == np.float32
    assert list(embedded.tile_ids) == [f"test/{i}" for i in range(72)]
    assert list(embedded.patients) == [f"p{i // 6}" for i in range(72)]
    assert list(embedded.labels) == [list(COLOURS)[i % 3] for i in range(72)]
    assert Image.open(io.BytesIO(embedded.thumbs[5])).size == (112, 112)
    assert int(embedded.hashes[5]) == perceptual_hash(tile(list(COLOURS)[5 % 3], 5))


def test_a_limit_takes_the_same_tiles_however_they_are_sharded(tiles: str, tmp_path: Path) -> None:
    other = write(tmp_path / "b", [{**row, "split": str(i % 3)} for i, row in enumerate(rows(72))])
    encoders = {"a": mean_colour}
    few, same = (embed_tiles(encoders, uri, CFG, size=SIZE, max_tiles=20) for uri in (tiles, other))
    assert len(few) == 20 and set(few.tile_ids) == set(same.tile_ids)
    assert few.num_rows == 72


def test_unlabelled_and_broken_tiles_are_left_out_and_counted(tmp_path: Path) -> None:
    mixed = [*rows(30), *rows(6, 30, label=None)]
    entry = shards.write_shard(str(tmp_path), "a.parquet", pa.Table.from_pylist(mixed, schema=shards.SCHEMA), CFG)
    broken = pa.Table.from_pylist(rows(2, 36, image=b"\xff\xd8\xff not an image"), schema=shards.SCHEMA)
    other = shards.write_shard(str(tmp_path), "b.parquet", broken, CFG, stats=shards.TileStats())
    shards.write_manifest(str(tmp_path), [entry, other], {}, CFG)
    embedded = embed_tiles({"a": mean_colour}, str(tmp_path), CFG, size=SIZE)
    assert (len(embedded), embedded.num_unlabelled, embedded.num_rows) == (30, 6, 38)
    assert set(embedded.failures) == {"test/36", "test/37"}
    assert "not a readable image" in embedded.failures["test/36"]


@pytest.mark.parametrize(
    ("encode", "said"),
    [
        (lambda views: np.full((len(views), 3), np.nan), "enc gives values that are not finite"),
        (lambda views: np.zeros((1, 3)), r"enc gave \(1, 3\) for 64 tiles"),
        (lambda views: np.zeros((len(views), 3, 3)), "one vector a tile"),
    ],
)
def test_bad_vectors_are_refused_by_name(tiles: str, encode: Any, said: str) -> None:
    with pytest.raises(EmbedError, match=said):
        embed_tiles({"enc": encode}, tiles, CFG, size=SIZE)


def test_tiles_without_labels_are_refused(tmp_path: Path) -> None:
    uri = write(tmp_path, rows(4, label=None))
    with pytest.raises(EmbedError, match="no tile of .* has a label"):
        embed_tiles({"a": mean_colour}, uri, CFG, size=SIZE)


# ---------------------------------------------------------------- comparison


def test_every_row_is_there_and_tells_good_from_blind(scores: Scores) -> None:
    for probe in ("linear", "knn"):
        found = {(r.encoder, r.width): r for r in scores.rows if r.probe == probe}
        nested = {(name, width) for name in ("student", "start", "random weights") for width in WIDTHS}
        assert nested | {("t0", 36), ("t1", 24)} <= set(found)
        assert found["student", 24].score > 0.85 > 0.6 > found["start", 24].score
        assert found["t0", 36].score > 0.85
        for row in found.values():
            assert row.low <= row.score <= row.high
            assert (row.num_tiles, row.num_groups, row.unit) == (72, 12, "patient")


def test_pca_is_cut_to_the_widths_that_it_has(scores: Scores) -> None:
    """Both teachers hold three numbers of colour, so that their PCA has three directions and no width of ours."""
    assert not [r for r in scores.rows if r.encoder == PCA]
    assert max(r.width for r in scores.rows if r.kind == "student") == 24


def test_pca_of_rich_teachers_stands_at_each_width(tiles: str) -> None:
    def rich(views: np.ndarray) -> np.ndarray:
        return views[:, ::4, ::4].reshape(len(views), -1).astype(np.float32)

    both = (*CONTENDERS[:1], Contender("rich", "teacher", rich, 1, 1.0))
    found = evaluate(both, WIDTHS, config.Evaluate(tiles=(tiles,)), CFG, size=SIZE).scores
    assert [r.width for r in found.rows if r.encoder == PCA and r.probe == "linear"] == [8, 24]


def test_differences_are_against_everybody_and_paired(scores: Scores) -> None:
    found = {(d.width, d.other, d.other_width): d for d in scores.differences if d.probe == "linear"}
    everybody = {("t0", 36), ("t1", 24), (TEACHERS_MEAN, 0)}
    at_8 = {*everybody, ("start", 8), ("random weights", 8), ("student", 24)}
    at_24 = {*everybody, ("start", 24), ("random weights", 24)}
    assert set(found) == {(8, *other) for other in at_8} | {(24, *other) for other in at_24}
    score = {(r.encoder, r.width): r.score for r in scores.rows if r.probe == "linear"}
    for (width, other, other_width), d in found.items():
        against = (score["t0", 36] + score["t1", 24]) / 2 if other == TEACHERS_MEAN else score[other, other_width]
        assert d.value == pytest.approx(score["student", width] - against)
    same = found[24, "t1", 24]  # t1 is the student itself
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert found[24, "start", 24].low > 0.1


def test_scores_say_what_was_scored_and_survive_json(scores: Scores) -> None:
    (dataset,) = scores.datasets
    assert dataset.labels == {"blue": 24, "pink": 24, "white": 24}
    assert dataset.chance == pytest.approx(1 / 3)
    assert dataset.phantom and any("PHANTOM" in note for note in scores.notes)
    assert any("not known" in note for note in scores.notes)  # nothing was given as seen
    assert any("only 12 patients" in note for note in scores.notes)
    assert [(c.encoder, c.width, c.num_params, c.gflop) for c in scores.costs if c.kind == "teacher"] == [
        ("t0", 36, 9000, 4.0),
        ("t1", 24, 7000, 2.0),
    ]
    assert Scores.model_validate_json(scores.model_dump_json()) == scores
    assert json.loads(scores.model_dump_json())["widths"] == [8, 24]
    assert scores.row(dataset.name, "linear", "student").width == 24  # type: ignore[union-attr]
    assert scores.row(dataset.name, "linear", "nobody") is None


def test_evaluation_is_a_function_of_its_inputs(tiles: str, scores: Scores) -> None:
    again = evaluate(CONTENDERS, WIDTHS, config.Evaluate(tiles=(tiles,)), CFG, size=SIZE, batch=7).scores
    assert again == scores


def test_gflop_are_those_of_torchs_counter() -> None:
    layer = torch.nn.Linear(SIZE * SIZE * 3, 10, bias=False)

    def encode(views: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            return layer(torch.from_numpy(views).float().flatten(1))

    assert count_gflop(encode, SIZE) == pytest.approx(2 * SIZE * SIZE * 3 * 10 / 1e9)
    assert count_gflop(mean_colour, SIZE) is None


def test_names_are_as_long_as_they_must_be() -> None:
    assert short_names(("s3://b/x/phantom/", "s3://b/x/crc7k")) == ("phantom", "crc7k")
    assert short_names(("/data/a/test", "/data/b/test")) == ("a/test", "b/test")
    with pytest.raises(config.ConfigError, match="twice"):
        short_names(("/data/a", "/data/a"))


def test_a_width_that_the_student_does_not_have_is_refused(tiles: str) -> None:
    with pytest.raises(EmbedError, match="student gives 24 numbers, so it has no width 32"):
        evaluate(CONTENDERS, (8, 32), config.Evaluate(tiles=(tiles,)), CFG, size=SIZE)


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(config.ConfigError, match="evaluate.tiles is empty"):
        evaluate(CONTENDERS, WIDTHS, config.Evaluate(), CFG, size=SIZE)


# ---------------------------------------------------------------- what distillation saw


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Patients p0 ... p3 at site north as split "distil", p20 ... as split "other"."""
    return write(tmp_path_factory.mktemp("distilled"), [*rows(24, split="distil"), *rows(12, 120, split="other")])


def test_seen_patients_are_refused_by_name(distilled: str, tiles: str) -> None:
    seen = collect_seen(distilled, CFG, ("distil",))
    cfg = config.Evaluate(tiles=(tiles,))
    with pytest.raises(SeenError, match=r"distillation saw 4 of 12 patients \(p0, p1, p2 \.\.\.\) of phantom"):
        evaluate(CONTENDERS, WIDTHS, cfg, CFG, size=SIZE, seen=seen)


def test_seen_patients_are_scored_when_asked_and_the_rows_say_so(distilled: str, tiles: str) -> None:
    seen = collect_seen(distilled, CFG, ("distil",))
    cfg = config.Evaluate(tiles=(tiles,), allow_seen=True)
    found = evaluate(CONTENDERS, WIDTHS, cfg, CFG, size=SIZE, seen=seen).scores
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
        evaluate(CONTENDERS, WIDTHS, config.Evaluate(tiles=(uri,)), CFG, size=SIZE, seen=seen)


def test_a_chance_likeness_is_left_out_and_said(distilled: str, tmp_path: Path) -> None:
    fresh = [{**row, "slide_id": f"f{i}", "patient_id": f"f{i // 6}"} for i, row in enumerate(rows(150, 1000))]
    fresh[7]["image"] = png(tile("blue", 0))  # the first tile of the distillation
    uri = write(tmp_path / "fresh", fresh)
    seen = collect_seen(distilled, CFG, ("distil",))
    found = evaluate(CONTENDERS[:1], WIDTHS, config.Evaluate(tiles=(uri,)), CFG, size=SIZE, seen=seen).scores
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


# ---------------------------------------------------------------- neighbours


def panel(tiles: str) -> tuple[Embedded, Panel]:
    embedded = embed_tiles({"student": good}, tiles, CFG, size=SIZE)
    return embedded, nearest("phantom", embedded, "student", WIDTHS, num_queries=5, k=4)


def test_neighbours_are_the_most_similar_tiles_of_other_patients(tiles: str) -> None:
    embedded, found = panel(tiles)
    row_of = {tile_id: i for i, tile_id in enumerate(embedded.tile_ids)}
    for query in found.queries:
        row = row_of[query.query.tile_id]
        for width, pictures in query.nearest.items():
            x = embedded.vectors["student"][:, :width].astype(np.float64)
            cosine = x @ x[row] / (np.linalg.norm(x, axis=1) * np.linalg.norm(x[row]))
            cosine[embedded.patients == embedded.patients[row]] = -2
            np.testing.assert_allclose([p.similarity for p in pictures], np.sort(cosine)[::-1][:4], atol=1e-4)
            assert all(embedded.patients[row_of[p.tile_id]] != embedded.patients[row] for p in pictures)


def test_queries_take_turns_among_the_classes(tiles: str) -> None:
    _, found = panel(tiles)
    assert [q.query.label for q in found.queries] == ["blue", "pink", "white", "blue", "pink"]
    hits = [p.label == q.query.label for q in found.queries for p in q.nearest[8]]
    assert found.agreement(8) == pytest.approx(np.mean(hits)) and len(hits) == 20
    assert Panel.model_validate_json(found.model_dump_json()) == found


def test_units_are_told_from_the_ids(tmp_path: Path) -> None:
    single = [{**row, "slide_id": f"x{i}", "patient_id": f"x{i}"} for i, row in enumerate(rows(30))]
    slides = [{**row, "slide_id": f"x{i // 3}", "patient_id": f"x{i // 3}"} for i, row in enumerate(rows(30))]
    for name, data, unit, n in (("tile", single, "tile", 30), ("slide", slides, "slide", 10)):
        embedded = embed_tiles({"a": mean_colour}, write(tmp_path / name, data), CFG, size=SIZE)
        facts = comparing.describe(name, embedded, 5, False, False)
        assert (facts.unit, facts.num_groups) == (unit, n)
