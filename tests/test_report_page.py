"""The report of a real evaluation in a real browser, headless Chromium, opened as a file without a network: nothing it
complains of, every control by the keyboard alone, axe-core, a phone, the dark, paper."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="needs playwright (pip install 'pathryoshka[dev]')")
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from pathryoshka import config
from pathryoshka.benchmarks.convert import convert
from pathryoshka.benchmarks.rows import benchmark
from pathryoshka.evaluate.compare import evaluate
from pathryoshka.evaluate.contenders import Contender
from pathryoshka.evaluate.report import Story, write_report
from pathryoshka.evaluate.token_map import token_maps
from pathryoshka.export.load import Embedder, load
from pathryoshka.runs.results import keep_evaluation
from pathryoshka.scorecard import other
from pathryoshka.tiles.views import decode, identity_view
from tests import benchmark_trees as trees
from tests.blotches import CFG, write
from tests.browsers import chromium, complaints, needs_chromium
from tests.exports import export
from tests.test_report import log

pytestmark = [
    pytest.mark.slow,
    needs_chromium("the report was not opened"),
]
TILES = sorted((Path(__file__).parent / "data" / "crc7k").glob("*.jpg"))
PICTURES = os.environ.get("PATHRYOSHKA_SCREENSHOTS")  # a folder, for whoever wants to look


def crc(to: Path) -> str:
    """The real tiles that ship; three of each class a unit, so that there are patients to speak of."""
    rows = []
    for i, file in enumerate(TILES):
        label, name = file.stem.split("___")
        unit = f"{label}-{i % 4}"
        rows.append({"tile_id": f"crc/{name}", "slide_id": unit, "patient_id": unit, "site": "north", "split": None}
                    | {"image": file.read_bytes(), "x": None, "y": None, "width": 224, "height": 224, "mpp": 0.5}
                    | {"tissue": 1.0, "label": label})  # fmt: skip
    return write(to, rows)


def student(where: Path, name: str, kind: str, seed: int) -> tuple[Contender, Embedder]:
    from tests.exports import heads_of, student_of

    made, cfg = student_of("vit", seed)
    export(where / name, student=made, heads=heads_of(made, cfg))
    model = load(where / name)
    return Contender(name, kind, model.embed, 2_790_000, 0.36, model.model_id, model.widths), model  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With classes, pairs and expression, a run's log and config, neighbours, worst tiles, token maps."""
    where = tmp_path_factory.mktemp("report")
    trees.hest(where / "hest")
    trees.plism(where / "plism", stains=("GIV", "HR", "MY"), scanners=("AT2", "P"), side=4)
    convert(benchmark("hest"), str(where / "hest/IDC"), str(where / "tiles/hest-idc"), CFG)
    convert(benchmark("plism"), str(where / "plism"), str(where / "tiles/plism"), CFG)
    run = config.make_run({"name": "colon", "views": {"size": 32}})
    mine, model = student(where, "student", "student", 0)
    others = [student(where, name, name, seed)[0] for name, seed in (("start", 1), ("random", 2))]
    teachers = [other(name, f"efficientnet_{name}", run) for name in ("lite0", "lite1")]
    contenders = [mine, *others, *(Contender(t.name, "teacher", t.encode, t.num_params) for t in teachers)]
    uris = (crc(where / "tiles/crc"), str(where / "tiles/hest-idc"), str(where / "tiles/plism"))
    result = evaluate(contenders, model.widths, config.Evaluate(tiles=uris, folds=3), CFG, size=32)
    few = [decode(file.read_bytes()) for file in TILES[::12]]
    import numpy as np

    views = np.stack([identity_view(tile, 32) for tile in few])
    tokens = np.asarray(model.tokens(views))
    thumbs = [file.read_bytes() for file in TILES[::12]]
    names = [file.stem.split("___") for file in TILES[::12]]
    maps = token_maps([n for _, n in names], [label for label, _ in names], thumbs, tokens, (2, 2), (16, 48))
    details = keep_evaluation(result, str(where), CFG, "", maps)
    story = Story(
        result.scores, details, run, log(), {"lite0/summary": 0.1}, {"lite0": "Apache-2.0", "lite1": "Apache-2.0"},
        {"distil": 340, "evaluate": 60}, "2 CPU cores",
    )  # fmt: skip
    write_report(str(where / "report.html"), story, CFG)
    return where / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    """The report from its file, offline; a line in the console or a request for anything else fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True)
    shown = context.new_page()
    wrong = complaints(shown, ("file:", "data:"))
    shown.goto(report.as_uri())
    yield shown
    context.close()
    assert not wrong


def opened(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true })")


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"report-{name}.png", full_page=True)


def broken_pictures(page: Page) -> int:
    return page.evaluate("[...document.images].filter((one) => !one.complete || !one.naturalWidth).length")


def test_it_opens_from_a_file_without_a_network(page: Page) -> None:
    assert page.title() == "Pathryoshka: colon"
    assert page.locator("figure svg:visible").count() >= 4 and broken_pictures(page) == 0
    headings = page.locator("h2").all_inner_texts()
    assert {"What each width is worth", "What it costs", "What to keep in mind"} <= set(headings)
    picture(page, "1280")
    opened(page)
    picture(page, "1280-open")


def test_the_keyboard_alone_reaches_and_opens_everything(page: Page) -> None:
    """Tab goes to each control once, in the order of the page, and Enter opens what is folded."""
    wanted = page.locator("summary, a[href], button, [tabindex='0']").evaluate_all(
        "all => all.filter((one) => one.checkVisibility()).length"
    )
    seen = 0
    for _ in range(wanted + 20):
        page.keyboard.press("Tab")
        kind = page.evaluate(
            """() => {
                const at = document.activeElement;
                if (at === document.body || at.dataset.reached) return "";
                at.dataset.reached = "yes";
                return at.localName;
            }"""
        )
        seen += bool(kind)
        if kind == "summary":
            page.keyboard.press("Enter")
    assert page.locator("summary, a[href], button").evaluate_all("all => all.every((one) => one.dataset.reached)")
    assert seen >= wanted and page.locator("details:not([open])").count() == 0
    assert page.locator("summary").count() > 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(page: Page, scheme: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    opened(page)
    picture(page, f"{width}-{scheme}")
    found = Axe().run(page).response["violations"]
    assert not [(one["id"], one["nodes"][0]["html"][:120]) for one in found if one["impact"] in ("serious", "critical")]


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    picture(page, "390")
    opened(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_it_prints(page: Page, tmp_path: Path) -> None:
    page.emulate_media(media="print")
    assert page.locator("figure .wide svg").first.is_visible() and not page.locator("figure .narrow").first.is_visible()
    paper = page.pdf(format="A4", margin={"top": "15mm", "bottom": "15mm", "left": "12mm", "right": "12mm"})
    pages = re.findall(rb"/Type\s*/Page\b", paper)
    assert paper.startswith(b"%PDF") and 1 <= len(pages) <= 40
    if PICTURES:
        (Path(PICTURES) / "report.pdf").write_bytes(paper)
