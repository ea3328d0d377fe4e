"""Embedding pass, comparison and neighbours, on small tile data sets with known answers."""

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
from pathryoshka.evaluate.compare import evaluate
from pathryoshka.evaluate.contenders import Contender
from pathryoshka.evaluate.datasets import describe, short_names
from pathryoshka.evaluate.embed import Embedded, EmbedError, count_gflop, embed_tiles
from pathryoshka.evaluate.folds import make_folds
from pathryoshka.evaluate.neighbours import Panel, nearest
from pathryoshka.evaluate.scores import PCA, TEACHERS_MEAN, Scores
from pathryoshka.evaluate.scoring import PROTOCOLS
from pathryoshka.tiles import shards
from pathryoshka.tiles.phash import perceptual_hash
from pathryoshka.tiles.views import identity_view
from tests.blotches import CFG, COLOURS, CONTENDERS, SIZE, WIDTHS, good, mean_colour, rows, tile, write


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write(tmp_path_factory.mktemp("data") / "phantom", rows(72), {"kind": "phantom", "seed": 0})


@pytest.fixture(scope="module")
def scores(tiles: str) -> Scores:
    cfg = config.Evaluate(tiles=(tiles,))
    return evaluate(CONTENDERS, WIDTHS, cfg, CFG, size=SIZE).scores


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
        assert [len(batch) for batch in batches] == ([10] * 7 + [2]) * 2  # the second time in other stains
        np.testing.assert_array_equal(np.concatenate(batches[:8]), want)
        np.testing.assert_array_equal(embedded.vectors[name], np.concatenate(batches[:8]).reshape(72, -1)[:, :5])
        np.testing.assert_array_equal(embedded.restained[name], np.concatenate(batches[8:]).reshape(72, -1)[:, :5])
        assert (embedded.tile_ids[embedded.restained_rows] == embedded.tile_ids).all()
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
        found = {(r.encoder, r.width): r for r in scores.rows if r.protocol == probe}
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
    assert any(note.startswith("PCA of the teachers ends at width 0") for note in scores.notes)
    assert max(r.width for r in scores.rows if r.kind == "student") == 24


def test_pca_of_rich_teachers_stands_at_each_width(tiles: str) -> None:
    def rich(views: np.ndarray) -> np.ndarray:
        return views[:, ::4, ::4].reshape(len(views), -1).astype(np.float32)

    both = (*CONTENDERS[:1], Contender("rich", "teacher", rich, 1, 1.0))
    found = evaluate(both, WIDTHS, config.Evaluate(tiles=(tiles,)), CFG, size=SIZE).scores
    assert [r.width for r in found.rows if r.encoder == PCA and r.protocol == "linear"] == [8, 24]


def test_differences_are_against_everybody_and_paired(scores: Scores) -> None:
    found = {(d.width, d.other, d.other_width): d for d in scores.differences if d.protocol == "linear"}
    everybody = {("t0", 36), ("t1", 24), (TEACHERS_MEAN, 0)}
    at_8 = {*everybody, ("start", 8), ("random weights", 8), ("student", 24)}
    at_24 = {*everybody, ("start", 24), ("random weights", 24)}
    assert set(found) == {(8, *other) for other in at_8} | {(24, *other) for other in at_24}
    score = {(r.encoder, r.width): r.score for r in scores.rows if r.protocol == "linear"}
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
        facts = describe(name, embedded, make_folds(embedded.labels, embedded.patients), {}, False)
        assert (facts.unit, facts.num_groups) == (unit, n)


# ---------------------------------------------------------------- every protocol


def test_every_family_scores_what_is_good_above_what_is_blind(tiles: str) -> None:
    cfg = config.Evaluate(tiles=(tiles,), folds=3, protocols=("adam", "few_shot", "retrieval", "clustering"))
    found = evaluate(CONTENDERS[:2], WIDTHS, cfg, CFG, size=SIZE).scores
    (dataset,) = found.datasets
    scored = {row.protocol for row in found.rows}
    elsewhere = {name for name in PROTOCOLS if name.startswith(("pairs/", "robustness"))} | {"attention", "expression"}
    assert scored == set(PROTOCOLS) - elsewhere
    for protocol in scored - {"calibration", "stain/cosine", "stain/found"}:
        mine, blind = (found.row(dataset.name, protocol, name) for name in ("student", "start"))
        assert mine is not None and blind is not None and mine.score > blind.score + 0.1, protocol
    with pytest.raises(config.ConfigError, match="evaluate.protocols names 'lineer'; there are linear, knn"):
        evaluate(CONTENDERS[:1], WIDTHS, config.Evaluate(tiles=(tiles,), protocols=("lineer",)), CFG, size=SIZE)
