"""The page in a real browser, headless Chromium, against the door over a real model: with a pointer, with the keyboard
alone, without a network, and as axe-core sees it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="needs playwright (pip install 'pathryoshka[dev]')")
import numpy as np
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from pathryoshka import config
from pathryoshka.export.load import load
from pathryoshka.serve.lookup import open_lookup
from pathryoshka.serve.slides import find_slides
from tests.browsers import chromium, complaints, needs_chromium
from tests.exports import export
from tests.serving import TOKEN, house_of, listening, write_index

pytestmark = [
    pytest.mark.slow,
    needs_chromium("the page was not opened"),
]
DATA = Path(__file__).parent / "data"
SLIDE = DATA / "slides" / "CMU-1-Small-Region.svs"
TILES = sorted((DATA / "crc7k").glob("*.jpg"))
REFUSED = "status of 415"  # browsers note refusals by themselves
PICTURES = os.environ.get("PATHRYOSHKA_SCREENSHOTS")  # a folder, for whoever wants to look


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    where = tmp_path_factory.mktemp("page")
    export(where / "export")
    model = load(where / "export")
    tiles = {file.stem.replace("___", "/"): np.array(Image.open(file).convert("RGB")) for file in TILES[::2]}
    write_index(where / "index", model, tiles, SLIDE, side=224)
    index = open_lookup(where / "index", model.model_id, model.width, config.Storage())
    with listening(house_of(model, index=index, slides=find_slides(SLIDE.parent))) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, open; whatever it complains of or asks of another host fails the test."""
    context = browser.new_context(viewport={"width": 1200, "height": 1300}, reduced_motion="reduce")
    shown = context.new_page()
    wrong = complaints(shown, (url, "blob:", "data:"), lambda kind, text: kind != "error" or REFUSED in text)
    shown.goto(f"{url}/#token={TOKEN}")
    expect(shown.locator("#work")).to_be_visible(timeout=20_000)
    yield shown
    context.close()
    assert not wrong


def choose(page: Page, tile: Path = TILES[0]) -> None:
    page.set_input_files("#file", str(tile))
    expect(page.locator("#neighbours li")).to_have_count(12, timeout=20_000)


def neighbours(page: Page) -> list[str]:
    return page.locator("#neighbours button").evaluate_all("all => all.map((one) => one.title)")


def until(page: Page, holds: str, given: object = None) -> None:
    """Waits for a JavaScript predicate; Playwright's own way of it needs an eval, which the page forbids."""
    deadline = time.monotonic() + 20
    while not page.evaluate(holds, given):
        assert time.monotonic() < deadline, holds
        page.wait_for_timeout(50)


def picture(page: Page, name: str) -> None:
    if PICTURES:
        page.screenshot(path=Path(PICTURES) / f"{name}.png", full_page=True)


def test_a_chosen_tile_shows_its_neighbours_and_the_width_changes_them_at_once(page: Page) -> None:
    choose(page)
    assert neighbours(page)[0] == TILES[0].stem.replace("___", "/")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/v1/search" in request.url else None)
    wide = neighbours(page)
    page.locator("#width").fill("0")
    expect(page.locator("#width-said")).to_have_text("16 of 48 numbers")
    narrow = neighbours(page)
    assert narrow != wide and not asked  # redrawn from what is there
    kept = page.locator("#neighbours button:not(.new)").evaluate_all("all => all.map((one) => one.title)")
    assert set(kept) == set(narrow) & set(wide)
    expect(page.locator("#summary")).to_contain_text(f"{len(kept)} of these 12")
    picture(page, "neighbours")


def test_tokens_are_laid_over_the_tile(page: Page) -> None:
    choose(page)
    page.check("#show-tokens")
    until(page, "() => document.getElementById('tokens').naturalWidth === 2")  # the grid of the tiny student
    first = page.locator("#tokens").get_attribute("src")
    page.locator("#width").fill("0")
    until(page, "before => document.getElementById('tokens').src !== before", first)


def test_a_click_on_the_slide_takes_the_tile_and_draws_its_heat_map(page: Page) -> None:
    page.locator("#viewer canvas").first.wait_for()
    page.wait_for_timeout(500)
    page.locator("#viewer").click(position={"x": 600, "y": 300})
    expect(page.locator("#legend")).to_be_visible(timeout=20_000)
    expect(page.locator("#neighbours li")).to_have_count(12, timeout=20_000)
    assert not any(name.startswith(SLIDE.stem) for name in neighbours(page))  # of another slide, unless asked
    assert colours(page) > 20
    page.uncheck("#others")
    until(
        page,
        "name => [...document.querySelectorAll('#neighbours button')].some((one) => one.title.startsWith(name))",
        SLIDE.stem,
    )
    before = page.locator("#low").inner_text()
    page.locator("#width").fill("0")
    expect(page.locator("#low")).not_to_have_text(before)
    picture(page, "heat-map")


def colours(page: Page) -> int:
    """Distinct colours of the heat map."""
    return page.evaluate("""() => {
        const canvas = document.querySelector("canvas.heat");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        const seen = new Set();
        for (let i = 0; i < data.length; i += 4) if (data[i + 3]) seen.add(data.slice(i, i + 3).join());
        return seen.size;
    }""")


def test_with_the_keyboard_alone(page: Page) -> None:
    choose(page)
    page.locator("#width").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#width")).to_have_attribute("aria-valuetext", "32 of 48 numbers")
    page.locator("#neighbours button").nth(1).focus()
    second = neighbours(page)[1]
    page.keyboard.press("Enter")
    until(page, "name => document.querySelector('#neighbours button')?.title === name", second)
    page.locator("#viewer").focus()
    for key in ("+", "+", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#same-slide")).to_be_visible(timeout=20_000)
    expect(page.locator("#tile")).to_have_attribute("alt", re.compile(rf"of {SLIDE.stem}"))


def test_what_is_no_tile_is_said_and_the_page_goes_on(page: Page, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no image at all")
    page.set_input_files("#file", str(tmp_path / "no.png"))
    expect(page.get_by_role("alert")).to_contain_text("no JPEG, PNG or WebP image", timeout=20_000)
    choose(page)
    expect(page.get_by_role("alert")).to_be_empty()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    choose(page)
    page.locator("#width").fill("0")
    page.locator("#viewer").click(position={"x": 600, "y": 300})
    expect(page.locator("#legend")).to_be_visible(timeout=20_000)
    picture(page, scheme)
    found = Axe().run(page).response["violations"]
    assert not [(one["id"], one["nodes"][0]["html"][:120]) for one in found if one["impact"] in ("serious", "critical")]


def test_without_a_token_the_page_asks_for_it(browser: Browser, url: str) -> None:
    page = browser.new_page()
    page.goto(url)
    expect(page.locator("#token-form")).to_be_visible(timeout=20_000)
    assert not [one for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
    page.fill("#token", TOKEN)
    page.get_by_role("button", name="Open").click()
    expect(page.locator("#work")).to_be_visible(timeout=20_000)
    picture(page, "token")
    page.close()


def test_the_token_leaves_the_address(page: Page) -> None:
    assert TOKEN not in page.url


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    choose(page)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    picture(page, "phone")
