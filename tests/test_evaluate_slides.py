"""Slide labels: bags of tiles, means, attention, and what a CSV may not say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pathryoshka import config
from pathryoshka.evaluate.compare import evaluate
from pathryoshka.evaluate.embed import EmbedError, embed_tiles
from pathryoshka.evaluate.scoring import cut, normalise
from pathryoshka.evaluate.slides import Bags, as_slides, slide_labels
from pathryoshka.tiles.sources import ImportRefused
from tests.blotches import CFG, CONTENDERS, SIZE, WIDTHS, good, rows, write

NUM_SLIDES = 24


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Slides of six tiles; in every other one a third of the tiles are pink, else none: no tile has a label."""
    made = []
    for row in rows(6 * NUM_SLIDES, label=None):
        i = int(row["tile_id"].split("/")[1])
        slide = i // 6
        if slide % 2 == 0 and i % 3 == 1:  # pink
            other = rows(1, i + 1)[0]  # white instead
            row["image"] = other["image"]
        made.append({**row, "slide_id": f"s{slide}", "patient_id": f"p{slide // 2}"})
    return write(tmp_path_factory.mktemp("data") / "slides", made)


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    file = tmp_path / "slides.csv"
    lines = [f"s{s},{'tumour' if s % 2 else 'benign'},p{s // 2}" for s in range(NUM_SLIDES)]
    file.write_text("\n".join(["slide,label,patient", *lines]) + "\n")
    return file


def test_slides_are_scored_by_their_mean_and_by_attention(tiles: str, csv: Path) -> None:
    cfg = config.Evaluate(tiles=(tiles,), slides=str(csv), folds=4, protocols=())
    found = evaluate(CONTENDERS[:2], WIDTHS, cfg, CFG, size=SIZE)
    (facts,) = found.scores.datasets
    assert (facts.thing, facts.num_tiles, facts.num_groups, facts.unit) == ("slide", NUM_SLIDES, 12, "patient")
    assert facts.labels == {"benign": 12, "tumour": 12}
    for protocol in ("linear", "attention"):
        mine = found.scores.row(facts.name, protocol, "student")
        blind = found.scores.row(facts.name, protocol, "start")
        assert mine is not None and blind is not None and mine.score > 0.85 > blind.score
    assert not [r for r in found.scores.rows if r.protocol.startswith("stain")]


def test_a_slides_embedding_is_the_mean_of_its_tiles(tiles: str, csv: Path) -> None:
    known = slide_labels(str(csv), CFG)
    embedded = embed_tiles({"a": good}, tiles, CFG, size=SIZE, slides={s: label for s, (label, _) in known.items()})
    assert len(embedded) == 6 * NUM_SLIDES and set(embedded.labels) == {"benign", "tumour"}
    slides, bags = as_slides(embedded, known)
    x = cut(embedded.vectors["a"], 8)
    for row, name in enumerate(slides.slides):
        mine = x[embedded.slides == name]
        np.testing.assert_allclose(bags.pooled(x)[row], mine.mean(0), atol=1e-6)
        assert slides.labels[row] == known[name][0]
    assert normalise(bags.pooled(x)).shape == (NUM_SLIDES, 8)
    np.testing.assert_array_equal(Bags(np.array([1, 0, 1])).pooled(np.array([[1.0], [5.0], [3.0]])), [[5], [2]])


def test_slides_without_tiles_are_noted_and_tiles_without_slides_left_out(tiles: str, csv: Path) -> None:
    lines = csv.read_text().splitlines()
    csv.write_text("\n".join([*lines[:9], "s99,tumour,p99"]) + "\n")
    cfg = config.Evaluate(tiles=(tiles,), slides=str(csv), folds=2, protocols=())
    found = evaluate(CONTENDERS[:1], WIDTHS, cfg, CFG, size=SIZE)
    assert found.scores.datasets[0].num_tiles == 8
    assert any(note.startswith("1 slides of") and "(s99)" in note for note in found.scores.notes)


def test_what_a_csv_of_slides_may_not_say(tiles: str, csv: Path) -> None:
    csv.write_text("slide,label\ns1,tumour\ns2,\n")
    with pytest.raises(EmbedError, match="gives slide s2 no label"):
        slide_labels(str(csv), CFG)
    csv.write_text("slide,lable\ns1,tumour\n")
    with pytest.raises(ImportRefused, match="did you mean 'label'"):
        slide_labels(str(csv), CFG)
    csv.write_text("slide,label\nx1,tumour\nx2,benign\n")
    cfg = config.Evaluate(tiles=(tiles,), slides=str(csv))
    with pytest.raises(EmbedError, match="has no tile of the 2 labelled slides; do their names agree"):
        evaluate(CONTENDERS[:1], WIDTHS, cfg, CFG, size=SIZE)
