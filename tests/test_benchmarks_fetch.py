"""Downloads: whole, resumed, from servers that know ranges and that do not; and what is said when there is none."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pathryoshka.benchmarks.fetch import fetch
from pathryoshka.benchmarks.layouts import BenchmarkError
from pathryoshka.benchmarks.rows import benchmark

DATA = bytes(range(256)) * 4096


@dataclass
class Server:
    """`cuts`: bytes after which the next answers break off; `ranges`: whether it knows them."""

    url: str = ""
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range", "")
            state.asked.append(asked)
            if not self.path.startswith("/data.zip"):
                self.send_error(404)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges else 0
            if start >= len(DATA):
                self.send_error(416)
                return
            body = DATA[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}/data.zip?download=1"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield state
    http.shutdown()
    http.server_close()


def get(server: Server, to: Path, url: str | None = None) -> bytes:
    row = replace(benchmark("bach"), urls=(url or server.url,))
    (path,) = fetch(row, to, say=lambda line: None)
    assert path == to / "data.zip" and not (to / "data.zip.part").exists()
    return path.read_bytes()


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path) == DATA
    assert get(server, tmp_path) == DATA
    assert server.asked == [""]


@pytest.mark.parametrize("ranges", [True, False])
def test_what_breaks_off_is_gone_on_with(ranges: bool, server: Server, tmp_path: Path) -> None:
    server.ranges, server.cuts = ranges, [300_000, 500_000]
    assert get(server, tmp_path) == DATA
    assert len(server.asked) == 3 and server.asked[1].startswith("bytes=3")


def test_a_part_of_an_earlier_day_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(DATA[:1000])
    assert get(server, tmp_path) == DATA
    assert server.asked == ["bytes=1000-"]


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(DATA + b"more")
    assert get(server, tmp_path) == DATA


def test_what_cannot_be_fetched_is_said_in_a_sentence(server: Server, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="answers 404 Not Found; look at its page"):
        get(server, tmp_path, server.url.replace("data", "other"))
    with pytest.raises(BenchmarkError, match="cannot be reached .*; the same command goes on once it can"):
        get(server, tmp_path, "http://127.0.0.1:9/data.zip")
    server.cuts = [10] * 5
    with pytest.raises(BenchmarkError, match="broke off 5 times; the same command goes on from"):
        get(server, tmp_path)
    assert (tmp_path / "data.zip.part").exists()


def test_forms_are_explained(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"mhist needs a form or an account: see https://bmirds.github.io/MHIST/"):
        fetch(benchmark("mhist"), tmp_path)
    with pytest.raises(BenchmarkError, match="camelyon17_wilds has no plain download: see .*the wilds package"):
        fetch(benchmark("camelyon17_wilds"), tmp_path)
