"""The whole service on Ray Serve: what it answers, and that nothing is lost when a model is swapped, a replica is
killed, or the service ends, all of it under load. One session for all of them, and one for the verb."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import ray
import requests

from pathryoshka import config
from pathryoshka.export.formats import write_formats
from pathryoshka.export.load import load
from pathryoshka.serve.client import Client
from pathryoshka.serve.service import Running, Service, running
from pathryoshka.serve.token import digest
from tests.exports import export, heads_of, student_of
from tests.malformed import KINDS, malformed, send
from tests.ports import free_port
from tests.serving import TOKEN, saved, write_index

pytestmark = pytest.mark.slow
TILE = np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two students of one shape and other weights; the first is served in ONNX Runtime, the second in PyTorch."""
    where = tmp_path_factory.mktemp("exports")
    export(where / "a")
    write_formats(where / "a", ("onnx",))
    student, cfg = student_of("vit", seed=7)
    run = config.Run(name="tiny", student=cfg, views=config.Views(size=32), export=config.Export(licence="mit"))
    export(where / "b", student=student, heads=heads_of(student, cfg), run=run)
    return where / "a", where / "b"


@pytest.fixture(scope="module")
def up(exports: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(tmp_path_factory.mktemp("r")))
        service = Service(model=str(exports[0]), port=free_port(), replicas=2, token_digest=digest(TOKEN))
        with running(service) as found:
            yield found


@dataclass
class Load:
    """Requests without a pause from some threads, none of which is asked again."""

    url: str
    token: str = TOKEN
    num_threads: int = 4
    answers: list[tuple[int, str]] = field(default_factory=list)
    """(status, model id and vector's first number, or what was said)."""
    began: list[float] = field(default_factory=list)
    """When each of them was asked, on the monotonic clock."""

    def __enter__(self) -> Load:
        self.stop, self.lock, self.data = threading.Event(), threading.Lock(), saved(TILE, "PNG")
        self.threads = [threading.Thread(target=self.ask) for _ in range(self.num_threads)]
        for thread in self.threads:
            thread.start()
        return self

    def ask(self) -> None:
        headers = {"authorization": f"Bearer {self.token}"}
        with requests.Session() as session:
            while not self.stop.is_set():
                began = time.monotonic()
                try:
                    answer = session.post(f"{self.url}/v1/embed", self.data, headers=headers, timeout=120)
                except requests.RequestException as error:
                    self.note(began, 0, repr(error))
                    continue
                said = answer.json() if answer.ok else {}
                text = f"{said['model_id']} {said['vector'][0]:.5f}" if said else answer.text
                self.note(began, answer.status_code, text)

    def note(self, began: float, status: int, text: str) -> None:
        with self.lock:
            self.answers.append((status, text))
            self.began.append(began)

    def wait_for(self, more: int) -> None:
        deadline, until = time.monotonic() + 120, len(self.answers) + more
        while len(self.answers) < until and time.monotonic() < deadline:
            time.sleep(0.05)

    def __exit__(self, *error: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()


def test_it_answers_as_the_export_does(up: Running, exports: tuple[Path, Path]) -> None:
    assert up.engine.startswith("onnxruntime ")
    client = Client(up.service.url, TOKEN)
    for width in (16, 48):
        wanted = load(exports[0], width=width).embed(TILE[None])[0]
        np.testing.assert_allclose(client.embed(TILE, width).vector, wanted, atol=2e-6)
    many = np.random.default_rng(5).integers(0, 256, (50, 33, 33, 3), dtype=np.uint8)  # more than a forward pass takes
    np.testing.assert_allclose(client.embed_batch(list(many)).vectors, load(exports[0]).embed(many), atol=2e-6)
    assert client.token_map(TILE).shape == (2, 2, 3)


def test_malformed_requests_through_serves_proxy(up: Running) -> None:
    for bad in malformed(3 * len(KINDS), seed=1):
        status, body = send(up.service.url, bad)
        ok = bad.right | ({404} if bad.kind == "bad place" or bad.path.startswith("/v1/search") else set())  # no index
        assert status in ok, (bad.kind, bad.path[:80], status, body[:200])


def test_a_replica_killed_under_load_loses_nothing(up: Running) -> None:
    with Load(up.service.url) as load_:
        load_.wait_for(20)
        names = [one["name"] for one in ray.util.list_named_actors(all_namespaces=True)]
        victim = next(name for name in names if "student" in name and "REPLICA" in name)
        ray.kill(ray.get_actor(victim, namespace="serve"))
        load_.wait_for(100)
    assert collections.Counter(status for status, _ in load_.answers) == {200: len(load_.answers)}


def test_a_swap_under_load_is_without_an_error_and_no_answer_mixes_models(
    up: Running, exports: tuple[Path, Path]
) -> None:
    models = [load(folder) for folder in exports]
    right = {model.model_id: f"{model.embed(TILE[None])[0, 0]:.5f}" for model in models}
    with Load(up.service.url) as load_:
        load_.wait_for(20)
        assert up.deploy(str(exports[1]), None) == models[1].model_id
        done = len(load_.answers)
        load_.wait_for(20)
    assert collections.Counter(status for status, _ in load_.answers) == {200: len(load_.answers)}
    said = [text.split() for _, text in load_.answers]
    assert {model_id for model_id, _ in said} == set(right)
    assert all(abs(float(number) - float(right[model_id])) < 3e-5 for model_id, number in said)
    assert {model_id for model_id, _ in said[done + load_.num_threads :]} == {models[1].model_id}
    assert up.engine.startswith("torch ")


def test_a_swap_that_fails_changes_nothing(up: Running, tmp_path: Path) -> None:
    before = Client(up.service.url).health()
    with pytest.raises(ValueError, match="not a Pathryoshka export"):
        up.deploy(str(tmp_path), None)
    assert Client(up.service.url).health() == before


def test_a_swap_brings_an_index_and_refuses_that_of_another_model(
    up: Running, exports: tuple[Path, Path], tmp_path: Path
) -> None:
    model = load(exports[0])
    tiles = {f"a/{i}": np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8) for i in range(4)}
    write_index(tmp_path / "index", model, tiles)
    up.deploy(str(exports[0]), str(tmp_path / "index"))
    found = Client(up.service.url, TOKEN).search(tiles["a/2"], k=2)
    assert found.num_tiles == 4 and found.by_width[48][0].tile_id == "a/2"
    with pytest.raises(ValueError, match="vectors of two models cannot be compared"):
        up.deploy(str(exports[1]), str(tmp_path / "index"))
    assert Client(up.service.url, TOKEN).model().num_tiles == 4


def test_the_verb_serves_swaps_and_ends_in_order(
    exports: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp_path = tmp_path_factory.mktemp("v")  # Ray's sockets want short paths
    link, port, log = tmp_path / "current", free_port(), tmp_path / "log"
    link.symlink_to(exports[0])
    env = {**os.environ, "RAY_TMPDIR": str(tmp_path)}
    verb = [sys.executable, "-m", "pathryoshka.cli", "serve", str(link), "--port", str(port),
            "--token-file", str(tmp_path / "token")]  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(verb, stdout=out, stderr=out, env=env)
    try:
        until(log, "the routes:", process)
        token = (tmp_path / "token").read_text().strip()
        client = Client(f"http://127.0.0.1:{port}", token)
        assert client.embed(TILE).model_id == load(exports[0]).model_id
        link.unlink()
        link.symlink_to(exports[1])
        process.send_signal(signal.SIGHUP)
        until(log, "swapped:", process)
        assert client.embed(TILE).model_id == load(exports[1]).model_id
        with Load(client.url, token) as load_:
            load_.wait_for(20)
            told_to_end = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
        before = [answer for answer, began in zip(load_.answers, load_.began, strict=True) if began < told_to_end]
        assert len(before) >= 20 and {status for status, _ in before} == {200}, before  # what was begun is answered
        after = {status for status, _ in load_.answers}
        assert after <= {200, 404, 503, 0}  # 404: the doors are gone, the building is not yet; 0: nor is that
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def until(log: Path, words: str, process: subprocess.Popen[bytes], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while words not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
