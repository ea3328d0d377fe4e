from __future__ import annotations

import errno
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from boto3.s3.transfer import TransferConfig

from pathryoshka import config, retry, s3client, storage
from pathryoshka.s3server import S3Server
from pathryoshka.storage import NotFound, StorageError
from tests.faulty_proxy import FaultyProxy

Place = tuple[config.Storage, str]


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "s3":
        return request.getfixturevalue("s3_storage")
    return config.Storage(), str(tmp_path / "root")


def quick(cfg: config.Storage, **over: Any) -> config.Storage:
    return cfg.model_copy(update={"max_attempts": 1, **over})


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


def test_more_files_than_one_answer_lists(s3_storage: Place, s3: S3Server) -> None:
    cfg, uri = s3_storage
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: storage.write_bytes(f"{uri}/{i}", b"1", cfg), range(1005)))
    assert storage.list_files(uri, cfg) == {str(i): 1 for i in sorted(range(1005), key=str)}
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
        for i in range(60):
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
    assert time.monotonic() - begun < 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and Path(file).read_bytes() == b"old"


def test_exactly_one_of_many_creates_a_file(place: Place) -> None:
    cfg, uri = place
    for round_ in range(3):
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

    s3client.client(cfg).meta.events.register("before-sign.s3.PutObject", ignore)
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


# ---- errors in one sentence


class Refusing(BaseHTTPRequestHandler):
    """An S3 server that always gives the answer that its class was made for."""

    protocol_version = "HTTP/1.1"
    status, code, asked = 403, "AccessDenied", 0

    def answer(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>no</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def refusing(s3: S3Server) -> Iterator[Callable[[int, str], tuple[config.Storage, type[Refusing]]]]:
    servers = []

    def serve(status: int, code: str) -> tuple[config.Storage, type[Refusing]]:
        handler = type("Handler", (Refusing,), {"status": status, "code": code})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return config.Storage(endpoint=f"http://127.0.0.1:{server.server_address[1]}", max_attempts=5), handler

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "AccessDenied", "no permission; let the bucket's policy"),
        (403, "SignatureDoesNotMatch", "does not accept these credentials"),
        (400, "ExpiredToken", "expired or are malformed; renew them"),
        (403, "RequestTimeTooSkewed", "set the clock"),
        (301, "PermanentRedirect", "set storage.region"),
        (507, "XMinioStorageFull", "no space is left"),
        (404, "NoSuchBucket", "there is no bucket b; make it with `aws s3 mb s3://b`"),
        (405, "MethodNotAllowed", "the S3 server refuses with 405 MethodNotAllowed"),
    ],
)
def test_what_waiting_cannot_help_is_said_at_once(refusing: Any, status: int, code: str, says: str) -> None:
    cfg, handler = refusing(status, code)
    begun = time.monotonic()
    for verb in (lambda: storage.read_bytes("s3://b/x", cfg), lambda: storage.ensure_root("s3://b/x", cfg)):
        with pytest.raises(StorageError, match="^cannot (read|write) s3://b/x: ") as caught:
            verb()
        assert says in str(caught.value) and "\n" not in str(caught.value) and ".probe" not in str(caught.value)
    if code != "XMinioStorageFull":  # a 5xx, which the client repeats by itself
        assert handler.asked <= (4 if code == "PermanentRedirect" else 2)  # boto3 looks for the region by itself
        assert time.monotonic() - begun < 2


def test_pyarrow_refusals_get_the_same_sentences(refusing: Any, s3_storage: Place) -> None:
    for status, code, says in [
        (403, "AccessDenied", "no permission"),
        (400, "ExpiredToken", "expired or are malformed"),
    ]:
        cfg, _ = refusing(status, code)
        filesystem, path = storage.filesystem("s3://b/x", cfg)
        with pytest.raises(StorageError, match=says):
            storage.retrying(lambda fs=filesystem, p=path: fs.open_input_file(p), cfg, "read s3://b/x")
    cfg, uri = s3_storage
    filesystem, path = storage.filesystem(f"{uri}/nothing", cfg)
    with pytest.raises(NotFound, match="does not exist"):
        storage.retrying(lambda: filesystem.open_input_file(path), cfg, "read it")
    with pytest.raises(StorageError, match="there is no bucket absent;"):
        storage.retrying(
            lambda: filesystem.open_output_stream("absent/x").close(), cfg, "write s3://absent/x"
        )  # fmt: skip


def test_the_real_server_refuses_in_one_sentence(s3: S3Server, s3_storage: Place, monkeypatch: Any) -> None:
    cfg, uri = s3_storage
    with pytest.raises(NotFound, match="cannot read .*: it does not exist$"):
        storage.read_bytes(f"{uri}/x", cfg)
    with pytest.raises(StorageError, match=r"there is no bucket absent; make it with `aws s3 mb s3://absent`"):
        storage.ensure_root("s3://absent/x", cfg)
    with pytest.raises(StorageError, match="there is no bucket absent"):
        storage.exists("s3://absent/x", cfg)
    storage.write_bytes(f"{uri}/short", b"abc", cfg)
    with pytest.raises(StorageError, match="ends before byte 10"):
        storage.read_range(f"{uri}/short", 1, 9, cfg)
    with pytest.raises(StorageError, match="is not JSON"):
        storage.read_json(f"{uri}/short", cfg)
    storage.ensure_root(uri, cfg)
    assert list(storage.list_files(uri, cfg)) == ["short"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong" * 8)
    with pytest.raises(StorageError, match="does not accept these credentials") as caught:
        storage.ensure_root(uri, cfg)
    assert "wrong" not in repr(caught.value) and s3.env["AWS_ACCESS_KEY_ID"] not in repr(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("http://127.0.0.1:9", "nothing answers at the endpoint; check storage.endpoint"),
        ("http://no-such-host.invalid", "nothing answers at the endpoint"),
        ("127.0.0.1:8333", "is not a URL; write http://host:port"),
        ("http://key:secret@127.0.0.1:8333", "credentials do not belong into storage.endpoint"),
    ],
)
def test_a_wrong_endpoint_is_said_within_seconds(s3: S3Server, endpoint: str, says: str) -> None:
    begun = time.monotonic()
    with pytest.raises(StorageError, match=says) as caught:
        storage.ensure_root("s3://tiles/x", config.Storage(endpoint=endpoint))
    assert time.monotonic() - begun < 5 and "secret" not in repr(caught.value)


def test_what_answers_but_is_not_s3_is_said(s3: S3Server) -> None:
    filer = json.loads((s3.folder / "ports.json").read_text())["filer"]  # SeaweedFS's own web server
    with pytest.raises(StorageError, match="not an S3 server; check storage.endpoint"):
        storage.ensure_root("s3://tiles/x", config.Storage(endpoint=f"http://127.0.0.1:{filer}"))
    with pytest.raises(StorageError, match="does not speak TLS"):
        storage.ensure_root("s3://tiles/x", config.Storage(endpoint=s3.endpoint.replace("http", "https")))


def test_missing_credentials_and_profiles_are_said(s3_storage: Place, tmp_path: Path, monkeypatch: Any) -> None:
    cfg, uri = s3_storage
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="no AWS credentials were found; set AWS_ACCESS_KEY_ID"):
        storage.ensure_root(uri, cfg)
    with pytest.raises(StorageError, match="no AWS credentials were found"):
        storage.filesystem(uri, cfg)
    with pytest.raises(StorageError, match="there is no AWS profile absent; set storage.profile"):
        storage.ensure_root(uri, cfg.model_copy(update={"profile": "absent"}))


def test_local_folders_refuse_in_one_sentence(tmp_path: Path) -> None:
    cfg = config.Storage()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a part of the path is a file"):
        storage.write_bytes(str(tmp_path / "file" / "x"), b"", cfg)
    with pytest.raises(StorageError, match="a folder, not a file"):
        storage.read_bytes(str(tmp_path), cfg)
    with pytest.raises(StorageError, match="no permission to write there|does not exist"):
        storage.ensure_root("/proc/nothing/here", cfg)
    storage.ensure_root(str(tmp_path / "new" / "root"), cfg)
    assert list((tmp_path / "new" / "root").iterdir()) == []


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
    done = subprocess.run([sys.executable, "-c", code, path], input=pickled, capture_output=True, check=True)
    assert done.stdout.strip() == b"content"


def test_storage_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, pathryoshka.storage, pathryoshka.lease; print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"


# ---- retries


def test_faulty_storage_gives_every_byte(s3: S3Server, s3_storage: Place) -> None:
    cfg, uri = s3_storage
    rng = np.random.default_rng(3)
    blobs = [rng.bytes(int(n)) for n in rng.integers(1, 200_000, 20)]
    table = pa.table({"image": [rng.bytes(2000) for _ in range(64)], "i": list(range(64))})
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=16)
    for i, blob in enumerate(blobs):
        storage.write_bytes(f"{uri}/in/{i}", blob, cfg)
    storage.write_bytes(f"{uri}/t.parquet", sink.getvalue(), cfg)
    with FaultyProxy(s3.endpoint, fail_share=0.1, delay_s=0.01, seed=4) as proxy:
        cfg = cfg.model_copy(update={"endpoint": proxy.endpoint})
        filesystem, path = storage.filesystem(f"{uri}/t.parquet", cfg)

        def work(i: int) -> None:
            blob = blobs[i % 20]
            assert storage.read_bytes(f"{uri}/in/{i % 20}", cfg) == blob
            assert storage.read_range(f"{uri}/in/{i % 20}", 0, len(blob) // 2 + 1, cfg) == blob[: len(blob) // 2 + 1]
            storage.write_bytes(f"{uri}/out/{i}", blob, cfg)
            assert storage.exists(f"{uri}/in/{i % 20}", cfg)
            read = storage.retrying(
                lambda: pq.ParquetFile(path, filesystem=filesystem).read_row_group(i % 4), cfg, "read"
            )
            assert read.equals(table.slice(16 * (i % 4), 16))

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(work, range(60)))
        assert storage.list_files(f"{uri}/in", cfg) == {str(i): len(blobs[i]) for i in sorted(range(20), key=str)}
        assert set(proxy.faults) == {"500", "503", "reset", "cut"} and sum(proxy.faults.values()) > 20
    clean, _ = s3_storage
    assert all(storage.read_bytes(f"{uri}/out/{i}", clean) == blobs[i % 20] for i in range(60))


def test_a_server_that_is_away_is_waited_for(s3: S3Server, s3_storage: Place) -> None:
    cfg, uri = s3_storage
    storage.write_bytes(f"{uri}/x", b"x", cfg)
    with FaultyProxy(s3.endpoint, fail_share=1.0, delay_s=0.0, kinds=("reset",)) as proxy:
        away = cfg.model_copy(update={"endpoint": proxy.endpoint, "max_attempts": 4})

        def come_back() -> None:
            time.sleep(1.5)
            proxy.fail_share = 0.0

        threading.Thread(target=come_back, daemon=True).start()
        assert storage.read_bytes(f"{uri}/x", away) == b"x"
        assert proxy.faults["reset"] >= 4
        proxy.fail_share = 1.0
        with pytest.raises(StorageError, match="the connection keeps breaking"):
            storage.read_bytes(f"{uri}/x", quick(away))


class Flaky:
    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Upper ends of the waits, which then take no time."""
    ends: list[float] = []
    monkeypatch.setattr(retry.random, "uniform", lambda low, high: ends.append(high) or low)
    monkeypatch.setattr(retry.time, "sleep", lambda seconds: None)
    return ends


def test_waits_double_up_to_a_limit(waits: list[float]) -> None:
    cfg = config.Storage(max_attempts=12)
    fn = Flaky(*[ConnectionResetError()] * 11)
    assert storage.retrying(fn, cfg, "read x") == "done" and fn.calls == 12
    assert waits == [min(20.0, 0.1 * 2**n) for n in range(11)]
    with pytest.raises(StorageError, match=r"cannot read x: the connection keeps breaking .*\(tried 12 times\)"):
        storage.retrying(Flaky(*[ConnectionResetError()] * 12), cfg, "read x")


def test_what_is_not_about_storage_passes_through(waits: list[float]) -> None:
    for error in (ValueError("mine"), KeyError("mine"), pa.ArrowInvalid("not a Parquet file"), OSError("odd page")):
        fn = Flaky(error)
        with pytest.raises(type(error)) as caught:
            storage.retrying(fn, config.Storage(), "read x")
        assert caught.value is error and fn.calls == 1
    for kind in (errno.ENOSPC, errno.EACCES, errno.ENOENT):
        fn = Flaky(OSError(kind, os.strerror(kind)))
        with pytest.raises(StorageError):
            storage.retrying(fn, config.Storage(), "read x")
        assert fn.calls == 1
    assert waits == []
    cut = Flaky(pa.ArrowInvalid("Parquet file size is 0 bytes"))
    assert storage.retrying(cut, config.Storage(), "read x") == "done"


def test_patience_ends(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 25))
    monkeypatch.setattr(retry.time, "monotonic", lambda: float(next(now)) + 1)
    fn = Flaky(*[TimeoutError()] * 8)
    with pytest.raises(StorageError, match="tried 4 times"):
        storage.retrying(fn, config.Storage(max_attempts=8), "read x")  # failures at 0, 25, 50 and 75 s


def test_boto3_is_what_it_was_measured_to_be(s3: S3Server) -> None:
    """A body that is cut off raises in boto3 and is not repeated there: why `retrying` stands around it."""
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    client.put_object(Bucket=s3.bucket, Key="cut", Body=b"x" * 10_000)
    with FaultyProxy(s3.endpoint, fail_share=1.0, delay_s=0.0, kinds=("cut",)) as proxy:
        client = boto3.client("s3", endpoint_url=proxy.endpoint)
        with pytest.raises(Exception, match="IncompleteRead"):
            client.get_object(Bucket=s3.bucket, Key="cut")["Body"].read()
        assert sum(proxy.requests.values()) == 1
