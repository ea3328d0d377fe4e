"""The report: one well-formed page that stands alone, says what the scores say, and marks what has to be marked."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from pathryoshka import config, storage
from pathryoshka.evaluate.details import Details
from pathryoshka.evaluate.neighbours import Panel, Picture, Query
from pathryoshka.evaluate.pictures import (
    loss_figure,
    mark_scores,
    score_figure,
    short,
    spread,
    thinned,
    thousands,
    to_png,
)
from pathryoshka.evaluate.report import Story, duration, headline, render, write_report
from pathryoshka.evaluate.scores import PCA, TEACHERS_MEAN, Cost, DataSet, Difference, Row, Scores
from pathryoshka.page import COLOURS

CFG = config.Storage()
WIDTHS = (24, 48, 96, 192)
VOID = {"meta", "img", "br"}


def data_set(name: str, **over: Any) -> DataSet:
    facts = {
        "labels": {"benign": 60, "malignant": 40},
        "unit": "patient",
        "num_tiles": 100,
        "num_groups": 25,
        "num_folds": 5,
        "num_scored": 100,
    }
    return DataSet.model_validate({"name": name, **facts, "num_unlabelled": 0, "num_failed": 0, **over})


def scores_of(*datasets: DataSet, notes: tuple[str, ...] = ()) -> Scores:
    kinds = {"student": "student", "start": "start", "random weights": "random", PCA: "pca"}
    level = {"student": 0.78, "start": 0.55, "random weights": 0.5, PCA: 0.8, "lite0": 0.84, "lite1": 0.86}
    rows, differences = [], []
    for d in datasets:
        facts = {
            "dataset": d.name,
            "num_tiles": d.num_tiles,
            "num_groups": d.num_groups,
            "unit": d.unit,
            "seen": d.seen,
        }
        for probe, shift in (("linear", 0.0), ("knn", -0.03)):
            cells = [(n, k, w, level[n] + 0.01 * i) for n, k in kinds.items() for i, w in enumerate(WIDTHS)]
            cells += [("lite0", "teacher", 1280, level["lite0"]), ("lite1", "teacher", 1280, level["lite1"])]
            for name, kind, width, value in cells:
                value += shift
                rows.append(
                    Row.model_validate(
                        {**facts, "protocol": probe, "encoder": name, "kind": kind, "width": width}
                        | {"score": value, "low": value - 0.06, "high": value + 0.05, "error": 0.03, "freedom": 24}
                    )
                )
            against = ((192, TEACHERS_MEAN, 0, -0.04), (192, "start", 192, 0.23), (192, PCA, 192, 0.01))
            for width, other, other_width, value in (*against, (24, "student", 192, -0.03), (48, "student", 192, -0.5)):
                pair = {"dataset": d.name, "protocol": probe, "encoder": "student", "width": width, "other": other}
                differences.append(
                    Difference.model_validate(
                        {**pair, "other_width": other_width, "value": value, "low": value - 0.02, "high": value + 0.02}
                        | {"error": 0.01, "freedom": 24, "p": 0.0421}
                    )
                )
    costs = [("student", "student", 192, 2_790_000, 0.36), ("lite0", "teacher", 1280, 3_370_000, 0.26),
             ("lite1", "teacher", 1280, 4_140_000, None)]  # fmt: skip
    fields = ("encoder", "kind", "width", "num_params", "gflop")
    return Scores(
        rows=tuple(rows),
        differences=tuple(differences),
        datasets=datasets,
        costs=tuple(Cost.model_validate(dict(zip(fields, cost, strict=True))) for cost in costs),
        widths=WIDTHS,
        notes=notes,
    )


def picture(label: str, similarity: float = 1.0) -> Picture:
    sink = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(sink, "JPEG")
    jpeg = base64.b64encode(sink.getvalue()).decode()
    return Picture(tile_id=f"s/{label}", label=label, similarity=similarity, jpeg=jpeg)


def panel(dataset: str) -> Panel:
    near = {w: tuple(picture("benign" if i else "malignant", 0.9 - 0.1 * i) for i in range(5)) for w in (24, 192)}
    return Panel(dataset=dataset, encoder="student", queries=(Query(query=picture("benign"), nearest=near),))


def log() -> list[dict[str, float]]:
    lines = []
    for step in range(1, 6):
        line = {"step": step, "views": 100.0 * step, "loss": 1.0 / step}
        for teacher, best in (("lite0", 0.2), ("lite1", 0.3)):
            for kind in ("summary", "tokens"):
                for width in WIDTHS:
                    line[f"unexplained/{teacher}/{kind}/{width}"] = best + 0.7 / step + 0.1 * (width == 24)
            line[f"unexplained/{teacher}"] = best + 0.7 / step
        lines.append(line)
    return lines


def story(**over: Any) -> Story:
    given: dict[str, Any] = {
        "scores": scores_of(data_set("phantom", phantom=True), data_set("crc7k", unit="tile", num_groups=100)),
        "details": Details(panels=(panel("phantom"),)),
        "run": config.Run(name="demo"),
        "metrics": log(),
        "floors": {"lite0/summary": 0.1, "lite1/summary": 0.12},
        "licences": {"lite0": "Apache-2.0"},
        "seconds": {"distil": 340, "evaluate": 60},
        "machine": "2 CPU cores",
        "notes": ("a note of the run",),
    }
    return Story(**{**given, **over})


class Page(HTMLParser):
    """Tags balanced, attributes, text outside of style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


@pytest.fixture(scope="module")
def html() -> str:
    return render(story())


def test_the_page_is_well_formed_and_stands_alone(html: str) -> None:
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "base")]
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset"):
                assert (value or "").startswith(("data:image/", "#")), (tag, value)
    assert not re.search(r"url\((?!#)|@import", html)


def test_ids_are_unique_and_every_reference_has_its_target(html: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert used and used <= set(ids)


def test_pictures_have_words_for_those_who_do_not_see_them(html: str) -> None:
    page = Page(html)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 11 and all(attributes.get("alt") for attributes in images)
    described = [attributes["aria-label"] for tag, attributes in page.tags if attributes.get("role") == "img"]
    assert len(described) == 4  # two data sets, prices and losses
    assert "student: .78 at 24, .79 at 48, .80 at 96, .81 at 192" in str(described[0])
    assert all(attributes.get("aria-hidden") == "true" for tag, attributes in page.tags if tag == "svg")


def test_the_headline_has_the_numbers_of_the_scores() -> None:
    text = re.sub("<[^>]+>", "", headline(story().scores)).replace("&ndash;", "-").replace("\u00a0", " ")
    assert text == (
        "A student of 2.79 M parameters, where its 2 teachers have 3.37 M to 4.14 M each, scores .81 [.75-.86] on "
        "unseen patients of phantom; the teachers reach .85 on average, guessing .50. The first 24 of its 192 numbers "
        "alone reach .78."
    )


def test_the_tables_have_every_score_and_cost(html: str) -> None:
    text = Page(html).text
    for row in story().scores.rows:
        assert f"{short(row.score)} [{short(row.low)}–{short(row.high)}]" in text
    assert "all 192 numbers, paired points swap p against mean of teachers −4.0 [−6.0 to −2.0] worse .042" in text
    assert "against start +23.0 [+21.0 to +25.0] better" in text
    assert "against PCA of teachers +1.0 [−1.0 to +3.0] unclear" in text
    assert "first 24 against all −3.0 [−5.0 to −1.0] worse" in text and "−50.0" not in text
    assert "lite0 3.37 M 0.26 1280 Apache-2.0" in text
    assert "lite1 4.14 M not counted 1280 –" in text


def test_phantom_and_seen_are_marked_where_they_are_read(html: str) -> None:
    text = Page(html).text
    assert "PHANTOM. phantom is tissue drawn by a program" in text
    assert '<h3>phantom<span class="tag">PHANTOM</span></h3>' in html and "<h3>crc7k</h3>" in html
    note = "SEEN: 4 of 12 patients of x were in the distillation; its scores flatter the student."
    flattered = render(story(scores=scores_of(data_set("x", seen=True), notes=(note,))))
    assert f'<p class="warn">{note}</p>' in flattered and '<span class="tag">SEEN</span>' in flattered
    assert "on seen and unseen patients of x" in flattered and "PHANTOM" not in flattered


def test_notes_config_times_and_agreement_are_told(html: str) -> None:
    text = Page(html).text
    for said in (
        "a note of the run",
        "the intervals are over patients, not over seeds",
        "distil 5.7 min evaluate 60 s together 6.7 min",
        "2 CPU cores",
        "global_batch: 1024",
        "same class: 80% at 24 numbers, 80% at 192 numbers",
    ):
        assert said in text
    assert html.count('class="same"') == 8 and html.count('class="other"') == 2


def test_names_from_data_are_text_not_markup() -> None:
    evil = '<script>alert("1")</script>&'
    scores = scores_of(data_set(evil, labels={evil: 5, "b": 5}), notes=(evil,))
    page = Page(
        render(story(scores=scores, details=Details(panels=(panel(evil),)), machine=evil, licences={"lite0": evil}))
    )
    assert "script" not in {tag for tag, _ in page.tags}
    assert evil in page.text


def test_colours_follow_the_theme_and_nothing_is_painted_fixed(html: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html, flags=re.S)
    assert len(drawings) == 8
    for drawing in drawings:
        assert "var(--student)" in drawing or "var(--teacher0)" in drawing
        assert not re.search(r"#[0-9a-f]{6}\b", drawing)
    assert "prefers-color-scheme: dark" in html and "@media print" in html


@pytest.mark.parametrize("theme", [0, 1])
def test_letters_and_lines_stand_out_from_the_paper(theme: int) -> None:
    """WCAG contrast: 4.5 for what is read, 3 for what is only seen."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    paper = luminance(COLOURS["paper"][theme])
    for name, pair in COLOURS.items():
        own = luminance(pair[theme])
        contrast = (max(own, paper) + 0.05) / (min(own, paper) + 0.05)
        need = {"paper": 1, "line": 1, "random": 3, "start": 3}.get(name, 4.5)
        assert contrast >= need, (name, contrast)
    assert len({pair[0] for pair in COLOURS.values()}) == len(COLOURS)


def test_the_plot_shows_the_scores() -> None:
    scores = story().scores
    figure = score_figure(scores, scores.datasets[0])
    linear = figure.axes[0]
    lines = {line.get_label(): line for line in linear.get_lines()}
    np.testing.assert_allclose(
        np.array(lines["student (95 %)"].get_xydata()), [(24, 0.78), (48, 0.79), (96, 0.8), (192, 0.81)]
    )
    np.testing.assert_allclose(np.array(lines["PCA of teachers"].get_ydata()), [0.8, 0.81, 0.82, 0.83])
    low, high = linear.get_ylim()
    assert low < 0.44 and high > 0.91  # nothing is cut off
    assert linear.get_xscale() == "log"
    assert {"lite0 .84", "lite1 .86", "chance", ".78", ".81"} <= {text.get_text() for text in linear.texts}


def test_the_loss_plot_shows_the_full_width_and_its_floor() -> None:
    figure = loss_figure(log(), {"lite0/summary": 0.1})
    assert figure is not None
    summary, tokens = figure.axes
    curve = next(line for line in summary.get_lines() if len(line.get_xdata()) == 5)  # type: ignore[arg-type]
    np.testing.assert_allclose(np.array(curve.get_xydata()), [(100 * s, 0.2 + 0.7 / s) for s in range(1, 6)])
    assert any(np.allclose(line.get_ydata(), 0.1) for line in summary.get_lines())  # type: ignore[arg-type]
    assert not any(np.allclose(line.get_ydata(), 0.1) for line in tokens.get_lines())  # type: ignore[arg-type]
    assert loss_figure([{"views": 1, "loss": 2.0}], {}) is None and loss_figure([], {}) is None


def test_a_story_without_run_log_or_teachers_is_still_told() -> None:
    scores = scores_of(data_set("x"))
    alone = scores.model_copy(
        update={
            "rows": tuple(r for r in scores.rows if r.kind == "student"),
            "costs": scores.costs[:1],
            "differences": (),
        }
    )
    text = Page(render(Story(scores=alone))).text
    assert "A student of 2.79 M parameters scores .81" in text and "guessing .50" in text
    assert "How it learned" not in text and "alike" not in text.split("What to keep in mind")[0]


def test_a_report_and_its_picture_are_written_where_asked(tmp_path: Path) -> None:
    write_report(str(tmp_path / "out" / "report.html"), story(), CFG)
    assert (tmp_path / "out" / "report.html").read_text() == render(story())
    with Image.open(tmp_path / "out" / "widths.png") as image:
        assert image.format == "PNG" and image.width > 1200
    assert sorted(storage.list_files(str(tmp_path / "out"), CFG)) == ["report.html", "widths.png"]
    assert to_png(score_figure(story().scores, story().scores.datasets[0])) == to_png(
        score_figure(story().scores, story().scores.datasets[0])
    )


def test_numbers_are_written_as_people_read_them() -> None:
    assert [short(v) for v in (0.814, 1.0, 0.0, -0.05)] == [".81", "1.00", ".00", "\N{MINUS SIGN}.05"]
    assert [thousands(v) for v in (950, 12_000, 2_790_000, 1.1e9)] == ["950", "12\u00a0k", "2.79\u00a0M", "1.1\u00a0G"]
    assert [duration(s) for s in (12, 120, 7200)] == ["12 s", "2.0 min", "2.0 h"]
    assert thinned([24, 25, 26, 48, 180, 192], {200, 1280}, 1.3) == [24, 48, 192, 1280]


def test_labels_move_apart_and_keep_their_order() -> None:
    moved = spread([("a", 0.80, 0), ("b", 0.81, 1), ("c", 0.5, 2)], 0.05)
    heights = {what: height for what, height, _ in moved}
    assert heights["b"] - heights["a"] == pytest.approx(0.05, abs=1e-6)
    assert heights["a"] + heights["b"] == pytest.approx(1.61) and heights["c"] == 0.5


@pytest.mark.parametrize("limits", [(0.5, 0.92), (0.6, 0.93), (0, 1.005), (-0.5, 1.005), (0.9, 1.0), (0.72, 0.99)])
def test_every_tick_has_a_number_of_its_own(limits: tuple[float, float]) -> None:
    figure = Figure()
    ax = figure.subplots()
    ax.set_ylim(*limits)
    mark_scores(ax)
    figure.draw_without_rendering()
    said = [label.get_text() for label in ax.get_yticklabels()]
    assert len(said) == len(set(said)) >= 3, said
