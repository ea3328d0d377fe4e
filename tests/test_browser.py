"""The page of an export in headless Chromium: from a plain file server, offline, against golden vectors."""

from __future__ import annotations

import functools
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="needs playwright (pip install 'pathryoshka[dev]')")
pytest.importorskip("onnxruntime", reason="needs onnxruntime (pip install 'pathryoshka[onnx]')")
import numpy as np
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, expect
from safetensors.numpy import load_file

from pathryoshka.export.formats import check_formats, write_formats
from pathryoshka.export.load import load
from pathryoshka.export.record import FormatsError
from pathryoshka.tiles.views import identity_view
from tests.browsers import chromium, complaints, needs_chromium
from tests.exports import SIZE, export

TILE = sorted((Path(__file__).parent / "data" / "crc7k").glob("*.jpg"))[0]
PICTURES = os.environ.get("PATHRYOSHKA_SCREENSHOTS")  # a folder, for whoever wants to look
EMBED = """async (url) => {
    const students = await import(new URL("student.js", location.href).href);
    const student = await students.open();
    return Array.from(await students.embed(student, await (await fetch(url)).blob()));
}"""
VIEW = """async (url) => {
    const { decode, view } = await import(new URL("view.js", location.href).href);
    return Array.from(view(await decode(await (await fetch(url)).blob()), SIZE));
}""".replace("SIZE", str(SIZE))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("browser") / "export"
    export(to)
    write_formats(to, ["onnx"], browser=True)
    return to


def picture(folder: Path, name: str, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(folder / "formats" / "browser" / name)
    return name


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    handler = functools.partial(Quiet, directory=str(folder / "formats" / "browser"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def page(url: str) -> Iterator[Page]:
    """The page, open; whatever it complains of or asks of another host fails the test."""
    with chromium() as browser:
        shown = browser.new_page(viewport={"width": 1000, "height": 800})
        wrong = complaints(shown, (url, "blob:", "data:"), lambda kind, _: kind != "error")
        shown.goto(url)
        expect(shown.locator("#model")).to_contain_text("to PyTorch", timeout=60_000)
        yield shown
    assert not wrong


# ---------------------------------------------------------------- the folder


def test_the_page_is_whole_listed_and_looked_at_by_verify(folder: Path, tmp_path: Path) -> None:
    page = json.loads((folder / "formats" / "formats.json").read_text())["page"]
    assert {"index.html", "app.js", "model.onnx", "student.json", "golden/0.png", "golden/vectors.f32"} <= set(page)
    assert {"vendor/ort-wasm-simd-threaded.wasm", "vendor/onnxruntime-web.LICENSE.txt"} <= set(page)
    wasm = folder / "formats" / "browser" / "vendor" / "ort-wasm-simd-threaded.wasm"
    assert wasm.read_bytes()[:4] == b"\0asm"
    model_id = json.loads((folder / "pathryoshka.json").read_text())["model_id"]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert set(check_formats(copy, model_id)) == {"model.onnx"}
    (copy / "formats" / "browser" / "app.js").write_text("alert(1)")
    with pytest.raises(FormatsError, match="formats/browser/app.js is .* damaged or foreign"):
        check_formats(copy, model_id)


def test_formats_written_later_leave_the_page(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    write_formats(copy, ["torch-export"])
    model_id = json.loads((copy / "pathryoshka.json").read_text())["model_id"]
    assert set(check_formats(copy, model_id)) == {"model.onnx", "model.pt2"}


# ---------------------------------------------------------------- in a browser


@pytest.mark.slow
@needs_chromium("the page without a server was not opened")
class TestInChromium:
    def test_its_vectors_are_the_golden_ones(self, page: Page, folder: Path) -> None:
        want = load_file(folder / "golden.safetensors")["vectors"]
        for i in (0, 5):
            got = np.array(page.evaluate(EMBED, f"golden/{i}.png"))
            np.testing.assert_allclose(got, want[i], atol=1e-4)

    @pytest.mark.parametrize("shape", [(SIZE, SIZE), (70, 113), (20, 17), (SIZE, 41), (224, 224)])
    def test_pictures_of_any_size_are_resized_as_in_python(self, page: Page, folder: Path, shape: tuple) -> None:
        pixels = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
        got = page.evaluate(VIEW, picture(folder, "picture.png", pixels))
        np.testing.assert_array_equal(np.array(got, np.uint8).reshape(SIZE, SIZE, 3), identity_view(pixels, SIZE))
        vector = np.array(page.evaluate(EMBED, "picture.png"))
        want = load(folder).embed(pixels[None])[0].numpy()
        np.testing.assert_allclose(vector / np.linalg.norm(vector), want, atol=1e-4)

    def test_a_tile_shows_the_nearest_golden_tiles_at_the_chosen_width(self, page: Page, folder: Path) -> None:
        page.set_input_files("#file", str(TILE))
        expect(page.locator("#neighbours li")).to_have_count(8, timeout=20_000)
        pixels = np.asarray(Image.open(TILE).convert("RGB"))
        for step, width in ((2, 48), (0, 16)):
            page.locator("#width").fill(str(step))
            expect(page.locator("#width-said")).to_have_text(f"{width} of 48 numbers")
            golden = load_file(folder / "golden.safetensors")["vectors"][:, :width]
            golden /= np.linalg.norm(golden, axis=1, keepdims=True)
            cosines = golden @ load(folder, width).embed(pixels[None])[0].numpy()
            shown = page.locator("#neighbours .score").evaluate_all("all => all.map((one) => Number(one.textContent))")
            # two JPEG decoders may differ by a grey level
            np.testing.assert_allclose(shown, np.sort(cosines)[::-1], atol=5e-3)
            first = page.locator("#neighbours button").first.get_attribute("title")
            assert cosines[int(str(first)[len("golden/") : -len(".png")])] > cosines.max() - 1e-2
        if PICTURES:
            page.screenshot(path=Path(PICTURES) / "browser.png", full_page=True)

    def test_a_golden_tile_is_its_own_nearest(self, page: Page, folder: Path) -> None:
        page.set_input_files("#file", str(folder / "golden" / "3.png"))
        expect(page.locator("#neighbours button").first).to_have_attribute("title", "golden/3.png", timeout=20_000)
        expect(page.locator("#neighbours .score").first).to_have_text("1.000")

    def test_what_is_no_tile_is_said_and_the_page_goes_on(self, page: Page, tmp_path: Path) -> None:
        (tmp_path / "no.png").write_bytes(b"no image at all")
        page.set_input_files("#file", str(tmp_path / "no.png"))
        expect(page.get_by_role("alert")).to_contain_text("no JPEG, PNG or WebP image", timeout=20_000)
        page.set_input_files("#file", str(TILE))
        expect(page.locator("#neighbours li")).to_have_count(8, timeout=20_000)
        expect(page.get_by_role("alert")).to_be_empty()

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing_serious(self, page: Page, scheme: Any) -> None:
        page.emulate_media(color_scheme=scheme)
        page.set_input_files("#file", str(TILE))
        expect(page.locator("#neighbours li")).to_have_count(8, timeout=20_000)
        found = Axe().run(page).response["violations"]
        assert not [one["id"] for one in found if one["impact"] in ("serious", "critical")]
