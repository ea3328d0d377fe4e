"""The HTTP side of the service, on a real socket and over a real model; tests/test_serve_ray.py has Ray too."""

from __future__ import annotations

import collections
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from pathryoshka import config
from pathryoshka.export.load import Embedder, load
from pathryoshka.serve import token
from pathryoshka.serve.admission import Admission
from pathryoshka.serve.client import Client, ServiceError
from pathryoshka.serve.lookup import open_lookup
from pathryoshka.serve.slides import find_slides
from pathryoshka.serve.tile import Limits, Refused
from tests.exports import export
from tests.malformed import KINDS, malformed, send
from tests.serving import TOKEN, InProcess, house_of, listening, saved, write_index

DATA = Path(__file__).parent / "data"
SLIDE = DATA / "slides" / "CMU-1-Small-Region.svs"
AUTH = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("serve") / "export"
    export(to)
    return to


@pytest.fixture(scope="module")
def model(folder: Path) -> Embedder:
    return load(folder)


@pytest.fixture(scope="module")
def tiles() -> dict[str, np.ndarray]:
    files = sorted((DATA / "crc7k").glob("*.jpg"))[::7]
    return {file.stem.replace("___", "/"): np.array(Image.open(file).convert("RGB")) for file in files}


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, model: Embedder, tiles: dict[str, np.ndarray]) -> Path:
    to = tmp_path_factory.mktemp("index") / "tiles.index"
    write_index(to, model, tiles, SLIDE, side=448)
    return to


@pytest.fixture(scope="module")
def url(model: Embedder, index: Path) -> Iterator[str]:
    opened = open_lookup(index, model.model_id, model.width, config.Storage())
    with listening(house_of(model, index=opened, slides=find_slides(SLIDE.parent))) as where:
        yield where


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    return Client(url, TOKEN)


def noise(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (number, 50, 44, 3), dtype=np.uint8)


# ---------------------------------------------------------------- what it answers


@pytest.mark.parametrize("width", [16, 32, 48])
def test_a_width_is_what_the_export_says_of_it(folder: Path, client: Client, width: int) -> None:
    tile = noise(1)
    said = client.embed(tile[0], width)
    assert said.width == width == len(said.vector)
    np.testing.assert_allclose(said.vector, load(folder, width=width).embed(tile)[0], atol=2e-6)


def test_a_batch_is_its_tiles_one_by_one(client: Client) -> None:
    several = noise(5, seed=1)
    together = client.embed_batch(list(several), 32)
    np.testing.assert_allclose(together.vectors, [client.embed(tile, 32).vector for tile in several], atol=2e-6)


def test_jpeg_webp_and_transparency_are_read_as_pillow_reads_them(client: Client, model: Embedder) -> None:
    pixels = noise(1, seed=2)[0]
    glass = np.dstack([pixels, np.full(pixels.shape[:2], 128, np.uint8)])
    for data in (saved(pixels, "JPEG"), saved(pixels, "WEBP"), saved(glass, "PNG"), saved(pixels[:, :, 0], "PNG")):
        wanted = model.embed(model_view(data)[None])[0]
        np.testing.assert_allclose(client.embed(data).vector, wanted, atol=2e-6)


def model_view(data: bytes) -> np.ndarray:
    import io

    image = Image.open(io.BytesIO(data))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def test_neighbours_are_the_highest_cosines_of_each_width(
    client: Client, model: Embedder, tiles: dict[str, np.ndarray], index: Path
) -> None:
    name, query = next(iter(tiles.items()))
    found = client.search(saved(query, "PNG"), k=5)
    opened = open_lookup(index, model.model_id, model.width, config.Storage())
    assert set(found.by_width) == {16, 32, 48} and found.num_tiles == len(opened)
    one = model.embed(query[None])[0].double().numpy()
    scores = {
        other: float(cosine(one[:16], model.embed(tile[None])[0].double().numpy()[:16]))
        for other, tile in tiles.items()
    }
    hits = client.search(saved(query, "PNG"), [16], k=len(tiles), not_slide=SLIDE.stem).by_width[16]
    assert hits[0].tile_id == name and hits[0].score == pytest.approx(1, abs=1e-5)
    assert [hit.tile_id for hit in hits] == sorted(scores, key=lambda other: -scores[other])
    np.testing.assert_allclose([hit.score for hit in hits], sorted(scores.values(), reverse=True), atol=1e-5)
    others = client.search(saved(query, "PNG"), [16], k=100, not_patient=hits[0].patient_id).by_width[16]
    assert others and all(hit.patient_id != hits[0].patient_id for hit in others)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return a @ b / np.sqrt((a @ a) * (b @ b))


def test_a_picture_of_a_neighbour_comes_back(url: str, tiles: dict[str, np.ndarray]) -> None:
    name, pixels = next(iter(tiles.items()))
    answer = requests.get(f"{url}/v1/tiles/{name}", headers=AUTH)
    assert answer.headers["content-type"] == "image/jpeg"
    assert np.abs(model_view(answer.content).astype(int) - pixels).mean() < 12


def test_tokens_as_colours_have_the_grid_of_the_model(client: Client, model: Embedder) -> None:
    assert client.token_map(noise(1)[0], 16).shape == (*model.facts["grid"], 3)


def test_a_region_is_what_openslide_reads_there(url: str, client: Client, model: Embedder) -> None:
    import openslide

    about = client.slides()[0]
    assert about.slide_id == SLIDE.stem and about.side == 448
    query = {"x": 900, "y": 1400, "side": model.size}
    answer = requests.get(f"{url}/v1/slides/{SLIDE.stem}/region", query, headers=AUTH)
    with openslide.OpenSlide(str(SLIDE)) as slide:
        corner = (900 - model.size // 2, 1400 - model.size // 2)
        wanted = np.array(slide.read_region(corner, 0, (model.size, model.size)).convert("RGB"))
    assert np.array_equal(model_view(answer.content), wanted)


def test_a_heat_map_is_the_cosine_of_each_tile_of_the_slide(client: Client, model: Embedder) -> None:
    import openslide

    query = noise(1, seed=4)[0]
    heat = client.likeness(SLIDE.stem, query, [32])
    left, top, side = (int(number) for number in heat.tiles[3])
    with openslide.OpenSlide(str(SLIDE)) as slide:
        tile = np.array(slide.read_region((left, top), 0, (side, side)).convert("RGB"))
    one, other = (model.embed(x[None])[0].double().numpy()[:32] for x in (query, tile))
    assert heat.by_width[32][3] == pytest.approx(cosine(one, other), abs=1e-5)


def test_deep_zoom_tiles_are_those_of_the_slide(url: str) -> None:
    import openslide
    from openslide.deepzoom import DeepZoomGenerator

    with openslide.OpenSlide(str(SLIDE)) as slide:
        pyramid = DeepZoomGenerator(slide, 254, 1)
        wanted = np.array(pyramid.get_tile(11, (1, 2)).convert("RGB")).astype(int)
    answer = requests.get(f"{url}/v1/slides/{SLIDE.stem}/deep-zoom/11/1/2.jpeg", headers=AUTH)
    assert np.abs(model_view(answer.content) - wanted).mean() < 6


def test_every_answer_says_which_model_it_is_from(url: str, model: Embedder) -> None:
    for path in ("/", "/health", "/v1/model", "/nothing"):
        assert requests.get(url + path, headers=AUTH).headers["x-pathryoshka-model"] == model.model_id


def test_metrics_are_what_prometheus_reads(url: str, client: Client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    def tiles_so_far() -> float:
        text = requests.get(f"{url}/metrics", headers=AUTH).text
        found = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
        return found["pathryoshka_tiles_total"]

    before = tiles_so_far()
    client.embed_batch(list(noise(3)))
    assert tiles_so_far() - before == 3


def test_the_openapi_document_has_every_route_and_the_page_of_it_needs_no_net(url: str) -> None:
    paths = requests.get(f"{url}/openapi.json").json()["paths"]
    assert {"/v1/embed", "/v1/embed/batch", "/v1/search", "/v1/tokens", "/v1/model", "/health", "/metrics"} <= set(
        paths
    )
    page = requests.get(f"{url}/docs").text
    assert all(path in page for path in paths) and "<script" not in page and "https://" not in page


# ---------------------------------------------------------------- what it refuses


def test_malformed_requests_get_a_sentence_and_the_right_status(url: str) -> None:
    seen: collections.Counter[str] = collections.Counter()
    for bad in malformed(3 * len(KINDS)):
        status, body = send(url, bad)
        assert status in bad.right, (bad.kind, bad.path[:80], status, body[:200])
        if status != 200:
            assert json.loads(body)["error"], bad.kind
        seen[bad.kind] += 1
    assert len(seen) == len(KINDS) and sum(seen.values()) >= 50
    assert requests.get(f"{url}/health").json()["status"] == "ok"


def test_a_header_that_claims_too_much_is_refused_without_its_pixels(url: str) -> None:
    from tests.malformed import Bad, png_claiming

    process, began = psutil.Process(), time.perf_counter()
    before = process.memory_info().rss
    for _ in range(20):
        assert send(url, Bad("", set(), body=png_claiming(50_000, 50_000)))[0] == 413
    assert time.perf_counter() - began < 10 and process.memory_info().rss - before < 64 * 2**20  # it would be 7.5 GB


def test_without_the_token_nothing_but_the_page_and_health(url: str) -> None:
    for path in ("/", "/health", "/docs", "/openapi.json", "/page/app.js", "/page/style.css"):
        assert requests.get(url + path).status_code == 200, path
    for path in ("/v1/model", "/metrics", "/v1/slides", "/v1/tiles/x", "/nothing", "/page"):
        answer = requests.get(url + path, allow_redirects=False)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", path


def test_a_long_body_is_not_read_to_its_end(url: str) -> None:
    """Chunks without a length: the service hangs up soon after its limit."""
    place, sent = urlsplit(url), 0
    with socket.create_connection((place.hostname or "", place.port or 0), timeout=30) as sock:
        sock.sendall(f"POST /v1/embed HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
                     "Transfer-Encoding: chunked\r\n\r\n".encode())  # fmt: skip
        try:
            while sent < 200 * 2**20:
                sock.sendall(b"100000\r\n" + b"x" * 2**20 + b"\r\n")
                sent += 2**20
        except OSError:
            pass
    assert sent < 40 * 2**20  # 16 MiB are the limit; the rest is what sockets hold


def test_a_body_that_does_not_come_is_given_up(model: Embedder) -> None:
    with listening(house_of(model, limits=Limits(body_s=0.3))) as url:
        place = urlsplit(url)
        with socket.create_connection((place.hostname or "", place.port or 0), timeout=30) as sock:
            sock.sendall(f"POST /v1/embed HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
                         "Content-Length: 100\r\n\r\nabc".encode())  # fmt: skip
            assert sock.recv(100).startswith(b"HTTP/1.1 408")


def test_an_answer_that_does_not_come_is_given_up(model: Embedder) -> None:
    house = house_of(model, limits=Limits(answer_s=0.2), encoder=InProcess(model, pause_s=5))
    with listening(house) as url, pytest.raises(ServiceError, match="no answer within") as error:
        Client(url, TOKEN, patience_s=5).embed(noise(1)[0])
    assert error.value.status == 504


def test_who_would_wait_too_long_is_told_when_to_come_back(model: Embedder) -> None:
    house = house_of(model, encoder=InProcess(model, pause_s=1.0), rate=1.0, at_least=2)
    data, answers = saved(noise(1)[0], "PNG"), []

    with listening(house) as url:

        def ask() -> None:
            answers.append(requests.post(f"{url}/v1/embed", data, headers=AUTH))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429, 429]
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 429)
        done: list[int] = []

        def insist() -> None:
            done.append(Client(url, TOKEN).embed(data).width)

        threads = [threading.Thread(target=insist) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert done == [48] * 4  # the client comes back until it is let in


def test_places_are_given_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathryoshka.serve.admission.LEARN", 0.0)  # nothing takes any time here
    admission = Admission(rate=10.0, wait_s=2.0, at_least=1)
    assert admission.most == 20
    with admission.admit(15), pytest.raises(Refused) as error, admission.admit(6):
        pass
    assert error.value.status == 429 and error.value.headers["retry-after"] == "2"
    with admission.admit(100):  # more than the whole queue, but nobody else is there
        assert admission.full
    with pytest.raises(RuntimeError), admission.admit(3):
        raise RuntimeError
    assert admission.inside == 0


def test_a_service_that_has_become_slow_lets_fewer_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathryoshka.serve import admission as room

    now = 0.0
    monkeypatch.setattr(room.time, "perf_counter", lambda: now)
    admission = Admission(rate=100.0, wait_s=2.0, at_least=8)
    assert admission.most == 200
    for _ in range(300):  # each meets a full queue, and leaves at 10 tiles a second
        with admission.admit(admission.most):
            now += admission.most / 10
    assert 19 <= admission.most <= 21
    with admission.admit(1):  # alone: says nothing of the rate
        now += 100
    assert admission.most >= 19


# ---------------------------------------------------------------- the token


def test_a_token_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "new" / "token"
    made = token.token_in(file)
    assert len(made) >= 32 and token.token_in(file) == made
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    os.chmod(file, 0o640)
    with pytest.raises(token.TokenError, match="chmod 600"):
        token.token_in(file)
    os.chmod(file, 0o600)
    file.write_text("short")
    with pytest.raises(token.TokenError, match="16 or more"):
        token.token_in(file)


@pytest.mark.parametrize(
    ("header", "may"),
    [(b"Bearer secret-secret-secret", True), (b"bearer  secret-secret-secret", True), (b"Bearer secret", False),
     (b"secret-secret-secret", False), (b"Basic secret-secret-secret", False), (None, False), (b"Bearer \xff", False)],
)  # fmt: skip
def test_who_is_let_in(header: bytes | None, may: bool) -> None:
    assert token.allowed(header, token.digest("secret-secret-secret")) is may
    assert token.allowed(header, None)


def test_an_index_of_another_model_is_refused(index: Path) -> None:
    with pytest.raises(ValueError, match="embed the tiles again"):
        open_lookup(index, "another", 48, config.Storage())
