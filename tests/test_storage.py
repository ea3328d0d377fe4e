from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boto3.s3.transfer import TransferConfig

from pathryoshka import config, storage
from pathryoshka.storage import NotFound, StorageError, clients
from pathryoshka.storage.server import S3Server
from tests.faulty_proxy import FaultyProxy

Place = tuple[config.Storage, str]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "s3":
        return request.getfixturevalue("s3_storage")
    return config.Storage(), str(tmp_path / "root")


# ---- what files and folders do, the same in both kinds of place


def test_bytes_and_json_come_back(place: Place) -> None:
    cfg, uri = place
    data = np.random.default_rng(0).bytes(100_000)
    file = storage.join(uri, "a", "b c+ü.bin")
    assert not storage.exists(file, cfg)
    storage.write_bytes(file, data, cfg)
    assert storage.read_bytes(file, cfg) == data
    assert storage.read_range(file, 70, 1000, cfg) == data[70:1070]
    assert storage.exists(file, cfg) and storage.exists(storage.join(uri, "a"), cfg)
    assert not storage.exists(storage.join(uri, "a", "b"), cfg)  # the beginning of a name is not a folder
    storage.write_bytes(file, b"", cfg)
    assert storage.read_bytes(file, cfg) == b""
    value = {"b": [1, 2.5, None], "a": {"ü": True}}
    storage.write_json(storage.join(uri, "v.json"), value, cfg)
    assert storage.read_bytes(storage.join(uri, "v.json"), cfg).startswith(b'{\n "a"')
    assert storage.read_json(storage.join(uri, "v.json"), cfg) == value


def test_listing_and_deleting(place: Place) -> None:
    cfg, uri = place
    assert storage.list_files(uri, cfg) == {}
    names = [f"z/{i:04d}" for i in range(5)] + ["a/x", "a-b", "a/y/z.json"]
    for i, name in enumerate(names):
        storage.write_bytes(storage.join(uri, name), b"x" * i, cfg)
    expected = {name: i for i, name in enumerate(names)}
    assert storage.list_files(uri, cfg) == expected
    assert list(storage.list_files(uri, cfg)) == sorted(expected)
    storage.delete(storage.join(uri, "a"), cfg)  # and not a-b, which only begins alike
    assert set(storage.list_files(uri, cfg)) == set(names) - {"a/x", "a/y/z.json"}
    storage.delete(storage.join(uri, "a-b"), cfg)
    storage.delete(storage.join(uri, "never there"), cfg)
    assert storage.list_files(storage.join(uri, "z"), cfg) == {f"{i:04d}": i for i in range(5)}
    storage.delete(uri, cfg)
    assert not storage.exists(uri, cfg)


def test_more_files_than_one_answer_lists(s3_storage: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, uri = s3_storage
    monkeypatch.setattr(storage, "PAGE_KEYS", 7)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: storage.write_bytes(f"{uri}/{i}", b"1", cfg), range(40)))
    assert storage.list_files(uri, cfg) == {str(i): 1 for i in sorted(range(40), key=str)}
    storage.delete(uri, cfg)
    assert storage.list_files(uri, cfg) == {}


def test_folders_travel(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, uri = place
    monkeypatch.setattr(storage, "PART_BYTES", 1000)
    monkeypatch.setattr(
        storage, "PARTS", TransferConfig(multipart_threshold=6 << 20, multipart_chunksize=5 << 20, max_concurrency=2)
    )
    rng = np.random.default_rng(1)
    source = {"a/b/c": rng.bytes(12_345), "d": b"", "e": rng.bytes(1000), "f": rng.bytes(999)}
    for name, data in source.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(data)
    storage.upload_folder(tmp_path / "up", uri, cfg)
    assert storage.list_files(uri, cfg) == {name: len(data) for name, data in sorted(source.items())}
    storage.download_folder(uri, tmp_path / "down", cfg)
    assert {p.relative_to(tmp_path / "down").as_posix(): p.read_bytes() for p in (tmp_path / "down").rglob("*") if
            p.is_file()} == source  # fmt: skip
    big = rng.bytes(11 << 20)  # several parts
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "file").write_bytes(big)
    storage.upload_folder(tmp_path / "big", uri, cfg)
    assert storage.read_bytes(storage.join(uri, "file"), cfg) == big
    with pytest.raises(NotFound, match="nothing is there"):
        storage.download_folder(storage.join(uri, "nowhere"), tmp_path / "down", cfg)
    with pytest.raises(NotFound, match="not a folder"):
        storage.upload_folder(tmp_path / "nowhere", uri, cfg)


def test_a_name_that_leaves_the_folder_is_refused(s3_storage: Place, s3: S3Server, tmp_path: Path) -> None:
    cfg, uri = s3_storage
    files = {"../escaped": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "list_files", lambda uri, cfg: files)
        with pytest.raises(StorageError, match="outside of"):
            storage.download_folder(uri, tmp_path / "down", cfg)
    assert not (tmp_path / "escaped").exists()


def test_a_reader_sees_the_old_content_or_the_new(place: Place) -> None:
    cfg, uri = place
    file = storage.join(uri, "file")
    contents = [bytes([i]) * (200_000 + 1000 * i) for i in range(4)]
    storage.write_bytes(file, contents[0], cfg)
    done, wrong, seen = threading.Event(), [], set()

    def read() -> None:
        while not done.is_set():
            data = storage.read_bytes(file, cfg)
            seen.add(data[0])
            if data not in contents:
                wrong.append(len(data))

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for i in range(30):
            storage.write_bytes(file, contents[i % 4], cfg)
        done.set()
        for reader in readers:
            reader.result()
    assert not wrong and len(seen) > 1


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, file = config.Storage(), str(tmp_path / "file")
    storage.write_bytes(file, b"old", cfg)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    begun = time.monotonic()
    with pytest.raises(StorageError, match="cannot write .*: no space is left there; free some or write elsewhere"):
        storage.write_bytes(file, b"new", cfg)
    assert time.monotonic() - begun < 5
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and Path(file).read_bytes() == b"old"


def test_exactly_one_of_many_creates_a_file(place: Place) -> None:
    cfg, uri = place
    for round_ in range(2):
        file, start = storage.join(uri, f"{round_}.json"), threading.Barrier(16)

        def create(i: int, file: str = file, start: threading.Barrier = start) -> bool:
            start.wait()
            return storage.put_if_absent(file, f"driver {i}".encode(), cfg)

        with ThreadPoolExecutor(16) as pool:
            won = list(pool.map(create, range(16)))
        assert sum(won) == 1
        assert storage.read_bytes(file, cfg) == f"driver {won.index(True)}".encode()


def test_one_wins_even_where_the_store_ignores_conditions(s3_storage: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, uri = s3_storage
    cfg = cfg.model_copy(update={"max_attempts": 7})  # a client of its own, so that others keep the condition
    monkeypatch.setattr(storage, "SETTLE_S", 1.0)
    ignored = []

    def ignore(request: Any, **_: Any) -> None:
        ignored.append(request.headers.get("If-None-Match"))
        del request.headers["If-None-Match"]

    clients.client(cfg).meta.events.register("before-sign.s3.PutObject", ignore)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.put_if_absent(f"{uri}/x", b"driver %d" % i, cfg), range(8)))
    assert len(ignored) == 16 and set(ignored) <= {"*", b"*"}
    assert sum(won) == 1
    assert storage.read_bytes(f"{uri}/x", cfg) == b"driver %d" % won.index(True)


def test_a_creation_whose_answer_was_lost_is_known_as_ours(s3_storage: Place, s3: S3Server) -> None:
    cfg, uri = s3_storage
    with FaultyProxy(s3.endpoint, fail_share=1.0, delay_s=0.0, kinds=("cut",)) as proxy:
        true_draw = proxy.draw
        faults_left = iter(["cut"])
        proxy.draw = lambda method: next(faults_left, None) if method == "PUT" else None  # type: ignore[method-assign]
        assert storage.put_if_absent(f"{uri}/mine", b"mine", cfg.model_copy(update={"endpoint": proxy.endpoint}))
        assert not storage.put_if_absent(f"{uri}/mine", b"other", cfg)
        assert true_draw("PUT") == "cut"


# ---- addresses


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.join("s3://b", "x", "", "/y/z/") == "s3://b/x/y/z"
    assert storage.join("s3://b/p/", "x") == "s3://b/p/x"
    assert storage.join("/", "x") == "/x" and storage.join("out/runs", "x") == "out/runs/x"
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("out/x") == str(tmp_path / "out/x") and storage.absolute("s3://b/x") == "s3://b/x"
    filesystem, path = storage.filesystem("out", config.Storage())
    assert filesystem.type_name == "local" and path == str(tmp_path / "out")


@pytest.mark.parametrize(
    "uri", ["", "gs://bucket/x", "s3:/bucket", "s3://", "s3:///key", "s3://key:secret@bucket/x", "http://host/bucket"]
)
def test_what_is_no_place_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match=r"write s3://bucket/prefix") as caught:
        storage.read_bytes(uri, config.Storage())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/", "/"])
def test_everything_at_once_is_not_deleted(uri: str) -> None:
    with pytest.raises(StorageError, match="that is everything there"):
        storage.delete(uri, config.Storage())


# ---- credentials stay in the process that found them


@pytest.mark.parametrize("source", ["env", "profile"])
def test_a_pickled_filesystem_has_no_credentials_and_works_elsewhere(
    s3: S3Server, s3_storage: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    cfg, uri = s3_storage
    key, secret = s3.env["AWS_ACCESS_KEY_ID"], s3.env["AWS_SECRET_ACCESS_KEY"]
    storage.write_bytes(f"{uri}/x", b"content", cfg)
    if source == "profile":
        text = f"[mine]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
        (tmp_path / "credentials").write_text(text)
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        cfg = cfg.model_copy(update={"profile": "mine"})
    filesystem, path = storage.filesystem(f"{uri}/x", cfg)
    assert storage.filesystem(uri, cfg)[0] is filesystem  # once a process
    pickled = pickle.dumps(filesystem)
    assert key.encode() not in pickled and secret.encode() not in pickled
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).open_input_file(sys.argv[1]).read().decode())"
    if source == "profile":  # a process is slow to start
        done = subprocess.run([sys.executable, "-c", code, path], input=pickled, capture_output=True, check=True)
        assert done.stdout.strip() == b"content"
